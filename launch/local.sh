#!/usr/bin/env bash
# Runs one training as several processes on this machine, which talk over loopback: to try out what
# a cluster does, or to split a large CPU machine.
#
#   bash launch/local.sh [--dry-run] PROCESSES DEVICES -- ARGUMENTS OF bvit.main
#   bash launch/local.sh 2 4 -- --config=configs/vit_mask.py --config.mesh.fsdp=2
#
# DEVICES is the number of CPU devices that each process simulates. BVIT_PYTHON names the
# interpreter. Ctrl-C and SIGTERM go to every process; when one fails, the others are ended.
set -euo pipefail

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

dry_run=
if [ "${1-}" = --dry-run ]; then
  dry_run=1
  shift
fi
[[ "${1-}" =~ ^[1-9][0-9]*$ && "${2-}" =~ ^[1-9][0-9]*$ && "${3-}" = -- ]] || usage
processes=$1 devices=$2
shift 3

python=${BVIT_PYTHON:-python3}
free_port='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
port=$("$python" -c "$free_port")
export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS-} --xla_force_host_platform_device_count=$devices"

pids=()
for ((i = 0; i < processes; i++)); do
  command=("$python" -m bvit.main "--coordinator=127.0.0.1:$port" "--num_processes=$processes"
    "--process_id=$i" "$@")
  if [ -n "$dry_run" ]; then
    echo "JAX_PLATFORMS=$JAX_PLATFORMS XLA_FLAGS='${XLA_FLAGS# }' ${command[*]}"
    continue
  fi
  "${command[@]}" &
  pids+=($!)
done
[ -z "$dry_run" ] || exit 0

trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM
status=0
while [ -n "$(jobs -pr)" ]; do
  code=0
  wait -n || code=$? # of a process that ended, or 128 + the number of a signal to this script
  if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
    status=$code
    if [ "$code" -ne 130 ] && [ "$code" -ne 143 ]; then
      # The others either have the same error, or wait for ever for the one that is gone.
      sleep 5
      kill -KILL "${pids[@]}" 2>/dev/null || true
    fi
  fi
done
exit "$status"

#!/usr/bin/env bash
# Asks Google Cloud for a TPU slice as a queued resource, waits for it, and runs one training on all
# of its hosts; JAX finds the others by the slice's metadata.
#
#   TPU_NAME=bvit TPU_ZONE=us-east5-b TPU_TYPE=v6e-64 TPU_RUNTIME=v2-alpha-tpuv6e \
#     bash launch/tpu_pod.sh [--dry-run] [--spot] --config=configs/vit_mask.py:imagenet2012 \
#     --workdir=/mnt/shared/run
#
# Needs gcloud, signed in, with a project. BVIT_REPO (default: this clone's origin) and BVIT_REF
# (default: this commit) say what the hosts check out. The run directory and the data lie on a file
# system that all hosts mount. After a preemption run it again: the training goes on. The slice is
# not deleted at the end; the last line says how.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run=()
spot=()
while :; do
  case "${1-}" in
    --dry-run) run=(echo) ;;
    --spot) spot=(--spot) ;;
    *) break ;;
  esac
  shift
done
for name in TPU_NAME TPU_ZONE TPU_TYPE TPU_RUNTIME; do
  if [ -z "${!name-}" ]; then
    echo "set $name; the comment at the top of $0 has an example" >&2
    exit 2
  fi
done
repo=${BVIT_REPO:-$(git remote get-url origin)}
ref=${BVIT_REF:-$(git rev-parse HEAD)}

place=("--zone=$TPU_ZONE")
queued=(gcloud compute tpus queued-resources)
if [ ${#run[@]} -gt 0 ] || ! "${queued[@]}" describe "$TPU_NAME" "${place[@]}" >/dev/null 2>&1; then
  "${run[@]}" "${queued[@]}" create "$TPU_NAME" "${place[@]}" "--node-id=$TPU_NAME" \
    "--accelerator-type=$TPU_TYPE" "--runtime-version=$TPU_RUNTIME" "${spot[@]}"
fi

if [ ${#run[@]} -eq 0 ]; then
  while state=$("${queued[@]}" describe "$TPU_NAME" "${place[@]}" --format='value(state.state)') &&
    [ "$state" != ACTIVE ]; do
    case "$state" in
      FAILED | SUSPENDED | SUSPENDING)
        echo "the slice is $state; delete it: ${queued[*]} delete $TPU_NAME ${place[*]} --force" >&2
        exit 1
        ;;
    esac
    echo "waiting for the slice ($state) ..."
    sleep 30
  done
fi

on_all_hosts=("${run[@]}" gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${place[@]}" --worker=all)
setup="test -d bvit || git clone -q '$repo' bvit; cd bvit && git fetch -q && git checkout -q '$ref' &&
  python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt 'jax[tpu]'"
"${on_all_hosts[@]}" "--command=$setup"
# exec: so that a signal to the shell is one to the training.
"${on_all_hosts[@]}" "--command=cd bvit && exec .venv/bin/python -m bvit.main $(printf '%q ' "$@")"
echo "to give the slice back: ${queued[*]} delete $TPU_NAME ${place[*]} --force"

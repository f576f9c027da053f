#!/usr/bin/env bash
# Runs one experiment for all combinations of some values, one after another on this machine:
#
#   bash launch/sweep.sh runs/cnn model='resnet18 vgg11_bn' seed='0 1 2' -- \
#     --config='configs/cnn_blur.py:model={model},train=mix' --config.seed={seed}
#
# What follows -- goes to bvit.main, with the values in place of {model} and {seed}. Each run has a
# directory of its own, runs/cnn/model=resnet18,seed=0 and so on. The same command again goes on
# with what was interrupted, and passes over what is finished. When a run fails, the others are run
# all the same, and the exit code is 1; Ctrl-C and SIGTERM stop the sweep once the run is saved.
#
# --dry-run prints what would be run. --arguments=I prints the arguments of the run number I, from 0,
# with a NUL after each: so does slurm.sbatch run a sweep as an array. BVIT_PYTHON names the
# interpreter.
set -uo pipefail

usage() {
  [ $# -eq 0 ] || echo "sweep.sh: $*" >&2
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

mode=run
case "${1-}" in
  --dry-run | --arguments=*) mode=$1 && shift ;;
  -*) usage "there is no option $1" ;;
esac
[ $# -gt 0 ] || usage
folder=$1
shift

names=() lists=() total=1
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  [[ "$1" =~ ^([a-z_]+)=(.*[^ ].*)$ ]] || usage "expected NAME='VALUE VALUE ...': got '$1'"
  names+=("${BASH_REMATCH[1]}")
  lists+=("${BASH_REMATCH[2]}")
  read -ra values <<<"${BASH_REMATCH[2]}"
  total=$((total * ${#values[@]}))
  shift
done
if [ "${1-}" != -- ] || [ ${#names[@]} -eq 0 ]; then
  usage
fi
shift
for name in "${names[@]}"; do
  [[ "$*" == *"{$name}"* ]] || usage "{$name} stands nowhere behind --, so all runs would be the same"
done

# Sets workdir and arguments to those of one run.
choose() { # NUMBER ARGUMENTS...
  local rest=$1 i values value label=''
  shift
  arguments=("$@")
  for ((i = ${#names[@]} - 1; i >= 0; i--)); do
    read -ra values <<<"${lists[i]}"
    value=${values[rest % ${#values[@]}]}
    rest=$((rest / ${#values[@]}))
    arguments=("${arguments[@]//"{${names[i]}}"/"$value"}")
    label="${names[i]}=${value//[\/:]/_}${label:+,$label}"
  done
  workdir=$folder/$label
  arguments+=("--workdir=$workdir")
}

choose 0 "$@"
if [[ "${arguments[*]}" =~ \{[a-z_]+\} ]]; then
  usage "there are no values for ${BASH_REMATCH[0]}"
fi

if [[ "$mode" = --arguments=* ]]; then
  number=${mode#*=}
  if ! [[ "$number" =~ ^[0-9]+$ ]] || [ "$number" -ge "$total" ]; then
    usage "there are runs 0 to $((total - 1)): got '$number'"
  fi
  choose "$number" "$@"
  printf '%s\0' "${arguments[@]}"
  exit
fi

stop=0 failed=()
trap 'stop=130' INT # a terminal sends it to the run as well
# shellcheck disable=SC2046 # a number, or nothing between two runs
trap 'stop=143; kill -TERM $(jobs -p) 2>/dev/null' TERM
for ((number = 0; number < total && stop == 0; number++)); do
  choose "$number" "$@"
  command=("${BVIT_PYTHON:-python3}" -m bvit.main "${arguments[@]}")
  if [ "$mode" = --dry-run ]; then
    echo "${command[*]@Q}"
    continue
  fi
  echo "run $((number + 1)) of $total: $workdir"
  "${command[@]}" &
  child=$!
  code=0
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal to this script ended the wait, not the run
    code=0
    wait "$child" || code=$?
  done
  case $code in
    0) ;;
    130 | 143) stop=$code ;;
    *) failed+=("$workdir (exit code $code)") ;;
  esac
done
if [ "$stop" -ne 0 ]; then
  echo "sweep.sh: stopped; run the same command to go on." >&2
  exit "$stop"
fi
if [ ${#failed[@]} -gt 0 ]; then
  echo "sweep.sh: ${#failed[@]} of $total runs failed:" >&2
  printf '  %s\n' "${failed[@]}" >&2
  exit 1
fi

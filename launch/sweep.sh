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
# --at-once=N runs N at the same time. Each then writes its output to a file in runs/cnn-logs, and gets
# an equal part of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION is set.
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

# Of a GPU, the percentage that runs at once share, and the least for one.
shared=90 least=2
mode=run at_once=1
case "${1-}" in
  --dry-run | --arguments=*) mode=$1 && shift ;;
  --at-once=*)
    at_once=${1#*=} && shift
    [[ "$at_once" =~ ^[1-9][0-9]?$ ]] && [ $((shared / at_once)) -ge $least ] ||
      usage "--at-once must be 1 to $((shared / least)): got '$at_once'"
    ;;
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
declare -A going # the process of each run → its directory
trap 'stop=130' INT # a terminal sends it to the runs as well
# shellcheck disable=SC2046 # a number for each run, or nothing
trap 'stop=143; kill -TERM $(jobs -p) 2>/dev/null' TERM

# Waits until no more than so many runs go on, and notes how the others ended.
settle() { # MOST
  local child code
  while [ ${#going[@]} -gt "$1" ]; do
    wait -n # until a run ends, or a signal comes to this script
    for child in "${!going[@]}"; do
      kill -0 "$child" 2>/dev/null && continue
      code=0
      wait "$child" || code=$?
      case $code in
        0) ;;
        130 | 143) stop=$code ;;
        *) failed+=("${going[$child]} (exit code $code)") ;;
      esac
      unset "going[$child]"
    done
  done
}

if [ "$at_once" -gt 1 ]; then
  printf -v share 0.%02d $((shared / at_once))
  export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-$share}
  logs=${folder%/}-logs
  mkdir -p "$logs" || exit
fi
for ((number = 0; number < total && stop == 0; number++)); do
  choose "$number" "$@"
  command=("${BVIT_PYTHON:-python3}" -m bvit.main "${arguments[@]}")
  if [ "$mode" = --dry-run ]; then
    echo "${command[*]@Q}"
    continue
  fi
  echo "run $((number + 1)) of $total: $workdir"
  if [ "$at_once" -gt 1 ]; then
    "${command[@]}" >"$logs/${workdir##*/}.txt" 2>&1 &
  else
    "${command[@]}" &
  fi
  going[$!]=$workdir
  settle $((at_once - 1))
done
settle 0
if [ "$stop" -ne 0 ]; then
  echo "sweep.sh: stopped; run the same command to go on." >&2
  exit "$stop"
fi
if [ ${#failed[@]} -gt 0 ]; then
  echo "sweep.sh: ${#failed[@]} of $total runs failed:" >&2
  printf '  %s\n' "${failed[@]}" >&2
  exit 1
fi

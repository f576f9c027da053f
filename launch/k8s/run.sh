#!/usr/bin/env bash
# Runs one training on Kubernetes, as a JobSet: fills jobset.yaml in and applies it.
#
#   NAME=bvit HOSTS=4 IMAGE=registry/bvit:1 CLAIM=shared-disk \
#     bash launch/k8s/run.sh [--dry-run] --config=configs/vit_mask.py:imagenet2012 --workdir=/shared/run
#
# RESOURCE (nvidia.com/gpu) and DEVICES (8) say what each host has; for TPUs google.com/tpu and 4,
# with the node selectors of your slice added to the pods. CLAIM is a volume that all pods may write.
# The JobSet controller must be installed. --dry-run prints the manifest.
set -euo pipefail

dry_run=
if [ "${1-}" = --dry-run ]; then
  dry_run=1
  shift
fi
for name in NAME HOSTS IMAGE CLAIM; do
  if [ -z "${!name-}" ]; then
    echo "set $name; the comment at the top of $0 has an example" >&2
    exit 2
  fi
done
RESOURCE=${RESOURCE:-nvidia.com/gpu} DEVICES=${DEVICES:-8}

manifest=$(<"$(dirname "${BASH_SOURCE[0]}")/jobset.yaml")
for name in NAME HOSTS IMAGE CLAIM RESOURCE DEVICES; do
  manifest=${manifest//"\${$name}"/"${!name}"}
done
# Each argument as a YAML string: in single quotes, with those within doubled.
arguments=
for argument in "$@"; do
  arguments+="${arguments:+$'\n'                    }- '${argument//\'/\'\'}'"
done
manifest=${manifest//"\${ARGUMENTS}"/"$arguments"}

if [ -n "$dry_run" ]; then
  echo "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi

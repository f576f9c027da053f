#!/usr/bin/env bash
# Sets everything up, then runs the main job on the embedded photographs. Arguments go to the job:
#   bash launch/quickstart.sh --config.train.steps=2000 --workdir=runs/longer
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

exec python -m bvit.main --config=configs/vit_mask.py "$@"

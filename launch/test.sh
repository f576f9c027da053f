#!/usr/bin/env bash
# Sets everything up, then runs all checks and tests. Arguments go to pytest, and then only these
# tests run: bash launch/test.sh tests/image
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

if [ $# -eq 0 ]; then
  ruff check .
  ruff format --check .
  lint-imports --no-cache --no-logo
  mypy
  bandit --configfile pyproject.toml --quiet --recursive bvit configs
fi
# A file of tests stays in one process, so that what its tests share is made once.
exec python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile "$@"

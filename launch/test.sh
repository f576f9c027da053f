#!/usr/bin/env bash
# Sets everything up, then runs all tests. Arguments go to pytest: bash launch/test.sh tests/image
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# A file of tests stays in one process, so that what its tests share is made once.
exec python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile "$@"

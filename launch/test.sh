#!/usr/bin/env bash
# Sets everything up, then runs all tests. Arguments go to pytest: bash launch/test.sh tests/image
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

exec python -m pytest "$@"

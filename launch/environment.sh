# shellcheck shell=bash
# Sets the Python environment up, for the scripts beside this one to source: a virtual environment
# in .venv with the requirements, remade only when these change, and JAX's compilation cache.
# BVIT_PYTHON names another interpreter than python3, BVIT_VENV another place than .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${BVIT_VENV:-.venv}
python=${BVIT_PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "bvit needs Python 3.11 or newer: $("$python" --version 2>&1). Set BVIT_PYTHON to one." >&2
  exit 1
fi

packages=(-r requirements.txt --no-build-isolation)
if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
  packages+=("jax[cuda13]")
fi

stamp="${packages[*]} $(cat requirements.txt pyproject.toml | cksum)"
if [ ! -f "$venv/.installed" ] || [ "$(cat "$venv/.installed")" != "$stamp" ]; then
  echo "Setting up $venv (a minute or two, once) ..."
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check "setuptools>=77"
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check "${packages[@]}"
  echo "$stamp" >"$venv/.installed"
fi

PATH="$(cd "$venv/bin" && pwd):$PATH"
export PATH
# Compiled programs are kept between runs, so that only the first one waits for the compiler.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.5}
# Large blocks of memory in large pages (Linux, glibc): a training step on a CPU asks for hundreds of
# MB each time, and would spend much of its time on page faults.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

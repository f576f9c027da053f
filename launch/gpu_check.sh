#!/usr/bin/env bash
# Measures on one NVIDIA GPU, within five minutes, all that bvit claims about GPUs, and writes
# gpu_check.json and gpu_check.md. It needs no network: python3 (or BVIT_PYTHON) must have jax for
# CUDA; packages that are missing are installed from WHEELS, a folder of wheels, beside it.
#
#   WHEELS=wheels OUT=results bash launch/gpu_check.sh [--data=DIR] [--seconds=N] [--only=tokens,train]
#   bash launch/gpu_check.sh --smoke    # everything with few images, on CPUs too
#
# DIR is a folder of class folders of images, DIR/train/CLASS/* and DIR/val/CLASS/*, to train on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${BVIT_PYTHON:-python3} out=${OUT:-gpu_check}
site=${TMPDIR:-/tmp}/bvit-gpu-check-site
mkdir -p "$out" "$site"
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"

# Modules, and their packages where these have other names.
needed='jax flax optax orbax.checkpoint=orbax-checkpoint jaxtyping numpy absl=absl-py scipy tqdm
  ml_collections=ml-collections yaml=PyYAML grain array_record=array-record cloudpickle portpicker
  etils tensorboardX google.protobuf=protobuf simplejpeg cv2=opencv-python-headless PIL=pillow
  matplotlib skimage=scikit-image pytest hypothesis beartype'
missing() {
  "$python" -c '
import importlib.util, sys
for module, _, package in (name.partition("=") for name in sys.argv[1:]):
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # of the package that holds it
        found = None
    if found is None:
        print(package or module)' $needed
}

wanted=$(missing)
if [ -n "$wanted" ] && [ -n "${WHEELS-}" ]; then
  # One by one: what can't be installed must not keep the others out.
  for package in $wanted; do
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
      --find-links "$WHEELS" --target "$site" "$package" || true
  done
  wanted=$(missing)
fi
if [ -n "$wanted" ]; then
  echo "missing:" $wanted". Put their wheels for $("$python" --version) into a folder, and name it" \
    "with WHEELS=FOLDER." >&2
  exit 1
fi

# Torch's process works on the same GPU while JAX's waits.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${TMPDIR:-/tmp}/bvit-gpu-check-jax}
exec "$python" -m bvit.benchmarks.gpu_check --out="$out" "$@"

"""Measures the constants of launch/README.md that bvit.plan can't compute; a script, no test.

python tests/limits.py decode FOLDER_OF_JPEGS
python tests/limits.py checkpoint FOLDER_TO_WRITE_IN
"""

import argparse
import functools
import shutil
import time
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bvit import models
from bvit.checkpoint import Checkpoints
from bvit.data.decode import random_resized_crop
from bvit.optimizer import make_optimizer
from bvit.training.state import create_state

MODEL, SIZE, CLASSES = "vit_base_patch16_224", 224, 1000
REPEATS = 5


def decode(folder: Path) -> None:
    """Prints how many training crops one core decodes a second."""
    cv2.setNumThreads(1)
    files = [p.read_bytes() for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg")]
    rng, rates = np.random.default_rng(0), []
    for _ in range(REPEATS):
        began = time.process_time()
        for file in files:
            random_resized_crop(file, rng, size=SIZE)
        rates.append(len(files) / (time.process_time() - began))
    size = np.mean([len(file) for file in files]) / 1e3
    print(f"{np.median(rates):.0f} images/s on a core, of {len(files)} files of {size:.0f} kB")


def checkpoint(folder: Path) -> None:
    """Prints how long a state takes to save."""
    model = models.create(MODEL, num_classes=CLASSES, pool="mean", dtype=jnp.bfloat16)
    optimizer = make_optimizer("adamw", optax.constant_schedule(1e-3), weight_decay=0.1)
    create = functools.partial(
        create_state, model=model, optimizer=optimizer, image_size=SIZE, ema=False
    )
    shapes = jax.eval_shape(create, jax.random.key(0))
    rng = np.random.default_rng(0)  # noise: zeros would compress
    state = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), shapes)
    checkpoints = Checkpoints(folder / "limits", keep=1)
    began = time.perf_counter()
    checkpoints.save(1, vars(state))
    blocked = time.perf_counter() - began
    checkpoints.wait()
    seconds = time.perf_counter() - began
    checkpoints.close()
    shutil.rmtree(folder / "limits")
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
    print(f"{size:,.0f} MB in {seconds:.1f} s, {size / seconds:.0f} MB/s")
    print(f"the training waits {blocked:.2f} s of it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("decode", "checkpoint"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    {"decode": decode, "checkpoint": checkpoint}[arguments.what](arguments.folder)


if __name__ == "__main__":
    main()

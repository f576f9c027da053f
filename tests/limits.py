"""Measures the constants of launch/README.md, on any machine; a script, no test.

python tests/limits.py step v5e:2x4 512 --fsdp=8     # compiles for TPUs; needs pip install libtpu
python tests/limits.py decode FOLDER_OF_JPEGS
python tests/limits.py checkpoint FOLDER_TO_WRITE_IN
"""

import argparse
import collections
import functools
import math
import os
import re
import shutil
import time
from pathlib import Path

# For compiling on a machine that has no TPU; and before jax is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_WORKER_ID", "0")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies

from bvit import models, sharding
from bvit.checkpoint import Checkpoints
from bvit.data.decode import random_resized_crop
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD
from bvit.optimizer import make_optimizer
from bvit.tokens import parse
from bvit.training.state import create_state
from bvit.training.step import Hyperparameters, make_train_step

MODEL, SIZE, CLASSES = "vit_base_patch16_224", 224, 1000
REPEATS = 5
ITEM_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "u8": 1}
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def state_maker(optimizer):
    model = models.create(MODEL, num_classes=CLASSES, pool="mean", dtype=jnp.bfloat16)
    return model, functools.partial(
        create_state, model=model, optimizer=optimizer, image_size=SIZE, ema=False
    )


def step(topology: str, batch_size: int, fsdp: int, tensor: int, accumulate: int) -> None:
    """Compiles a training step for TPUs; prints memory, operations and messages of a chip."""
    devices = topologies.get_topology_desc(topology, "tpu").devices
    mesh = sharding.make_mesh(fsdp=fsdp, tensor=tensor, devices=list(devices))
    optimizer = make_optimizer("adamw", optax.constant_schedule(1e-3), weight_decay=0.1)
    model, create = state_maker(optimizer)
    hyper = Hyperparameters(
        condition="mix",
        policy=parse("keep"),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        accumulate=accumulate,
    )
    train = make_train_step(model, optimizer, hyper, num_classes=CLASSES, mesh=mesh)

    def shape(leaf, place):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    shapes = jax.eval_shape(create, jax.random.key(0))
    places = sharding.state_shardings(shapes, mesh)
    on_batch = sharding.batch_sharding(mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, SIZE, SIZE, 3), np.uint8, sharding=on_batch),
        "label": jax.ShapeDtypeStruct((batch_size,), np.int32, sharding=on_batch),
    }
    jitted = jax.jit(train, donate_argnums=0, out_shardings=(places, sharding.replicated(mesh)))
    compiled = jitted.lower(jax.tree.map(shape, shapes, places), batch).compile()
    memory = compiled.memory_analysis()
    print(f"mesh {dict(mesh.shape)}, {batch_size} images: on each chip")
    print(f"  {memory.argument_size_in_bytes / 1e6:,.0f} MB of state and batch")
    print(f"  {memory.temp_size_in_bytes / 1e6:,.0f} MB besides")
    print(f"  {compiled.cost_analysis()['flops'] / 1e12:.2f} TFLOP")
    sent = {}  # by channel: what is fused with others appears several times
    for line in compiled.as_text().splitlines():
        match = re.search(rf"= (.*?) ({KINDS})(?:-start)?\(.*channel_id=(\d+)", line)
        if match:
            arrays = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", match[1])
            sizes = [
                ITEM_BYTES[dtype] * math.prod(map(int, filter(None, dims.split(","))))
                for dtype, dims in arrays
            ]
            sent[match[2], match[3]] = sum(sizes)
    total, count = collections.Counter(), collections.Counter()
    for (kind, _), size in sent.items():
        total[kind] += size
        count[kind] += 1
    for kind in total:
        print(f"  {kind}: {total[kind] / 1e6:,.1f} MB in {count[kind]} messages")


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
    optimizer = make_optimizer("adamw", optax.constant_schedule(1e-3), weight_decay=0.1)
    shapes = jax.eval_shape(state_maker(optimizer)[1], jax.random.key(0))
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
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("step")
    command.add_argument("topology")
    command.add_argument("batch_size", type=int)
    for name in ("fsdp", "tensor", "accumulate"):
        command.add_argument(f"--{name}", type=int, default=1)
    for name in ("decode", "checkpoint"):
        commands.add_parser(name).add_argument("folder", type=Path)
    arguments = vars(parser.parse_args())
    {"step": step, "decode": decode, "checkpoint": checkpoint}[arguments.pop("command")](
        **arguments
    )


if __name__ == "__main__":
    main()

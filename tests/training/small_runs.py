"""Small models and their compiled steps, shared by the tests of this folder: compiling is slow."""

import dataclasses
import functools

import jax
import numpy as np
import optax

from bvit import sharding
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD
from bvit.models.resnet import BasicBlock, ResNet
from bvit.models.vit import VisionTransformer
from bvit.optimizer import make_optimizer
from bvit.tokens import parse
from bvit.training.state import create_state
from bvit.training.step import Hyperparameters, make_train_step

CLASSES, SIZE, BATCH = 5, 16, 16
PLAIN = Hyperparameters(
    condition="sharp", policy=parse("keep"), mean=IMAGENET_MEAN, std=IMAGENET_STD
)
# All that draws random numbers at once.
FULL = dataclasses.replace(
    PLAIN,
    condition="sharp+blur",
    label_smoothing=0.1,
    color_jitter=(0.2, 0.2, 0.2, 0.1),
    mixup=0.2,
    cutmix=1.0,
)
VIT = VisionTransformer(
    num_classes=CLASSES,
    image_size=SIZE,
    patch_size=8,
    width=32,
    depth=2,
    num_heads=2,
    dropout=0.1,
    stochastic_depth=0.1,
)
QUIET_VIT = VIT.clone(dropout=0.0, stochastic_depth=0.0)
RESNET = ResNet(block=BasicBlock, depths=(1, 1), num_classes=CLASSES, width=16, stem="small")


def make_batch(seed):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
    }


@functools.cache
def compiled(model, mesh, hyper=PLAIN, rate=0.1, ema=False, optimizer="sgd"):
    """(state's maker, compiled step): a state on its shards, and what trains it for a step."""
    optimizer = make_optimizer(optimizer, optax.constant_schedule(rate), weight_decay=1e-4)
    create = functools.partial(
        create_state, model=model, optimizer=optimizer, image_size=SIZE, ema=ema
    )
    key = jax.random.key(0)
    shapes = jax.eval_shape(create, key)
    places = sharding.state_shardings(shapes, mesh)
    step = make_train_step(model, optimizer, hyper, num_classes=CLASSES, mesh=mesh)

    def shape(leaf, place):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    state = jax.tree.map(shape, shapes, places)
    batch = {k: shape(v, sharding.batch_sharding(mesh)) for k, v in make_batch(0).items()}
    jitted = jax.jit(step, out_shardings=(places, sharding.replicated(mesh)))
    create = functools.partial(jax.jit(create, out_shardings=places), key)
    return create, jitted.lower(state, batch).compile()


def run(model, mesh, *, steps=1, hyper=PLAIN, rate=0.1, ema=False, batches=None):
    """Trains for a few steps; returns the last state and the metrics of each step."""
    create, step = compiled(model, mesh, hyper, rate, ema)
    state, metrics = create(), []
    for i in range(steps):
        batch = make_batch(i) if batches is None else batches[i]
        state, values = step(state, jax.device_put(batch, sharding.batch_sharding(mesh)))
        metrics.append(jax.tree.map(float, values))
    return state, metrics


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])

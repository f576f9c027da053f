"""A ViT under token policies beside the same ViT with every token."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from bvit import models
from bvit.benchmarks.harness import Case, Function, compute_dtype, flops, waiting
from bvit.evaluation.evaluator import make_classify
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD
from bvit.tokens import Attention, Keep, Policy, Tokens, parse

MODEL, BATCH, SIZE = "vit_small_patch16_224", 32, 224
POLICIES = (
    *("cluster:0.5", "atc:0.5", "tome:0.5", "pitome:0.5", "evit:0.5", "drop:0.5", "merge:0.5"),
    *("cluster:0.6", "cluster:0.4", "merge:97", "drop:98", "merge:49", "drop:49", "tome:8"),
)


def cases() -> Iterator[Case]:
    """All rows of the suite."""
    model = models.create(MODEL, num_classes=1000, dtype=compute_dtype())
    image = jax.random.uniform(jax.random.key(0), (BATCH, SIZE, SIZE, 3))
    variables = jax.jit(model.init)(jax.random.key(1), image[:1])
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    index = jnp.arange(BATCH)

    def forward(policy: Policy) -> tuple[Function, float]:
        classify = make_classify(
            model, policy, mean=IMAGENET_MEAN, std=IMAGENET_STD, seed=0, mesh=mesh
        )
        run = waiting(lambda: classify(variables, image, index))
        return run, flops(classify, variables, image, index)

    keep, _ = forward(Keep())
    for text in POLICIES:
        run, count = forward(parse(text))
        yield Case("tokens", f"{MODEL}, {BATCH}×{SIZE}², {text}", run, "keep", keep, flops=count)
    select = jax.jit(partial(parse("merge:97").plan, vit=model.shape))
    name = "focus measure and selection of merge:97"
    yield Case("tokens", name, waiting(lambda: select(image)), "keep", keep, bytes=image.nbytes)
    tokens = 1 + model.shape.patches
    x = jax.random.normal(jax.random.key(2), (BATCH, tokens, model.width), model.dtype)
    weights = jax.nn.softmax(jax.random.normal(jax.random.key(3), (BATCH, 1, tokens, tokens)))
    policy = parse("cluster:0.5")

    @jax.jit
    def join(x: Array, weights: Array) -> Array:
        found = Tokens(x)
        for block in policy.blocks(model.shape):
            left = found.x.shape[1]
            attention = Attention(found.x, weights[:, :, :left, :left])
            found = policy.reduce(found, attention, block, plan=None, vit=model.shape)
        return found.x

    name = "selection and joining of cluster:0.5, all stages"
    yield Case("tokens", name, waiting(lambda: join(x, weights)), "keep", keep, bytes=x.nbytes)

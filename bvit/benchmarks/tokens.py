"""A ViT under token policies beside the same ViT with every token."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bvit import models
from bvit.benchmarks.harness import Case, Function, compute_dtype, flops, waiting
from bvit.evaluation.evaluator import make_classify
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD
from bvit.tokens import Attention, Keep, Policy, Tokens, parse

MODEL, BATCH, SIZE = "vit_small_patch16_224", 32, 224
POLICIES = (
    *("cluster:98", "merge:97", "drop:98", "cluster:65", "merge:49", "drop:49", "tome:8"),
    *("merge:97@2", "cluster:98@2", "merge:49@2", "cluster:65@2"),
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
    width, tokens = model.width, 1 + model.shape.patches
    x = jax.random.normal(jax.random.key(2), (BATCH, tokens, width), model.dtype)
    heads = x.reshape(BATCH, tokens, model.num_heads, -1)
    policy = parse("cluster:98")
    join = jax.jit(
        lambda x, heads: policy.reduce(
            Tokens(x), Attention(heads, heads), policy.at, plan=None, vit=model.shape
        )
    )
    name = "selection and joining of cluster:98"
    yield Case("tokens", name, waiting(lambda: join(x, heads)), "keep", keep, bytes=x.nbytes)

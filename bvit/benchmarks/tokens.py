"""A ViT at fewer tokens beside the same ViT at all, scoring and gathering included."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from bvit import models
from bvit.benchmarks.harness import Case, Function, compute_dtype, flops, waiting
from bvit.evaluation.evaluate import make_classify
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD
from bvit.tokens import clusters
from bvit.tokens.inputs import Policy, parse_policy
from bvit.tokens.plans import plan

MODEL, BATCH, SIZE, PATCH = "vit_small_patch16_224", 32, 224, 16
POLICIES = ("cluster:98", "merge:97", "drop:98", "cluster:65", "merge:49", "drop:49", "tome:8")
# Of the 12 blocks, how many compute every patch first; `cluster` has at least one such block.
LATE = 2


def cases() -> Iterator[Case]:
    """All rows of the suite."""
    model = models.create(MODEL, num_classes=1000, dtype=compute_dtype())
    image = jax.random.uniform(jax.random.key(0), (BATCH, SIZE, SIZE, 3))
    variables = jax.jit(model.init)(jax.random.key(1), image[:1])
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    index = jnp.arange(BATCH)

    def forward(policy: Policy, plan_after: int = 0) -> tuple[Function, float]:
        classify = make_classify(
            model.clone(plan_after=plan_after),
            policy,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            seed=0,
            mesh=mesh,
        )
        run = waiting(lambda: classify(variables, image, index))
        return run, flops(classify, variables, image, index)

    keep, _ = forward(Policy())
    late = [(text, LATE) for text in POLICIES if text.startswith(("merge", "cluster"))]
    for text, after in [(text, 0) for text in POLICIES] + late:
        policy = parse_policy(text, grid=(SIZE // PATCH,) * 2, patch_size=PATCH)
        run, count = forward(policy, after)
        name = f"{MODEL}, {BATCH}×{SIZE}², {text}" + f" after {after} blocks" * (after > 0)
        yield Case("tokens", name, run, "keep", keep, flops=count)
    select = jax.jit(lambda x: plan(x, patch_size=PATCH, policy="merge", budget=97))
    name = "scores and selection of merge:97"
    yield Case("tokens", name, waiting(lambda: select(image)), "keep", keep, bytes=image.nbytes)
    shape = BATCH, (SIZE // PATCH) ** 2, model.width
    tokens = jax.random.normal(jax.random.key(2), shape, model.dtype)
    join = jax.jit(partial(_join, grid=model.grid, count=98))
    name = "selection and joining of cluster:98"
    yield Case("tokens", name, waiting(lambda: join(tokens)), "keep", keep, bytes=tokens.nbytes)


def _join(tokens: Array, *, grid: tuple[int, int], count: int) -> Array:
    cluster = clusters.assign(tokens, grid=grid, count=count)
    return clusters.merge(tokens, jnp.ones(tokens.shape[:2]), cluster, count)[0]

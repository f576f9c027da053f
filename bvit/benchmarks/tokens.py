"""A ViT at fewer tokens beside the same ViT at all, scoring and gathering included."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bvit import models
from bvit.benchmarks.harness import Case, Function, compute_dtype, flops, waiting
from bvit.evaluation.evaluate import make_classify
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD
from bvit.models.inputs import Policy, parse_policy
from bvit.models.tokens import plan

MODEL, BATCH, SIZE, PATCH = "vit_small_patch16_224", 32, 224, 16
POLICIES = ("merge:97", "drop:98", "merge:49", "drop:49", "tome:8")


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

    keep, _ = forward(Policy())
    for text in POLICIES:
        policy = parse_policy(text, grid=(SIZE // PATCH,) * 2, patch_size=PATCH)
        run, count = forward(policy)
        yield Case("tokens", f"{MODEL}, {BATCH}×{SIZE}², {text}", run, "keep", keep, flops=count)
    select = jax.jit(lambda x: plan(x, patch_size=PATCH, policy="merge", budget=97))
    name = "scores and selection of merge:97"
    yield Case("tokens", name, waiting(lambda: select(image)), "keep", keep, bytes=image.nbytes)

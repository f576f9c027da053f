"""A ViT under token policies beside the same ViT with every token."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bvit import models
from bvit.benchmarks.harness import Case, Function, Kind, compute_dtype
from bvit.benchmarks.networks import BATCH, OPTIONS
from bvit.evaluation.evaluator import make_classify
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD
from bvit.sharding import make_mesh
from bvit.tokens import Attention, Keep, Policy, Tokens, parse
from bvit.tokens.cluster import Cluster
from bvit.tokens.policy import operations

SIZE = 224
CPU = (
    ("vit_small_patch16_224",),
    (
        *("cluster:0.5", "atc:0.5", "tome:0.5", "pitome:0.5", "evit:0.5", "drop:0.5", "merge:0.5"),
        *("cluster:0.6", "cluster:0.4", "merge:97", "drop:98", "merge:49", "drop:49", "tome:8"),
    ),
)
ACCELERATOR = (
    ("vit_small_patch16_224", "vit_base_patch16_224"),
    ("cluster:0.5", "tome:0.5", "drop:0.5"),
)


def cases(kind: Kind) -> Iterator[Case]:
    """All rows of the suite."""
    names, policies = CPU if kind == "cpu" else ACCELERATOR
    for name in names:
        yield from _of_network(name, BATCH[kind], policies, OPTIONS[kind])


def _of_network(
    name: str, batch: int, policies: tuple[str, ...], options: dict[str, int]
) -> Iterator[Case]:
    model = models.create(name, num_classes=1000, dtype=compute_dtype(), **options)
    image = jax.random.uniform(jax.random.key(0), (batch, SIZE, SIZE, 3))
    variables = jax.jit(model.init)(jax.random.key(1), image[:1])
    mesh = make_mesh(devices=jax.devices()[:1])
    index = jnp.arange(batch)

    def forward(policy: Policy) -> Function:
        classify = make_classify(
            model, policy, mean=IMAGENET_MEAN, std=IMAGENET_STD, seed=0, mesh=mesh
        )
        return lambda: classify(variables, image, index)

    def case(title: str, run: Function, peer: str = "keep", **options) -> Case:
        return Case("tokens", title, run, peer, keep if peer else None, group=name, **options)

    keep = forward(Keep())
    for policy in map(parse, ("keep", *policies)):
        run, peer = (keep, "") if policy == Keep() else (forward(policy), "keep")
        title = f"{name}, {batch}×{SIZE}², {policy.label}"
        yield case(title, run, peer, flops=batch * operations(policy, model.shape), images=batch)
    select = jax.jit(partial(parse("merge:97").plan, vit=model.shape))
    title = f"{name}, {batch}×{SIZE}², focus measure and selection of merge:97"
    yield case(title, lambda: select(image), bytes=image.nbytes)
    tokens = 1 + model.shape.patches
    x = jax.random.normal(jax.random.key(2), (batch, tokens, model.width), model.dtype)
    weights = jax.nn.softmax(jax.random.normal(jax.random.key(3), (batch, 1, tokens, tokens)))

    def join(policy: Cluster, x: Array, weights: Array) -> Array:
        found = Tokens(x)
        for block in policy.blocks(model.shape):
            left = found.x.shape[1]
            attention = Attention(found.x, weights[:, :, :left, :left])
            found = policy.reduce(found, attention, block, plan=None, vit=model.shape)
        return found.x

    run = partial(jax.jit(partial(join, parse("cluster:0.5"))), x, weights)
    title = f"{name}, {batch}×{SIZE}², joining of cluster:0.5, all stages"
    yield case(title, run, bytes=x.nbytes)

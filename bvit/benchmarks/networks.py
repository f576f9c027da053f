"""Networks forwards, and forwards and backwards, beside timm's and torchvision's."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, PyTree

from bvit import models
from bvit.benchmarks import torch_peers
from bvit.benchmarks.harness import Case, Unavailable, compute_dtype, flops, waiting
from bvit.training.step import AUX_WEIGHT

BATCH, SIZE, CLASSES = 32, 224, 1000
NETWORKS = {
    "vit_tiny_patch16_224": "timm",
    "vit_small_patch16_224": "timm",
    "resnet50": "torchvision, channels_last",
    "googlenet": "torchvision, channels_last",
}
# A backward pass multiplies with each weight twice: for the input's gradient and the weight's.
TRAINING_FLOPS = 3


def cases() -> Iterator[Case]:
    """All rows of the suite."""
    rng = np.random.default_rng(0)
    pictures = rng.standard_normal((BATCH, SIZE, SIZE, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, BATCH)
    images = jnp.asarray(pictures)
    for name, library in NETWORKS.items():
        model = models.create(name, num_classes=CLASSES, dtype=compute_dtype())
        variables = jax.jit(model.init)(jax.random.key(0), images[:1])
        forward = jax.jit(lambda v, x, model=model: model.apply(v, x, train=False))
        both = jax.jit(_gradient(model, jnp.asarray(labels)))
        # Of one image: XLA counts what a loop over the batch does once.
        count = BATCH * flops(forward, variables, images[:1])
        peers, why = (None, None), ""
        try:
            peers = torch_peers.network(name, pictures, labels)
        except Unavailable as reason:
            why = str(reason)
        for function, title, peer, times in (
            (forward, "forward", peers[0], 1),
            (both, "forward and backward", peers[1], TRAINING_FLOPS),
        ):
            yield Case(
                "models",
                f"{name}, {BATCH}×{SIZE}², {title}",
                waiting(lambda f=function, v=variables: f(v, images)),
                library,
                peer,
                flops=times * count,
                why=why,
                group=name,
            )


def _gradient(model: nn.Module, labels: Array) -> Callable[[PyTree, Array], PyTree]:
    """(variables, images) → gradient of the parameters, and what training keeps of the batch."""

    def gradient(variables: PyTree, images: Array) -> PyTree:
        state = {name: value for name, value in variables.items() if name != "params"}

        def loss(params: PyTree) -> tuple[Array, PyTree]:
            logits, updated = model.apply(
                {"params": params, **state},
                images,
                train=True,
                mutable=[*state, "aux_logits"],
                rngs={"dropout": jax.random.key(0)},
            )
            entropy = optax.softmax_cross_entropy_with_integer_labels
            total = entropy(logits, labels).mean()
            for head in jax.tree.leaves(updated.pop("aux_logits", {})):
                total += AUX_WEIGHT * entropy(head, labels).mean()
            return total, updated

        return jax.grad(loss, has_aux=True)(variables["params"])

    return gradient

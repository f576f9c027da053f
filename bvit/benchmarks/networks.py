"""Networks forwards, and forwards and backwards, beside timm's and torchvision's."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, PyTree

from bvit import models
from bvit.benchmarks import apart, torch_peers
from bvit.benchmarks.harness import Case, Kind, compute_dtype, on_accelerator
from bvit.evaluation import cost
from bvit.tokens import Keep
from bvit.training.step import AUX_WEIGHT

SIZE = 224
BATCH: dict[Kind, int] = {"cpu": 32, "accelerator": 256, "tiny": 2}
CPU = ("vit_tiny_patch16_224", "vit_small_patch16_224", "resnet50", "googlenet")
ACCELERATOR = ("vit_small_patch16_224", "vit_base_patch16_224", "resnet50")
# Options of ViTs: few blocks compile sooner.
OPTIONS: dict[Kind, dict[str, int]] = {"cpu": {}, "accelerator": {}, "tiny": {"depth": 4}}
PASSES = ("forward", "forward and backward")
# A backward pass multiplies with each weight twice: for the input's gradient and the weight's.
TRAINING_FLOPS = 3


def cases(kind: Kind) -> Iterator[Case]:
    """All rows of the suite."""
    batch = BATCH[kind]
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((batch, SIZE, SIZE, 3)).astype(np.float32))
    labels = jnp.asarray(rng.integers(0, torch_peers.CLASSES, batch))
    for name in CPU if kind == "cpu" else ACCELERATOR:
        options = OPTIONS[kind] if models.is_vit(name) else {}
        peers = apart.start(
            PASSES, torch_peers.network, name, batch, SIZE, jax.default_backend(), options
        )
        model = models.create(
            name, num_classes=torch_peers.CLASSES, dtype=compute_dtype(), **options
        )
        variables = jax.jit(model.init)(jax.random.key(0), images[:1])
        forward = jax.jit(lambda v, x, model=model: model.apply(v, x, train=False))
        both = jax.jit(_gradient(model, labels))
        count = 1e9 * batch * cost.gflops(model, variables, Keep(), SIZE)
        peer = "timm" if models.is_vit(name) else "torchvision, channels_last"
        for function, title, peer_run, times in zip(
            (forward, both), PASSES, peers, (1, TRAINING_FLOPS), strict=True
        ):
            yield Case(
                "models",
                f"{name}, {batch}×{SIZE}², {title}",
                lambda f=function, v=variables: f(v, images),
                f"{peer}, compiled" if on_accelerator() else peer,
                peer_run,
                flops=times * count,
                images=batch,
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

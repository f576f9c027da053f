"""A whole training step: what blur adds to it, and what fewer tokens save."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array

from bvit import models, sharding
from bvit.benchmarks.harness import Case, Function, Kind, compute_dtype
from bvit.benchmarks.networks import BATCH, OPTIONS, TRAINING_FLOPS
from bvit.evaluation import cost
from bvit.image.conditions import apply_condition, indexed_keys
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD, to_float
from bvit.optimizer import make_optimizer
from bvit.tokens import parse
from bvit.training.state import TrainState, create_state
from bvit.training.step import Hyperparameters, make_train_step

SIZE, CLASSES = 224, 1000
# The ViT whose step targets are stated for, another and a CNN; on a CPU ViT-B would take minutes.
ACCELERATOR = ("vit_base_patch16_224", "vit_small_patch16_224", "resnet50")
CPU = ("vit_tiny_patch16_224", None, "resnet18")
POLICIES = ("drop:98", "merge:97")


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step on random images.

    Attributes:
      model: what is trained.
      hyper: how a batch is treated.
      mesh: the devices.
      state: of the model and AdamW, before the first step.
      batch: images and labels, on the devices.
    """

    model: nn.Module
    hyper: Hyperparameters
    mesh: Mesh
    state: TrainState
    batch: dict[str, Array]

    def jitted(self) -> Callable:
        """The step as the training loop compiles it: its state is donated."""
        step = make_train_step(
            self.model, _optimizer(), self.hyper, num_classes=CLASSES, mesh=self.mesh
        )
        return jax.jit(step, donate_argnums=0)

    def runner(self) -> Function:
        """A function that does one step after the other."""
        # The first call donates its state, and others may start from the same.
        step, state = self.jitted(), [jax.tree.map(jnp.copy, self.state)]

        def run() -> object:
            state[0], metrics = step(state[0], self.batch)
            return metrics

        return run

    def flops(self) -> float:
        """Operations of the model in a step: three times its forward pass. Blur is left out."""
        count, size = self.batch["image"].shape[:2]
        variables = self.state.eval_variables
        forward = cost.gflops(self.model, variables, self.hyper.policy, size)
        return TRAINING_FLOPS * count * 1e9 * forward


def make_step(
    name: str,
    *,
    batch_size: int,
    size: int,
    condition: str = "sharp",
    policy: str = "keep",
    devices: int = 1,
    **overrides: object,
) -> Step:
    """A step of a model by name, on random images; other options are the model's."""
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    if models.is_vit(name):
        overrides["image_size"] = size
    model = models.create(name, num_classes=CLASSES, dtype=compute_dtype(), **overrides)
    hyper = Hyperparameters(
        condition=condition,
        policy=parse(policy),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (batch_size, size, size, 3), np.uint8),
        "label": rng.integers(0, CLASSES, batch_size).astype(np.int32),
    }
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    return Step(model, hyper, mesh, _state(model, size, mesh), batch)


@functools.lru_cache(maxsize=1)
def _state(model: nn.Module, size: int, mesh: Mesh) -> TrainState:
    """The state that all steps of a model start from."""
    create = jax.jit(
        lambda key: create_state(key, model=model, optimizer=_optimizer(), image_size=size),
        out_shardings=sharding.replicated(mesh),
    )
    return create(jax.random.key(0))


def _optimizer() -> optax.GradientTransformation:
    return make_optimizer("adamw", optax.constant_schedule(1e-3), weight_decay=0.05)


def cases(kind: Kind) -> Iterator[Case]:
    """All rows of the suite."""
    vit, other, cnn = CPU if kind == "cpu" else ACCELERATOR
    count = BATCH[kind]

    def case(name: str, title: str, peer: str = "", peer_run=None, **options) -> Case:
        if models.is_vit(name):
            options |= OPTIONS[kind]
        step = make_step(name, batch_size=count, size=SIZE, **options)
        title = f"step of {name}, {count}×{SIZE}², {title}"
        options = {"flops": step.flops(), "images": count, "group": name}
        return Case("train", title, step.runner(), peer, peer_run, **options)

    sharp = case(vit, "sharp")
    whole = case(vit, "blur", "without blur", sharp.run, condition="blur")
    yield from (sharp, whole)
    yield _blur_alone(count, whole)
    policies = POLICIES if kind == "cpu" else ("cluster:0.5",)
    for policy in policies:
        yield case(vit, f"blur, {policy}", "keep", whole.run, condition="blur", policy=policy)
    if other:
        keep = case(other, "blur", condition="blur")
        yield keep
        for policy in policies:
            yield case(other, f"blur, {policy}", "keep", keep.run, condition="blur", policy=policy)
    yield case(cnn, "blur", condition="blur")


def _blur_alone(count: int, whole: Case) -> Case:
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8))
    keys = indexed_keys(jax.random.key(0), jnp.arange(count))
    blur = jax.jit(lambda keys, image: apply_condition("blur", keys, to_float(image)))
    return Case(
        "train",
        f"the blur of a step alone, {count}×{SIZE}²",
        lambda: blur(keys, image),
        "the whole step",
        whole.run,
        images=count,
        group=whole.group,
        bytes=5 * image.nbytes,  # uint8 in, float32 out
    )

"""One update of the parameters: a pure function of the state and a batch.

All randomness follows from (seed, step, position in the batch), and nothing here knows how many
devices there are: the losses are the same on one and on eight.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree, UInt8

from bvit.image.conditions import apply_condition, indexed_keys
from bvit.image.pixels import to_float
from bvit.models.inputs import Policy, prepare
from bvit.models.tokens import TokenPlan
from bvit.training.sharding import per_image
from bvit.training.state import TrainState

# Weight of each auxiliary head's loss (Szegedy et al. 2015, section 5: 0.3).
AUX_WEIGHT = 0.3

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a training step treats a batch; hashable, every field static under jit.

    Attributes:
      condition: what is done to the pictures first, see `bvit.image.conditions`.
      policy: what is done with blurry patches.
      mean: normalisation of the pixels.
      std: normalisation of the pixels.
      label_smoothing: share of the target that is spread over all classes.
      mixup: α of Beta(α, α), by which neighbours are mixed (Zhang et al. 2018); 0 = off.
      ema_decay: of the moving average of the parameters; only read where the state keeps one.
      skip_nonfinite: leave the state as it was when the loss or a gradient is not finite.
      seed: of all randomness in the step.
    """

    condition: str
    policy: Policy
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_smoothing: float = 0.0
    mixup: float = 0.0
    ema_decay: float = 0.0
    skip_nonfinite: bool = False
    seed: int = 0


def _mix_pairs(keys: Array, values: Float[Array, "n ..."], alpha: float) -> Float[Array, "n ..."]:
    """Mixes images 2i and 2i+1 of a batch: neighbours lie on one device, so nothing is sent."""
    share = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
    share = share.reshape((-1,) + (1,) * (values.ndim - 1)).astype(values.dtype)
    partner = values.reshape(-1, 2, *values.shape[1:])[:, ::-1].reshape(values.shape)
    return share * values + (1 - share) * partner


def make_inputs(
    keys: Array,
    image: UInt8[Array, "n h w 3"],
    target: Float[Array, "n classes"],
    recipe: Recipe,
) -> tuple[Float[Array, "n h w 3"], TokenPlan | None, Float[Array, "n classes"]]:
    """What the device does to pictures and targets before the model: blur, mix, mask, normalise."""
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    image = apply_condition(recipe.condition, keys[:, 0], to_float(image))
    if recipe.mixup:
        image = _mix_pairs(keys[:, 1], image, recipe.mixup)
        target = _mix_pairs(keys[:, 1], target, recipe.mixup)
    image, plan = prepare(image, recipe.policy, mean=recipe.mean, std=recipe.std, keys=keys[:, 2])
    return image, plan, target


def _select(finite: Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    *,
    num_classes: int,
    mesh: Mesh,
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, Metrics]]:
    """Builds the training step.

    Args:
      model: of `bvit.models.create`.
      optimizer: of `make_optimizer`.
      recipe: how a batch is treated.
      num_classes: of the data set.
      mesh: whose devices share the batch.

    Returns:
      A function (state, batch) → (state, metrics), to be jitted by the caller. The batch holds
      "image" (uint8 [n, s, s, 3]) and "label" (int32 [n]); the metrics are scalars: loss (mean
      cross-entropy of the batch), accuracy (against the heaviest target), grad_norm, and finite
      (1.0 if loss and gradient are).
    """

    def inputs(keys: Array, image: Array, target: Array):
        return make_inputs(keys, image, target, recipe)

    inputs = per_image(inputs, mesh)

    def train_step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        pixel_key, model_key = jax.random.split(key)
        target = optax.smooth_labels(
            jax.nn.one_hot(batch["label"], num_classes), recipe.label_smoothing
        )
        keys = indexed_keys(pixel_key, jnp.arange(batch["label"].shape[0]))
        image, plan, target = inputs(keys, batch["image"], target)
        extra = {} if plan is None else {"plan": plan}

        def loss_fn(params: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
            logits, updated = model.apply(
                {"params": params, **state.model_state},
                image,
                train=True,
                mutable=[*state.model_state, "aux_logits"],
                rngs={"dropout": model_key},
                **extra,
            )
            heads = jax.tree.leaves(updated.pop("aux_logits", {}))
            loss = optax.softmax_cross_entropy(logits, target).mean()
            for head in heads:
                loss += AUX_WEIGHT * optax.softmax_cross_entropy(head, target).mean()
            return loss, (logits, updated)

        (loss, (logits, model_state)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            ema_params = optax.incremental_update(params, ema_params, 1 - recipe.ema_decay)
        new = TrainState(state.step, params, model_state, opt_state, ema_params)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        if recipe.skip_nonfinite:
            new = _select(finite, new, state)
        metrics = {
            "loss": loss,
            "accuracy": jnp.mean(logits.argmax(-1) == target.argmax(-1)),
            "grad_norm": grad_norm,
            "finite": finite.astype(jnp.float32),
        }
        return new.replace(step=state.step + 1), metrics

    return train_step

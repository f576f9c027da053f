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
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree, UInt8

from bvit.classify import Inputs, forward, prepare
from bvit.image.augment import random_augment
from bvit.image.color import MAX_STRENGTHS, random_color_jitter
from bvit.image.conditions import apply_condition, indexed_keys
from bvit.image.pixels import to_float
from bvit.sharding import gather_at_use, microbatches, per_image, state_shardings
from bvit.tokens import Keep, Policy
from bvit.training.state import TrainState

# Weight of each auxiliary head's loss (Szegedy et al. 2015, section 5: 0.3).
AUX_WEIGHT = 0.3

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """How a training step treats a batch; hashable, every field static under jit.

    Attributes:
      condition: what is done to the images first, see `bvit.image.conditions`.
      policy: which tokens are computed.
      mean: normalisation of the pixels.
      std: normalisation of the pixels.
      label_smoothing: share of the target that is spread over all classes.
      color_jitter: strengths of `bvit.image.color.random_color_jitter`, in its order; () = off.
      rand_augment: operations and magnitude of `bvit.image.augment.random_augment`; () = off.
      mixup: α of Beta(α, α), by which neighbours are mixed (Zhang et al. 2018); 0 = off.
      cutmix: α of Beta(α, α), by which a box of a neighbour is pasted (Yun et al. 2019); 0 = off.
        With mixup, each pair draws one of the two.
      ema_decay: of the moving average of the parameters; only read where the state keeps one.
      accumulate: parts of a batch that are computed one after another, see `accumulate`.
      skip_nonfinite: leave the state as it was when the loss or a gradient is not finite.
      distill: weight of `distillation` from the full-token pass of the same step; 0 = off.
      distill_temperature: of that.
      sandwich: train with every token, too, in each step under another policy, so that the full
        pass learns as much as it teaches (the sandwich rule and in-place distillation of Yu & Huang
        2019, arXiv:1903.05134).
      seed: of all randomness in the step.
    """

    condition: str
    policy: Policy
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_smoothing: float = 0.0
    color_jitter: tuple[float, ...] = ()
    rand_augment: tuple[float, ...] = ()
    mixup: float = 0.0
    cutmix: float = 0.0
    ema_decay: float = 0.0
    accumulate: int = 1
    skip_nonfinite: bool = False
    distill: float = 0.0
    distill_temperature: float = 1.0
    sandwich: bool = False
    seed: int = 0

    @property
    def has_full_pass(self) -> bool:
        """Whether the step needs the logits of all tokens besides those under its policy."""
        return (self.distill > 0 or self.sandwich) and self.policy != Keep()


def _mix_pairs(keys: Array, values: Float[Array, "n ..."], alpha: float) -> Float[Array, "n ..."]:
    """Mixes images 2i and 2i+1 of a batch: neighbours lie on one device, so nothing is sent."""
    share = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
    share = share.reshape((-1,) + (1,) * (values.ndim - 1)).astype(values.dtype)
    return share * values + (1 - share) * _partners(values)


def _partners(values: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """Images 2i and 2i+1 of a batch, exchanged."""
    return values.reshape(-1, 2, *values.shape[1:])[:, ::-1].reshape(values.shape)


def cut_pairs(
    keys: Array, image: Float[Array, "n h w c"], target: Float[Array, "n classes"], alpha: float
) -> tuple[Float[Array, "n h w c"], Float[Array, "n classes"]]:
    """Exchanges a box between images 2i and 2i+1 of a batch (CutMix, Yun et al. 2019, section 3).

    The box has the shape of the image, a drawn share of its area and a uniform centre; what lies
    outside of the image is cut off. The key of the first image of a pair decides for both. The
    targets are mixed by the area that was exchanged.

    Args:
      keys: one for each image.
      image: an even number of images.
      target: a distribution over the classes for each.
      alpha: of Beta(α, α), from which the share is drawn.
    """
    height, width = image.shape[1:3]

    def box(key: Array) -> Array:
        area_key, place_key = jax.random.split(key)
        half = jnp.sqrt(1 - jax.random.beta(area_key, alpha, alpha)) / 2
        centre = jax.random.uniform(place_key, (2,))
        rows = jnp.abs((jnp.arange(height) + 0.5) / height - centre[0]) < half
        columns = jnp.abs((jnp.arange(width) + 0.5) / width - centre[1]) < half
        return rows[:, None] & columns

    inside = jnp.repeat(jax.vmap(box)(keys[::2]), 2, axis=0)
    share = inside.mean((1, 2))[:, None].astype(target.dtype)
    return (
        jnp.where(inside[..., None], _partners(image), image),
        (1 - share) * target + share * _partners(target),
    )


def _mix(
    keys: Array,
    image: Float[Array, "n h w 3"],
    target: Float[Array, "n classes"],
    hyper: Hyperparameters,
) -> tuple[Float[Array, "n h w 3"], Float[Array, "n classes"]]:
    """Mixes the images of each pair, or exchanges a box, as the hyperparameters say."""
    if not hyper.cutmix:
        return tuple(_mix_pairs(keys, values, hyper.mixup) for values in (image, target))
    pair_keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    cut = cut_pairs(pair_keys[:, 0], image, target, hyper.cutmix)
    if not hyper.mixup:
        return cut
    cuts = jnp.repeat(jax.vmap(jax.random.bernoulli)(pair_keys[::2, 1]), 2)
    mixed = (_mix_pairs(keys, values, hyper.mixup) for values in (image, target))
    return tuple(
        jnp.where(cuts.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        for a, b in zip(cut, mixed, strict=True)
    )


def make_inputs(
    model: nn.Module,
    keys: Array,
    image: UInt8[Array, "n h w 3"],
    target: Float[Array, "n classes"],
    hyper: Hyperparameters,
) -> tuple[Inputs, Float[Array, "n classes"], Inputs | None]:
    """What the device does to images and targets before the model: blur, mix, mask, normalise.

    Returns:
      The model's input under the policy; targets; and, for a full pass, the input with every token.
    """
    keys = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
    image = to_float(image)
    if hyper.color_jitter:
        strengths = dict(zip(MAX_STRENGTHS, hyper.color_jitter, strict=True))
        image = random_color_jitter(keys[:, 3], image, **strengths)
    if hyper.rand_augment:
        count, magnitude = hyper.rand_augment
        augment_keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys[:, 3])
        image = random_augment(augment_keys, image, operations=int(count), magnitude=magnitude)
    image = apply_condition(hyper.condition, keys[:, 0], image)
    if hyper.mixup or hyper.cutmix:
        image, target = _mix(keys[:, 1], image, target, hyper)
    options = {"mean": hyper.mean, "std": hyper.std, "key": keys[:, 2]}
    whole = prepare(model, image, Keep(), **options) if hyper.has_full_pass else None
    return prepare(model, image, hyper.policy, **options), target, whole


def distillation(
    logits: Float[Array, "n classes"], teacher: Float[Array, "n classes"], temperature: float
) -> Float[Array, ""]:
    """How far softened predictions are from a teacher's (Hinton et al. 2015, section 2).

    Args:
      logits: of the student.
      teacher: its logits for the same images.
      temperature: T, by which both are divided; high ones pass on what the teacher confuses.

    Returns:
      T² · KL(softmax(teacher/T) ‖ softmax(logits/T)), the mean over the images. By T² the
      gradient keeps its size whatever T is.
    """
    wanted, got = (jax.nn.log_softmax(x / temperature) for x in (teacher, logits))
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(got, wanted).mean()


def _select(finite: Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)


@struct.dataclass
class _Sums:
    """What the microbatches of a batch add up to; each is the mean over its images.

    Attributes:
      grads: of the loss, as the parameters.
      loss: mean cross-entropy, auxiliary heads and distillation included.
      accuracy: against the heaviest target.
    """

    grads: PyTree
    loss: Float[Array, ""]
    accuracy: Float[Array, ""]


def make_gradients(
    model: nn.Module, hyper: Hyperparameters, mesh: Mesh
) -> Callable[[PyTree, PyTree, PyTree, Array], tuple[PyTree, _Sums]]:
    """Builds (params, model_state, inputs, key) → (model_state, sums); see `make_inputs`."""

    def gradients(
        params: PyTree, model_state: PyTree, inputs: PyTree, key: Array
    ) -> tuple[PyTree, _Sums]:
        reduced, target, whole = inputs

        def all_tokens(params: PyTree) -> Array:
            variables = {"params": params, **model_state}
            options = {"train": hyper.sandwich, "rngs": {"dropout": key}}
            return forward(model, variables, whole, Keep(), **options)

        teacher = None
        if hyper.has_full_pass and not hyper.sandwich:
            # Outside of the loss: it needs no gradient, and no part of it is kept for one.
            teacher = gather_at_use(all_tokens, mesh)(params)

        def loss_fn(params: PyTree) -> tuple[Array, tuple[Array, PyTree]]:
            logits, updated = forward(
                model,
                {"params": params, **model_state},
                reduced,
                hyper.policy,
                train=True,
                mutable=[*model_state, "aux_logits"],
                rngs={"dropout": key},
            )
            heads = jax.tree.leaves(updated.pop("aux_logits", {}))
            loss = optax.softmax_cross_entropy(logits, target).mean()
            for head in heads:
                loss += AUX_WEIGHT * optax.softmax_cross_entropy(head, target).mean()
            full = teacher
            if hyper.has_full_pass and hyper.sandwich:
                full = all_tokens(params)
                loss += optax.softmax_cross_entropy(full, target).mean()
            if hyper.distill and full is not None:
                full = jax.lax.stop_gradient(full)
                loss += hyper.distill * distillation(logits, full, hyper.distill_temperature)
            return loss, (logits, updated)

        value_and_grad = jax.value_and_grad(gather_at_use(loss_fn, mesh), has_aux=True)
        (loss, (logits, updated)), grads = value_and_grad(params)
        grads = jax.lax.with_sharding_constraint(grads, state_shardings(grads, mesh))
        accuracy = jnp.mean(logits.argmax(-1) == target.argmax(-1))
        return updated, _Sums(grads, loss, accuracy)

    return gradients


def accumulate(gradients: Callable, count: int, mesh: Mesh) -> Callable:
    """Runs `gradients` on `count` parts of a batch, one after another, and takes their mean.

    That needs the memory of one part. Without batch norm or dropout the result is that of the whole
    batch, to rounding. Batch norm normalises each part by itself, and updates its running
    statistics `count` times: it behaves as in training with a batch that much smaller. Dropout
    draws anew for each part.
    """
    if count == 1:
        return gradients

    def accumulated(
        params: PyTree, model_state: PyTree, inputs: PyTree, key: Array
    ) -> tuple[PyTree, _Sums]:
        def add(carry: tuple[PyTree, _Sums], part: PyTree) -> tuple[tuple[PyTree, _Sums], None]:
            model_state, sums = carry
            model_state, values = gradients(params, model_state, *part)
            return (model_state, jax.tree.map(jnp.add, sums, values)), None

        parts = microbatches(inputs, count, mesh), jax.random.split(key, count)
        sums = _Sums(jax.tree.map(jnp.zeros_like, params), jnp.zeros(()), jnp.zeros(()))
        (model_state, sums), _ = jax.lax.scan(add, (model_state, sums), parts)
        return model_state, jax.tree.map(lambda total: total / count, sums)

    return accumulated


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    hyper: Hyperparameters,
    *,
    num_classes: int,
    mesh: Mesh,
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, Metrics]]:
    """Builds the training step.

    Args:
      model: of `bvit.models.create`.
      optimizer: of `make_optimizer`.
      hyper: how a batch is treated.
      num_classes: of the data set.
      mesh: whose devices share the batch.

    Returns:
      A function (state, batch) → (state, metrics), to be jitted by the caller. The batch holds
      "image" (uint8 [n, s, s, 3]) and "label" (int32 [n]); the metrics are scalars: loss (mean
      cross-entropy of the batch, with what the hyperparameters add to it), accuracy (against the
      heaviest target), grad_norm, and finite (1.0 if loss and gradient are).
    """

    def inputs(keys: Array, image: Array, target: Array):
        return make_inputs(model, keys, image, target, hyper)

    inputs = per_image(inputs, mesh)
    gradients = accumulate(make_gradients(model, hyper, mesh), hyper.accumulate, mesh)

    def train_step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(hyper.seed), state.step)
        pixel_key, model_key = jax.random.split(key)
        target = optax.smooth_labels(
            jax.nn.one_hot(batch["label"], num_classes), hyper.label_smoothing
        )
        keys = indexed_keys(pixel_key, jnp.arange(batch["label"].shape[0]))
        prepared = inputs(keys, batch["image"], target)
        model_state, sums = gradients(state.params, state.model_state, prepared, model_key)
        grad_norm = optax.tree.norm(sums.grads)
        updates, opt_state = optimizer.update(sums.grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            ema_params = optax.incremental_update(params, ema_params, 1 - hyper.ema_decay)
        new = TrainState(state.step, params, model_state, opt_state, ema_params)
        finite = jnp.isfinite(sums.loss) & jnp.isfinite(grad_norm)
        if hyper.skip_nonfinite:
            new = _select(finite, new, state)
        metrics = {
            "loss": sums.loss,
            "accuracy": sums.accuracy,
            "grad_norm": grad_norm,
            "finite": finite.astype(jnp.float32),
        }
        return new.replace(step=state.step + 1), metrics

    return train_step

"""Learning-rate schedules and optimizers, as optax chains."""

import jax
import optax
from jaxtyping import PyTree


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    total_steps: int,
    warmup: float = 0.0,
    boundaries: tuple[float, ...] = (),
    decay: float = 0.1,
) -> optax.Schedule:
    """Builds the learning rate as a function of the step.

    Args:
      name: "cosine" (to zero at the last step), "steps" (times `decay` at each of `boundaries`)
        or "constant".
      learning_rate: the peak rate, reached after the warm-up.
      total_steps: length of the training.
      warmup: share of `total_steps` in which the rate rises linearly from zero, in [0, 1).
      boundaries: for "steps", when to decay, as shares of `total_steps` in (0, 1).
      decay: for "steps", the factor at each boundary.

    Returns:
      An optax schedule, step → rate.

    Raises:
      ValueError: for an unknown name, or shares of the training outside (0, 1).
    """
    if not 0 <= warmup < 1:
        raise ValueError(
            f"optimizer.warmup is a share of the training in [0, 1): got {warmup}; e.g. 0.05."
        )
    warmup_steps = int(warmup * total_steps)
    rest = max(total_steps - warmup_steps, 1)  # a run of no steps still has a schedule
    if name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, rest)
    elif name == "steps":
        if not all(0 < b < 1 for b in boundaries):
            raise ValueError(
                f"optimizer.boundaries are shares of the training in (0, 1): got {boundaries}; "
                "epochs 30 and 60 of 90 are (1/3, 2/3)."
            )
        at = {int(b * total_steps) - warmup_steps: decay for b in boundaries}
        main = optax.piecewise_constant_schedule(learning_rate, at)
    elif name == "constant":
        main = optax.constant_schedule(learning_rate)
    else:
        raise ValueError(
            f"optimizer.schedule must be cosine, steps or constant: got {name!r}; choose one."
        )
    if not warmup_steps:
        return main
    rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([rise, main], [warmup_steps])


def decays(params: PyTree) -> PyTree:
    """Says which parameters weight decay applies to: the matrices and kernels.

    Biases, norms, the class token and embeddings are left alone, as published ViT recipes do; only
    leaves named "kernel" decay.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == "kernel", params
    )


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    weight_decay: float,
    momentum: float = 0.9,
    b2: float = 0.999,
    clip_norm: float | None = None,
    decay_all: bool = False,
) -> optax.GradientTransformation:
    """Builds the optimizer.

    Args:
      name: "adamw" (Loshchilov and Hutter 2019: decoupled decay) or "sgd" (heavy-ball momentum
        with decay added to the gradient, the published CNN training).
      schedule: step → learning rate.
      weight_decay: strength of the decay.
      momentum: β₁ of AdamW, or the momentum of SGD.
      b2: β₂ of AdamW.
      clip_norm: gradients are scaled down to this global norm; None leaves them.
      decay_all: decay every parameter (torchvision's reference does), not just kernels.

    Raises:
      ValueError: for an unknown name.
    """
    mask = None if decay_all else decays
    clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    if name == "adamw":
        update = [optax.adamw(schedule, b1=momentum, b2=b2, weight_decay=weight_decay, mask=mask)]
    elif name == "sgd":
        update = [
            optax.add_decayed_weights(weight_decay, mask),
            optax.sgd(schedule, momentum=momentum),
        ]
    else:
        raise ValueError(f"optimizer.name must be adamw or sgd: got {name!r}; choose one.")
    return optax.chain(*clip, *update)

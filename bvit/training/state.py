"""What a training run carries from one step to the next."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Int, PyTree


@struct.dataclass
class TrainState:
    """Everything that a step changes; the data order and all random keys follow from `step`.

    Attributes:
      step: number of updates done, a scalar.
      params: the trained parameters, float32.
      model_state: the model's other variables (batch-norm statistics); empty for a ViT.
      opt_state: the optimizer's state.
      ema_params: exponential moving average of `params`, or None when it is off.
    """

    step: Int[Array, ""]
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    ema_params: PyTree | None

    @property
    def eval_variables(self) -> dict[str, PyTree]:
        """The variables to evaluate with: the averaged parameters where they are kept."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, **self.model_state}

    @property
    def num_parameters(self) -> int:
        """Size of the model."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def create_state(
    key: Array,
    variables: PyTree | None = None,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_size: int,
    ema: bool = False,
) -> TrainState:
    """Initialises a training state; pure, so that it can be jitted onto its shards.

    Args:
      key: PRNG key of the initialisation.
      variables: published weights to start from; None draws new ones.
      model: a model of `bvit.models.create`.
      optimizer: of `bvit.optimizer.make_optimizer`.
      image_size: side of the (square) training images, in pixels.
      ema: keep a moving average of the parameters.
    """
    if variables is None:
        images = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
        variables = model.init(key, images, train=False)
    variables = dict(variables)
    params = variables.pop("params")
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=variables,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    )

"""From pixels and a policy to logits: the only forward pass.

Training, evaluation, prediction, export, costs and benchmarks all call `prepare` and `forward`.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD, check_image, normalize
from bvit.models.vit import VisionTransformer
from bvit.tokens import Policy, mean_tokens, parse
from bvit.tokens.policy import Keys, Pixels

# The patches that `zero` masks for a CNN, which has none of its own: the paper's ViT has 16 pixels.
CNN_PATCH_SIZE = 16


class Inputs(struct.PyTreeNode):
    """What a model is given.

    Attributes:
      image: normalised.
      plan: of the policy; None if it needs none.
    """

    image: Float[Array, "n h w 3"]
    plan: Any


def classify(
    model: nn.Module,
    variables: PyTree,
    image: Float[ArrayLike, "n h w 3"],
    policy: str | Policy = "keep",
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    key: Keys | None = None,
) -> Float[Array, "n num_classes"]:
    """Classifies images under a token policy.

    Pure, for use under jit, vmap, grad and shard_map, with model, policy, mean and std static.

    Args:
      model: of `bvit.models.create`.
      variables: the model's.
      image: RGB in [0, 1], before normalisation, of the model's image size.
      policy: what the ViT computes, as people type it ("cluster:0.5") or of `bvit.tokens.parse`.
      mean: of each channel, subtracted from the pixels.
      std: of each channel, by which they are then divided.
      key: for a policy that draws: one PRNG key, of which image i gets fold_in(key, i), or one for
        each image, [n].

    Returns:
      float32 logits.

    Raises:
      ValueError: not a batch of RGB images in floating point, or a policy that does not exist or
        that the model can't follow.
    """
    check_image(image, channels=3)
    if np.ndim(image) != 4:
        raise ValueError(
            f"image must be one batch, [n, height, width, 3]: got shape {np.shape(image)}; give a "
            "single image its batch axis with image[None]."
        )
    policy = parse(policy) if isinstance(policy, str) else policy
    check(model, policy)
    inputs = prepare(model, jnp.asarray(image), policy, mean=mean, std=std, key=key)
    return forward(model, variables, inputs, policy)


def check(model: nn.Module, policy: Policy) -> None:
    """Raises a ValueError if a model can't follow a policy."""
    if isinstance(model, VisionTransformer):
        policy.counts(model.shape)
    elif not policy.pixels_only:
        raise ValueError(
            f"policy {policy.label} reduces the tokens of a ViT, and {type(model).__name__} has "
            "none: use keep or zero, or a ViT."
        )


def prepare(
    model: nn.Module,
    image: Pixels,
    policy: Policy,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    key: Keys | None = None,
) -> Inputs:
    """Turns pixels in [0, 1] into a model's input; each image by itself.

    Arguments are those of `classify`.
    """
    normalized = policy.prepare(
        image, partial(normalize, mean=mean, std=std), patch_size=patch_size(model)
    )
    plan = policy.plan(image, model.shape, key=key) if policy.needs_plan else None
    return Inputs(normalized, plan)


def forward(
    model: nn.Module, variables: PyTree, inputs: Inputs, policy: Policy, **options: Any
) -> Any:
    """Applies a model to its input.

    Args:
      model: of `bvit.models.create`.
      variables: the model's.
      inputs: of `prepare`.
      policy: the same.
      **options: of `model.apply`: train, rngs, mutable.

    Returns:
      float32 logits; with `mutable`, also the updated collections.
    """
    if isinstance(model, VisionTransformer):
        options |= {"policy": policy, "plan": inputs.plan}
    return model.apply(variables, inputs.image, **options)


def shown(
    model: nn.Module,
    variables: PyTree,
    image: Pixels,
    policy: Policy,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    key: Keys | None = None,
) -> Int[Array, "n rows columns"]:
    """For each patch the number of the token that shows it, -1 for none; for drawing.

    Arguments are those of `classify`.
    """
    n, height, width, _ = image.shape
    side = patch_size(model)
    grid = height // side, width // side
    if isinstance(model, VisionTransformer):
        inputs = prepare(model, image, policy, mean=mean, std=std, key=key)
        _, kept = forward(model, variables, inputs, policy, mutable=["intermediates"])
        (where,) = kept["intermediates"]["where"]
    else:
        where = np.broadcast_to(np.arange(grid[0] * grid[1]), (n, grid[0] * grid[1]))
    return policy.shown(where, image, patch_size=side).reshape(n, *grid)


def patch_size(model: nn.Module) -> int:
    """The side of the patches that a policy sees."""
    return model.patch_size if isinstance(model, VisionTransformer) else CNN_PATCH_SIZE


def num_tokens(model: nn.Module, policy: Policy, image_size: int) -> float:
    """Patch tokens that a block's attention computes, the mean over the blocks.

    A CNN has none: for it this is the number of patches that `zero` masks or leaves.
    """
    if isinstance(model, VisionTransformer):
        return mean_tokens(policy, model.shape)
    return (image_size // CNN_PATCH_SIZE) ** 2

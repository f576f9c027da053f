"""Residual networks as torchvision has them (v1.5: the bottleneck strides in its 3x3 convolution).

Reference: He, Zhang, Ren and Sun 2016, "Deep Residual Learning for Image Recognition". Submodules
are named after torchvision's, so its weights load by name.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from flax.linen import initializers
from flax.typing import Dtype
from jaxtyping import Array, Float

from bvit.models import layers

STEMS = ("imagenet", "small")


class Block(nn.Module):
    """The attributes of both kinds of block.

    Attributes:
      width: channels of the 3x3 convolutions; the result has `expansion` times as many.
      stride: of the first 3x3 convolution and of the shortcut.
      dilation: of the 3x3 convolutions.
      zero_init_residual: start as the identity.
      dtype: of the computation.
    """

    width: int
    stride: int
    dilation: int
    zero_init_residual: bool
    dtype: Dtype
    expansion: ClassVar[int] = 1


class BasicBlock(Block):
    """Two 3x3 convolutions around a shortcut: the block of ResNet-18 and -34."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 c2"]:
        """Feature map to feature map; batch statistics are used and updated when `train`."""
        conv = partial(layers.conv, dtype=self.dtype)
        norm = partial(layers.BatchNorm, train=train, dtype=self.dtype)
        y = conv(self.width, 3, stride=self.stride, dilation=self.dilation, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv(self.width, 3, dilation=self.dilation, name="conv2")(y)
        y = norm(name="bn2", scale_init=_last_scale(self.zero_init_residual))(y)
        return nn.relu(y + _shortcut(x, y.shape, self.stride, conv, norm))


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions around a shortcut: the block of ResNet-50 and deeper."""

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 c2"]:
        """Feature map to feature map; batch statistics are used and updated when `train`."""
        conv = partial(layers.conv, dtype=self.dtype)
        norm = partial(layers.BatchNorm, train=train, dtype=self.dtype)
        y = nn.relu(norm(name="bn1")(conv(self.width, 1, name="conv1")(x)))
        y = conv(self.width, 3, stride=self.stride, dilation=self.dilation, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = conv(self.expansion * self.width, 1, name="conv3")(y)
        y = norm(name="bn3", scale_init=_last_scale(self.zero_init_residual))(y)
        return nn.relu(y + _shortcut(x, y.shape, self.stride, conv, norm))


def _last_scale(zero_init_residual: bool) -> initializers.Initializer:
    return initializers.zeros_init() if zero_init_residual else initializers.ones_init()


def _shortcut(x, shape, stride, conv, norm):
    """`x` itself, or projected where the block changed its shape (option B of the paper)."""
    if x.shape == shape:
        return x
    return norm(name="downsample_1")(conv(shape[-1], 1, stride=stride, name="downsample_0")(x))


class ResNet(nn.Module):
    """torchvision's ResNet: a stem, four stages of blocks, the mean over space, one linear layer.

    Attributes:
      block: `BasicBlock` or `Bottleneck`.
      depths: blocks in each stage.
      num_classes: how many logits.
      width: channels of the stem; stage i has width * 2^i (and times 4 after a bottleneck).
      stem: "imagenet" (7x7 of stride 2, then max-pooling) or "small" for images of 32 to 64
        pixels (3x3 of stride 1, no pooling; He et al. 2016, section 4.2).
      early_dilation: dilation of the stem's convolution and of the first stage's 3x3 ones. The
        receptive field of the early features grows with it; parameters and the sizes of feature
        maps do not change, so weights of the undilated network load.
      zero_init_residual: start every block as the identity, its last batch norm scaling by zero
        (Goyal et al. 2017, section 5.1).
      dtype: of the computation; parameters, batch statistics and logits stay float32.
    """

    block: type[Block]
    depths: Sequence[int]
    num_classes: int = 1000
    width: int = 64
    stem: str = "imagenet"
    early_dilation: int = 1
    zero_init_residual: bool = False
    dtype: Dtype = jnp.float32

    def __post_init__(self):
        """Raises ValueError for an unknown stem or a dilation below 1."""
        super().__post_init__()
        if self.stem not in STEMS:
            raise ValueError(f"stem must be one of {', '.join(STEMS)}: got {self.stem!r}.")
        if self.early_dilation < 1:
            raise ValueError(f"early_dilation must be 1 (none) or more: got {self.early_dilation}.")

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w 3"], train: bool = False
    ) -> Float[Array, "n {self.num_classes}"]:
        """Images, normalised, to logits (float32).

        Args:
          images: RGB, normalised with `pixels.IMAGENET_MEAN` and `IMAGENET_STD`.
          train: static; normalise by the batch's statistics, and update their running averages
            if the collection "batch_stats" is mutable.

        Raises:
          ValueError: not a batch of float RGB images.
        """
        layers.check_images(images)
        x = self._stem(images, train)
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                x = self.block(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    dilation=self.early_dilation if stage == 0 else 1,
                    zero_init_residual=self.zero_init_residual,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
        x = jnp.mean(x, axis=(1, 2))
        head = layers.linear(self.num_classes, fan_in=x.shape[-1], dtype=self.dtype, name="fc")
        return head(x).astype(jnp.float32)

    def _stem(self, images, train):
        small = self.stem == "small"
        x = layers.conv(
            self.width,
            3 if small else 7,
            stride=1 if small else 2,
            dilation=self.early_dilation,
            dtype=self.dtype,
            name="conv1",
        )(images)
        x = nn.relu(layers.BatchNorm(train=train, dtype=self.dtype, name="bn1")(x))
        return x if small else layers.max_pool(x, 3, stride=2, padding=1)

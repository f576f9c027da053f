"""GoogLeNet (Inception v1) as torchvision has it: with batch norm, and two auxiliary heads.

Reference: Szegedy et al. 2015, "Going Deeper with Convolutions", table 1. As in torchvision, and in
the TensorFlow weights it ports, the "5x5" branch convolves 3x3. Submodules are named after
torchvision's, so its weights load by name.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import initializers
from flax.typing import Dtype
from jaxtyping import Array, Float

from bvit.image import pixels
from bvit.models import layers

# Channels of each Inception block's branches for a stem of 64 (table 1 of the paper): 1x1; 3x3
# reduction, 3x3; "5x5" reduction, "5x5"; pool projection.
INCEPTION_WIDTHS = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
# All of them are multiples of 8, so a network of another width needs a multiple of 64 / 8.
PUBLISHED_WIDTH, WIDTH_UNIT = 64, 8

# Max-pooling before a block: side of the window, of stride 2 in ceil mode.
POOL_BEFORE = {"inception3a": 3, "inception4a": 3, "inception5a": 2}

# The auxiliary heads (section 5 of the paper), and the blocks they follow.
AUX_AFTER = {"inception4a": "aux1", "inception4d": "aux2"}
AUX_CONV_WIDTH, AUX_HIDDEN_WIDTH, AUX_POOLED_SIZE = 128, 1024, 4

BATCH_NORM_EPSILON = 1e-3

# What the TensorFlow weights were normalised by: pixels in [-1, 1].
TENSORFLOW_MEAN, TENSORFLOW_STD = 0.5, 0.5

# torchvision truncates this normal at +-2, which is 200 standard deviations: not at all.
kernel_init = initializers.normal(0.01)


class ConvNormRelu(nn.Module):
    """A convolution, batch norm and ReLU: torchvision's BasicConv2d.

    Attributes:
      features: channels of the result.
      kernel_size: side of the kernel.
      stride: step of the kernel.
      dtype: of the computation.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 c2"]:
        """Feature map to feature map; batch statistics are used and updated when `train`."""
        x = layers.conv(
            self.features,
            self.kernel_size,
            stride=self.stride,
            kernel_init=kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x)
        norm = layers.BatchNorm(
            train=train, epsilon=BATCH_NORM_EPSILON, dtype=self.dtype, name="bn"
        )
        return nn.relu(norm(x))


class Inception(nn.Module):
    """Four branches over one feature map, concatenated along channels (figure 2b of the paper).

    Attributes:
      widths: channels, in the order of `INCEPTION_WIDTHS`.
      dtype: of the computation.
    """

    widths: tuple[int, ...]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w c2"]:
        """Feature map to feature map; batch statistics are used and updated when `train`."""
        conv = partial(ConvNormRelu, dtype=self.dtype)
        one, three_reduced, three, five_reduced, five, pooled = self.widths
        branches = (
            conv(one, 1, name="branch1")(x, train),
            conv(three, 3, name="branch2_1")(
                conv(three_reduced, 1, name="branch2_0")(x, train), train
            ),
            conv(five, 3, name="branch3_1")(
                conv(five_reduced, 1, name="branch3_0")(x, train), train
            ),
            conv(pooled, 1, name="branch4_1")(layers.max_pool(x, 3, stride=1, padding=1), train),
        )
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryHead(nn.Module):
    """A small classifier on an early feature map, for its gradient there in training.

    Attributes:
      num_classes: how many logits.
      conv_width: channels of its 1x1 convolution.
      hidden: units of its hidden layer.
      dropout: rate after the hidden layer.
      dtype: of the computation.
    """

    num_classes: int
    conv_width: int
    hidden: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool
    ) -> Float[Array, "n {self.num_classes}"]:
        """Feature map to logits (float32)."""
        x = layers.adaptive_avg_pool(x, AUX_POOLED_SIZE)
        x = layers.flatten(
            ConvNormRelu(self.conv_width, 1, dtype=self.dtype, name="conv")(x, train)
        )
        x = nn.relu(_linear(x, self.hidden, self.dtype, "fc1"))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return _linear(x, self.num_classes, self.dtype, "fc2").astype(jnp.float32)


class GoogLeNet(nn.Module):
    """torchvision's GoogLeNet: a stem, nine Inception blocks, the mean over space, a linear layer.

    In training the logits of the two auxiliary heads are sown into the collection "aux_logits",
    each to be added to the loss with a weight of 0.3 (section 5 of the paper).

    Attributes:
      num_classes: how many logits.
      width: channels of the stem; all other widths keep their proportion to it. A multiple of 8.
      aux_heads: have the auxiliary heads. They cost parameters, and time in training alone.
      transform_input: renormalise images from ImageNet's mean and deviation to [-1, 1], as the
        published weights, ported from TensorFlow, want it.
      dropout: rate before the last layer.
      aux_dropout: rate in the auxiliary heads.
      dtype: of the computation; parameters, batch statistics and logits stay float32.
    """

    num_classes: int = 1000
    width: int = 64
    aux_heads: bool = True
    transform_input: bool = True
    dropout: float = 0.2
    aux_dropout: float = 0.7
    dtype: Dtype = jnp.float32

    def __post_init__(self):
        """Raises ValueError for a width that does not scale to whole channels."""
        super().__post_init__()
        if self.width < WIDTH_UNIT or self.width % WIDTH_UNIT:
            raise ValueError(f"width must be a multiple of {WIDTH_UNIT}: got {self.width}.")

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w 3"], train: bool = False
    ) -> Float[Array, "n {self.num_classes}"]:
        """Images, normalised, to logits (float32).

        Args:
          images: RGB, normalised with `pixels.IMAGENET_MEAN` and `IMAGENET_STD`.
          train: static; drop units at random (needs the "dropout" stream), normalise by the
            batch's statistics and update their averages if "batch_stats" is mutable, and sow
            the auxiliary logits if "aux_logits" is.

        Raises:
          ValueError: not a batch of float RGB images.
        """
        layers.check_images(images)
        x = _to_tensorflow_range(images) if self.transform_input else images
        x = self._stem(x, train)
        for name, widths in INCEPTION_WIDTHS.items():
            if name in POOL_BEFORE:
                x = layers.max_pool(x, POOL_BEFORE[name], stride=2, ceil_mode=True)
            x = Inception(tuple(map(self._scaled, widths)), self.dtype, name=name)(x, train)
            if name in AUX_AFTER:
                self._sow_auxiliary_logits(x, AUX_AFTER[name], train)
        x = jnp.mean(x, axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return _linear(x, self.num_classes, self.dtype, "fc").astype(jnp.float32)

    def _stem(self, x, train):
        conv = partial(ConvNormRelu, dtype=self.dtype)
        x = conv(self._scaled(64), 7, stride=2, name="conv1")(x, train)
        x = layers.max_pool(x, 3, stride=2, ceil_mode=True)
        x = conv(self._scaled(64), 1, name="conv2")(x, train)
        return conv(self._scaled(192), 3, name="conv3")(x, train)

    def _sow_auxiliary_logits(self, x, name, train):
        # Initialisation makes the heads' parameters in either mode, but sows nothing.
        if not self.aux_heads or not (train or self.is_initializing()):
            return
        logits = AuxiliaryHead(
            self.num_classes,
            conv_width=self._scaled(AUX_CONV_WIDTH),
            hidden=self._scaled(AUX_HIDDEN_WIDTH),
            dropout=self.aux_dropout,
            dtype=self.dtype,
            name=name,
        )(x, train)
        if not self.is_initializing():
            self.sow("aux_logits", f"{name}_logits", logits)

    def _scaled(self, channels: int) -> int:
        return channels * self.width // PUBLISHED_WIDTH


def _linear(x, features, dtype, name):
    return layers.linear(
        features, fan_in=x.shape[-1], kernel_init=kernel_init, dtype=dtype, name=name
    )(x)


def _to_tensorflow_range(images):
    mean, std = (np.asarray(v) for v in (pixels.IMAGENET_MEAN, pixels.IMAGENET_STD))
    scale = jnp.asarray(std / TENSORFLOW_STD, images.dtype)
    shift = jnp.asarray((mean - TENSORFLOW_MEAN) / TENSORFLOW_STD, images.dtype)
    return images * scale + shift

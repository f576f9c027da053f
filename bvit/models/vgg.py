"""VGG as torchvision has it, with and without batch norm.

Reference: Simonyan and Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", table 1. Submodules carry torchvision's numbers (`features_0`, `classifier_6`), which
count activations, poolings and dropouts too, so its weights load by name.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from flax.linen import initializers
from flax.typing import Dtype
from jaxtyping import Array, Float

from bvit.models import layers

# Stages two to five have these multiples of the first one's channels.
STAGE_WIDTHS = (1, 2, 4, 8, 8)

# The classifier sees the last feature map pooled to this many rows and columns.
POOLED_SIZE = 7

# Standard deviation of the linear layers at the start, torchvision's and the paper's (section 3.1).
LINEAR_STD = 0.01


class VGG(nn.Module):
    """torchvision's VGG: five stages of 3x3 convolutions and pooling, and three linear layers.

    Attributes:
      depths: convolutions in each of the five stages.
      batch_norm: normalise after each convolution.
      num_classes: how many logits.
      width: channels of the first stage; the later ones have 2, 4, 8 and 8 times as many.
      hidden: units of the two hidden linear layers.
      dropout: rate after each of these.
      dtype: of the computation; parameters, batch statistics and logits stay float32.
    """

    depths: Sequence[int]
    batch_norm: bool
    num_classes: int = 1000
    width: int = 64
    hidden: int = 4096
    dropout: float = 0.5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w 3"], train: bool = False
    ) -> Float[Array, "n {self.num_classes}"]:
        """Images, normalised, to logits (float32).

        Args:
          images: RGB, normalised with `pixels.IMAGENET_MEAN` and `IMAGENET_STD`, 32 pixels a
            side or more.
          train: static; drop units at random (needs the "dropout" stream), normalise by the
            batch's statistics, and update their averages if "batch_stats" is mutable.

        Raises:
          ValueError: not a batch of float RGB images, or too small ones.
        """
        layers.check_images(images)
        x = layers.adaptive_avg_pool(self._features(images, train), POOLED_SIZE)
        x = layers.flatten(x)
        for name in ("classifier_0", "classifier_3"):
            x = nn.relu(self._linear(self.hidden, name)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self._linear(self.num_classes, "classifier_6")(x).astype(jnp.float32)

    def _features(self, x, train):
        index = 0
        for depth, multiple in zip(self.depths, STAGE_WIDTHS, strict=True):
            for _ in range(depth):
                x = layers.conv(
                    multiple * self.width,
                    3,
                    use_bias=True,
                    dtype=self.dtype,
                    name=f"features_{index}",
                )(x)
                index += 1
                if self.batch_norm:
                    x = layers.BatchNorm(train=train, dtype=self.dtype, name=f"features_{index}")(x)
                    index += 1
                x = nn.relu(x)
                index += 1
            x = layers.max_pool(x, 2, stride=2)
            index += 1
        return x

    def _linear(self, features, name):
        init = initializers.normal(LINEAR_STD)
        return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)

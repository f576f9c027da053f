"""PyTorch's layers in Flax, where the two differ: what torchvision's CNNs are made of.

Feature maps are channels last. Padding is explicit and symmetric (Flax's "SAME" pads layers of
stride 2 more on one side), pooling knows `ceil_mode` and adaptive windows, and feature maps are
flattened channels first, so that published weights load without being permuted.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import initializers
from flax.typing import Dtype, Initializer
from jax import lax
from jaxtyping import Array, Float

from bvit.image import pixels
from bvit.models import backends

# PyTorch's momentum of 0.1 is the weight of the new batch, Flax's that of the old average. (PyTorch
# averages the unbiased variance, Flax the biased one: by n / (n - 1) of the pixels in a batch.)
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5

# torch.nn.init.kaiming_normal_(mode="fan_out", nonlinearity="relu") (He et al. 2015, eq. 14).
kaiming_normal_fan_out = initializers.variance_scaling(2.0, "fan_out", "normal")

# torch.nn.Linear's default: uniform in +-1/sqrt(fan_in), whose variance is 1/(3 fan_in).
linear_kernel_init = initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def check_images(images: Float[Array, "n h w 3"]) -> None:
    """Raises ValueError where an array is not a batch of float RGB images, [n, h, w, 3]."""
    pixels.check_image(images, "images", channels=3)
    if np.ndim(images) != 4:
        raise ValueError(
            f"a model takes a batch of images, [n, h, w, 3]: got shape {np.shape(images)}; "
            "give a single image its batch axis with images[None]."
        )


def conv(
    features: int,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    use_bias: bool = False,
    kernel_init: Initializer = kaiming_normal_fan_out,
    dtype: Dtype,
    name: str,
) -> nn.Conv:
    """A square convolution, padded on each side by half its (dilated) extent."""
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides=stride,
        padding=dilation * (kernel_size - 1) // 2,
        kernel_dilation=dilation,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=dtype,
        name=name,
        conv_general_dilated=backends.conv_general_dilated,
    )


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last (Ioffe and Szegedy 2015), a channel at a time.

    Flax's layer, with its variables and averages, as one multiplication and one addition, the way
    PyTorch computes it on CPUs: Flax subtracts the mean first and keeps the difference for the
    gradient, which makes forward and backward of a ResNet-50 take 1.1 times as long there.

    Attributes:
      train: normalise by the batch's statistics and update their running averages if the collection
        "batch_stats" is mutable; otherwise by those averages. Statistics are float32 whatever
        `dtype`, and over a sharded batch under jit they are global.
      epsilon: added to the variance.
      scale_init: the initial scale.
      dtype: of the result.
    """

    train: bool
    epsilon: float = BATCH_NORM_EPSILON
    scale_init: Initializer = nn.initializers.ones
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """Normalises each channel, then scales and shifts it."""
        channels = x.shape[-1:]
        average_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        average_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        x = x.astype(jnp.float32)
        mean, var = average_mean.value, average_var.value
        if self.train:
            axes = range(x.ndim - 1)
            mean = jnp.mean(x, axes)
            # Rounding can make the difference of two nearly equal numbers negative.
            var = jnp.maximum(0, jnp.mean(jnp.square(x), axes) - jnp.square(mean))
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                for average, new in ((average_mean, mean), (average_var, var)):
                    average.value += (1 - BATCH_NORM_MOMENTUM) * (new - average.value)
        factor = scale * lax.rsqrt(var + self.epsilon)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)


def linear(
    features: int,
    *,
    fan_in: int,
    kernel_init: Initializer = linear_kernel_init,
    dtype: Dtype,
    name: str | None = None,
) -> nn.Dense:
    """A dense layer whose bias starts as torch.nn.Linear's does, uniform in +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def bias_init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, name=name)


def max_pool(
    x: Float[Array, "n h w c"],
    window: int,
    *,
    stride: int,
    padding: int = 0,
    ceil_mode: bool = False,
) -> Float[Array, "n h2 w2 c"]:
    """Maximum over square windows, as torch.nn.MaxPool2d has it: NaN wins, and of equals the first.

    Args:
      x: feature map.
      window: side of the window.
      stride: step between windows.
      padding: rows and columns of -inf on each side.
      ceil_mode: keep a last window that reaches past the far edge, if it starts inside.

    Raises:
      ValueError: the map is too small for one window.
    """
    pads = [_pool_padding(side, window, stride, padding, ceil_mode) for side in x.shape[1:3]]
    return backends.max_pool(x, window, stride, pads)


def _pool_padding(
    size: int, window: int, stride: int, padding: int, ceil_mode: bool
) -> tuple[int, int]:
    span = size + 2 * padding - window
    if span < 0:
        raise ValueError(
            f"the images are too small for this network: a {window}x{window} max-pool got a "
            f"feature map of side {size}; use larger images."
        )
    if not ceil_mode:
        return padding, padding
    last_start = -(-span // stride) * stride
    if last_start >= size + padding:
        last_start -= stride
    return padding, max(0, last_start + window - size - padding)


def adaptive_avg_pool(x: Float[Array, "n h w c"], size: int) -> Float[Array, "n {size} {size} c"]:
    """Means over a size x size grid of windows that cover the map, as torch.nn.AdaptiveAvgPool2d.

    Window i spans floor(i n / size) to ceil((i + 1) n / size) of n: windows overlap where size
    does not divide n, and repeat pixels where n is less than size.
    """
    rows, columns = (jnp.asarray(_window_means(n, size), x.dtype) for n in x.shape[1:3])
    return jnp.einsum("nhwc,ih,jw->nijc", x, rows, columns, precision="highest")


def _window_means(size: int, windows: int) -> Float[np.ndarray, "{windows} {size}"]:
    """Row i averages window i of a line of `size` pixels."""
    means = np.zeros((windows, size))
    for i in range(windows):
        start, stop = i * size // windows, -(-(i + 1) * size // windows)
        means[i, start:stop] = 1 / (stop - start)
    return means


def flatten(x: Float[Array, "n h w c"]) -> Float[Array, "n c*h*w"]:
    """The map as one vector an image, channels first: the order published weights expect."""
    return jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)

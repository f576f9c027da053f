"""Formulations that serve one of XLA's backends, each chosen by the platform of the program.

On CPUs XLA multiplies matrices up to twice as fast as it convolves, and two to five times as fast
as it takes the gradient of a convolution; the gradients of dense layers over several axes and of
max-pools are slow there as well, and so are products of attention heads that are not contiguous in
memory. What stands in for them here is made of ordinary operations, and so are all its derivatives.
GPUs and TPUs get the plain operations.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float

Heads = Float[Array, "n t heads head_dim"]
Keys = Float[Array, "n s heads head_dim"]
Maps = Float[Array, "n h w c"]
Kernel = Float[Array, "k k c d"]

# Values that go in and out of the products of one piece of the batch: more do not fit the cache,
# and fewer make a product too short. The fastest pieces of a ResNet-50's stages, of 2 to 16 images,
# have about this many.
VALUES_AT_ONCE = 2**22
# With fewer channels, in or out, the products are too narrow to beat XLA's convolution.
LEAST_CHANNELS = 64
# On smaller maps Winograd's kernels, 16/9 as large as plain ones, cost more than they save.
LEAST_WINOGRAD_SIDE = 8
# F(2x2, 3x3): what makes 4x4 values of a kernel of 3x3.
WINOGRAD_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def dot_general(
    x: Float[Array, "..."],
    kernel: Float[Array, "..."],
    dimension_numbers: tuple,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Float[Array, "..."]:
    """The same as lax.dot_general, for the layers that treat each token by itself.

    Args:
      x: tokens; its last axes are contracted, as `flax.linen.Dense(dot_general=…)` calls it.
      kernel: of the layer.
      dimension_numbers: of lax.dot_general, without batch axes.
      precision: of lax.dot_general.
      preferred_element_type: of lax.dot_general.
    """
    (axes, kernel_axes), _ = dimension_numbers
    from_last = [axis - x.ndim for axis in axes]

    def product(x: Array, kernel: Array) -> Array:
        numbers = (([axis + x.ndim for axis in from_last], kernel_axes), ((), ()))
        return lax.dot_general(x, kernel, numbers, precision, preferred_element_type)

    return by_token(product, x, kernel, features=len(axes))


def by_token(
    function: Callable[..., Array], x: Float[Array, "..."], *weights: Array, features: int = 1
) -> Float[Array, "..."]:
    """function(x, *weights), which treats each token by itself.

    On CPUs the axes before those of the features become one: over several, XLA takes the gradient
    of a dense layer from transposed copies of x, and a GELU after it takes longer. On TPUs this
    very reshaping would copy x, whose tokens are tiled by eight.

    Args:
      function: of tokens, over any axes, and weights.
      x: tokens.
      *weights: what else the function takes.
      features: the number of last axes of x that belong to one token.
    """
    tokens = x.shape[: x.ndim - features]
    if len(tokens) < 2:
        return function(x, *weights)

    def flattened(x: Array, *weights: Array) -> Array:
        rows = function(x.reshape(-1, *x.shape[len(tokens) :]), *weights)
        return rows.reshape(*tokens, *rows.shape[1:])

    return lax.platform_dependent(x, *weights, cpu=flattened, default=function)


def attention(
    query: Heads,
    key: Keys,
    value: Keys,
    *,
    mask: Bool[Array, "n s"] | None = None,
    bias: Float[Array, "n s"] | None = None,
) -> Heads:
    """softmax(query·key / √head_dim + bias) · value, for each head; the softmax is in float32.

    Arguments are those of `bvit.models.attention.attend`.
    """

    def by_xla(query: Heads, key: Keys, value: Keys) -> Heads:
        extras = {"mask": over_queries(mask), "bias": over_queries(bias)}
        return jax.nn.dot_product_attention(query, key, value, **extras)

    def by_head(query: Heads, key: Keys, value: Keys) -> Heads:
        return _attention_by_head(query, key, value, mask, bias)[0]

    return lax.platform_dependent(query, key, value, cpu=by_head, default=by_xla)


def attention_with_weights(
    query: Heads,
    key: Keys,
    value: Keys,
    *,
    mask: Bool[Array, "n s"] | None = None,
    bias: Float[Array, "n s"] | None = None,
) -> tuple[Heads, Float[Array, "n heads t s"]]:
    """The same as `attention`, and the weights that it gives the values, in float32."""

    def by_xla(query: Heads, key: Keys, value: Keys) -> tuple[Array, Array]:
        extras = {"mask": over_queries(mask), "bias": over_queries(bias)}
        weights = nn.dot_product_attention_weights(
            query, key, **extras, dtype=query.dtype, force_fp32_for_softmax=True
        ).astype(np.float32)
        return jnp.einsum("nhqk,nkhd->nqhd", weights.astype(value.dtype), value), weights

    def by_head(query: Heads, key: Keys, value: Keys) -> tuple[Array, Array]:
        return _attention_by_head(query, key, value, mask, bias)

    return lax.platform_dependent(query, key, value, cpu=by_head, default=by_xla)


def over_queries(x: Array | None) -> Array | None:
    """One value for each key, [n, s], as [n, heads, queries, keys]."""
    return None if x is None else x[:, None, None, :]


def _attention_by_head(
    query: Heads, key: Keys, value: Keys, mask: Array | None, bias: Array | None
) -> tuple[Array, Array]:
    """Attention and its weights, from heads that are contiguous, in float32.

    The sum of the weights divides the products: there are fewer products than weights. With 197
    tokens and 32 images this takes 0.2 to 0.4 of the time of XLA's attention on 2 cores, and its
    gradient 0.6.
    """
    first, second, third = (jnp.swapaxes(x, 1, 2).astype(np.float32) for x in (query, key, value))
    logits = jnp.matmul(first / np.float32(query.shape[-1] ** 0.5), jnp.swapaxes(second, 2, 3))
    if bias is not None:
        logits += over_queries(bias)
    if mask is not None:
        logits = jnp.where(over_queries(mask), logits, np.finfo(np.float32).min)
    # The result does not depend on what is subtracted.
    raised = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = raised.sum(-1, keepdims=True)
    mixed = jnp.swapaxes(jnp.matmul(raised, third) / total, 1, 2)
    return mixed.astype(value.dtype), raised / total


def max_pool(
    x: Maps, window: int, stride: int, padding: Sequence[tuple[int, int]]
) -> Float[Array, "n h2 w2 c"]:
    """The maximum over square windows: NaN wins, and of equals the first has the gradient.

    On CPUs taken along rows and then along columns, by comparing shifted maps: XLA's own gradient
    of a window's maximum (select-and-scatter) takes 4 to 11 times as long there.

    Args:
      x: feature maps.
      window: side of the window.
      stride: step between windows.
      padding: rows of -inf above and below, columns left and right.
    """
    sides = {"window": window, "stride": stride, "padding": padding}
    by_line, by_window = partial(_max_by_line, **sides), partial(_max_by_window, **sides)
    return lax.platform_dependent(x, cpu=by_line, default=by_window)


def _max_by_window(
    x: Maps, *, window: int, stride: int, padding: Sequence[tuple[int, int]]
) -> Float[Array, "n h2 w2 c"]:
    sides, strides = (1, window, window, 1), (1, stride, stride, 1)
    least = np.array(-np.inf, x.dtype)
    return lax.reduce_window(x, least, lax.max, sides, strides, [(0, 0), *padding, (0, 0)])


def _max_by_line(
    x: Maps, *, window: int, stride: int, padding: Sequence[tuple[int, int]]
) -> Float[Array, "n h2 w2 c"]:
    # Across first: the first of equals is then the one in the upper row, and there the left one.
    for axis in (2, 1):
        pads = [(0, 0)] * x.ndim
        pads[axis] = padding[axis - 1]
        x = jnp.pad(x, pads, constant_values=-jnp.inf)
        span = (x.shape[axis] - window) // stride * stride + 1
        best, *others = (lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(window))
        for other in others:
            best = jnp.where((other > best) | jnp.isnan(other), other, best)
        x = best
    return x


class _Geometry(NamedTuple):
    """Of a convolution, each down and across; `length` is the extent of the dilated kernel."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    length: tuple[int, ...]
    result: tuple[int, ...]


def conv_general_dilated(
    x: Maps,
    kernel: Kernel,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int] = (1, 1),
    **options: Any,
) -> Float[Array, "n h2 w2 d"]:
    """The same as lax.conv_general_dilated up to rounding, and faster on CPUs.

    For channels-last maps and square kernels, as `flax.linen.Conv(conv_general_dilated=…)` calls
    it. A batch is computed in pieces on one device alone: a loop over a sharded batch would gather
    it.

    Args:
      x: feature maps.
      kernel: one for each pair of channels in and out.
      strides: step of the kernel, down and across.
      padding: zeros above and below, left and right.
      rhs_dilation: step between the pixels under the kernel, down and across.
      **options: other options of lax.conv_general_dilated.
    """
    plain: Callable[..., Array] = partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        rhs_dilation=rhs_dilation,
        **options,
    )
    length = tuple((len(kernel) - 1) * step + 1 for step in rhs_dilation)
    sides = zip(x.shape[1:3], padding, length, strides, strict=True)
    result = tuple((side + sum(pads) - far) // step + 1 for side, pads, far, step in sides)
    geometry = _Geometry(tuple(strides), tuple(padding), tuple(rhs_dilation), length, result)
    product = _fastest_product(x, kernel, geometry)
    if product is None:
        return plain(x, kernel)
    product = partial(product, geometry=geometry, precision=options.get("precision"))
    return lax.platform_dependent(x, kernel, cpu=product, default=plain)


def _fastest_product(x: Maps, kernel: Kernel, of: _Geometry) -> Callable[..., Array] | None:
    """None is XLA's own convolution. Times: forward and backward of 32 maps, float32, 2 cores."""
    size, _, *channels = kernel.shape
    # 1x1: 0.2 to 0.4 of XLA's time. If a map is smaller than the kernel, XLA exchanges the two, and
    # has no fast code for the result: 0.01 of its time on 2x2x512.
    if size == 1 or math.prod(of.result) < size * size:
        return _patches_product
    whole = jax.device_count() > 1 or not isinstance(x.shape[0], int) or x.shape[0] == 1
    if whole or min(channels) < LEAST_CHANNELS or x.dtype != jnp.float32:
        return None
    is_minimal = (size, of.strides, of.dilation) == (3, (1, 1), (1, 1))
    if is_minimal and min(of.result) >= LEAST_WINOGRAD_SIDE:
        return _winograd_product  # 0.5 of XLA's time on 56x56x64, 0.8 on 28x28x128 and 14x14x256
    return partial(_patches_product, in_pieces=True)  # 0.7 to 0.9 with stride 2; 0.8 on 7x7x512


def _patches_product(
    x: Maps, kernel: Kernel, geometry: _Geometry, precision: Any, in_pieces: bool = False
) -> Float[Array, "n h2 w2 d"]:
    """The pixels under the kernel side by side (im2col), times the kernel as a matrix."""
    (down, across), *_, length, result = geometry
    matrix = kernel.reshape(-1, kernel.shape[-1])
    # XLA is faster at x^T g the narrower g is beside x, unless it may exchange the two.
    transposed = len(matrix) > matrix.shape[1]
    if transposed:
        matrix = lax.optimization_barrier(matrix.T)

    def convolve_piece(x: Maps) -> Float[Array, "n h2 w2 d"]:
        x = jnp.pad(x, [(0, 0), *geometry.padding, (0, 0)])
        rows, columns = (
            (side - 1) * step + 1 for side, step in zip(result, geometry.strides, strict=True)
        )
        shifted = [
            x[:, i : i + rows : down, j : j + columns : across]
            for i in range(0, length[0], geometry.dilation[0])
            for j in range(0, length[1], geometry.dilation[1])
        ]
        patches = jnp.concatenate(shifted, axis=-1)
        # All places in one axis: over several, the kernel's gradient takes up to 4 times as long.
        patches = patches.reshape(-1, patches.shape[-1])
        axis = 1 if transposed else 0
        product = lax.dot_general(patches, matrix, (((1,), (axis,)), ((), ())), precision)
        return product.reshape(len(x), *result, -1)

    values = math.prod(result) * sum(matrix.shape) if in_pieces else 0
    return _by_pieces(convolve_piece, x, values)


def _winograd_product(
    x: Maps, kernel: Kernel, geometry: _Geometry, precision: Any
) -> Float[Array, "n h2 w2 d"]:
    """Minimal filtering, F(2x2, 3x3): 16 products make 4 results, where convolving takes 36.

    Reference: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section
    4.1.
    """
    rows, columns = (-(-side // 2) for side in geometry.result)  # of tiles
    g, (*_, channels, features) = WINOGRAD_KERNEL, kernel.shape
    kernels = jnp.einsum("ik,jl,klcd->ijcd", g, g, kernel, precision="highest")

    def convolve_piece(x: Maps) -> Float[Array, "n h2 w2 d"]:
        n = len(x)
        # Rows and columns are added so that tiles of 4x4, each 2 from the next, cover the map.
        pads = [
            (before, 2 * tiles + 2 - side - before)
            for side, tiles, (before, _) in zip(
                x.shape[1:3], (rows, columns), geometry.padding, strict=True
            )
        ]
        x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
        x = x.reshape(n, rows + 1, 2, columns + 1, 2, channels)
        across = _tiles_in(*(x[:, i : i + rows, j] for i in (0, 1) for j in (0, 1)))
        products = []
        for line, row in zip(across, kernels, strict=True):
            tiles = _tiles_in(*(line[:, :, i : i + columns, j] for i in (0, 1) for j in (0, 1)))
            dots = [
                jnp.dot(tile.reshape(-1, channels), matrix, precision=precision)
                for tile, matrix in zip(tiles, row, strict=True)
            ]
            products.append(_tiles_out(*dots))
        columns_out = [_tiles_out(*column) for column in zip(*products, strict=True)]
        results = jnp.stack([jnp.stack(column) for column in columns_out])  # [across, down, …]
        results = results.reshape(2, 2, n, rows, columns, features)
        results = results.transpose(2, 3, 1, 4, 0, 5).reshape(n, 2 * rows, 2 * columns, features)
        return results[:, : geometry.result[0], : geometry.result[1]]

    return _by_pieces(convolve_piece, x, 16 * rows * columns * (channels + features))


def _tiles_in(first: Array, second: Array, third: Array, fourth: Array) -> tuple[Array, ...]:
    return first - third, second + third, third - second, second - fourth


def _tiles_out(first: Array, second: Array, third: Array, fourth: Array) -> tuple[Array, ...]:
    return first + second + third, second - third - fourth


def _by_pieces(
    function: Callable[[Maps], Array], x: Maps, values: int
) -> Float[Array, "n h2 w2 d"]:
    """Applies `function` to one piece of the batch after another; gradients recompute it.

    Args:
      function: of feature maps.
      x: the batch.
      values: that `function` handles for one image; 0 keeps the batch whole.
    """
    count = len(x)
    pieces = -(-count * values // VALUES_AT_ONCE) if values else 1
    if pieces <= 1:
        return function(x)
    pieces = next(p for p in range(min(pieces, count), count + 1) if count % p == 0)
    result = lax.map(jax.checkpoint(function), x.reshape(pieces, -1, *x.shape[1:]))
    return result.reshape(count, *result.shape[2:])

"""PyTorch's pooling, flattening and initial values, against loops in NumPy."""

import cnn_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bvit.models import layers


def _map(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _first(x):
    return np.moveaxis(x, -1, 1)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("window, stride, padding", [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 1, 1)])
@pytest.mark.parametrize("size", [(3, 4), (7, 8), (9, 14)])
def test_max_pool_keeps_the_windows_that_pytorch_keeps(size, window, stride, padding, ceil_mode):
    x = _map(2, *size, 3)
    pooled = layers.max_pool(x, window, stride=stride, padding=padding, ceil_mode=ceil_mode)
    wanted = cnn_oracle.max_pool(_first(x), window, stride, padding, ceil_mode)
    np.testing.assert_array_equal(_first(pooled), wanted)


def test_ceil_mode_leaves_out_a_window_that_starts_in_the_padding():
    # torch.nn.MaxPool2d(2, 2, padding=1, ceil_mode=True) on 3 pixels: windows at -1 and 1 only.
    x = jnp.arange(3.0).reshape(1, 1, 3, 1).repeat(3, axis=1)
    pooled = layers.max_pool(x, 2, stride=2, padding=1, ceil_mode=True)
    np.testing.assert_array_equal(pooled[0, 0, :, 0], [0, 2])


@pytest.mark.parametrize("window, stride, padding", [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 1, 1)])
def test_the_gradient_of_max_pool_goes_to_the_first_of_equals(window, stride, padding):
    x = np.maximum(_map(2, 7, 8, 3).round(), 0)  # full of ties
    pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    padded = np.pad(x, pads, constant_values=-np.inf)
    pooled, pull = jax.vjp(lambda x: layers.max_pool(x, window, stride=stride, padding=padding), x)
    given = _map(*pooled.shape)
    wanted = np.zeros_like(padded)
    for n, i, j, c in np.ndindex(pooled.shape):
        rows, columns = (slice(k * stride, k * stride + window) for k in (i, j))
        row, column = np.divmod(padded[n, rows, columns, c].argmax(), window)
        wanted[n, i * stride + row, j * stride + column, c] += given[n, i, j, c]
    wanted = wanted[:, padding : padding + 7, padding : padding + 8]
    np.testing.assert_allclose(pull(given)[0], wanted, rtol=1e-5, atol=1e-6)


def test_max_pool_passes_nan_on():
    x = _map(1, 4, 4, 1)
    x[0, 1, 2] = np.nan
    pooled = np.asarray(layers.max_pool(x, 2, stride=2))[0, :, :, 0]
    np.testing.assert_array_equal(np.isnan(pooled), [[False, True], [False, False]])


def test_max_pool_refuses_maps_smaller_than_a_window():
    with pytest.raises(ValueError, match="images are too small.*3x3.*side 2"):
        layers.max_pool(_map(1, 8, 2, 1), 3, stride=2)


@pytest.mark.parametrize("size", [(1, 2), (7, 7), (5, 9), (14, 16)])
@pytest.mark.parametrize("out", [1, 4, 7])
def test_adaptive_avg_pool_averages_pytorchs_windows(size, out):
    x = _map(2, *size, 3)
    wanted = cnn_oracle.adaptive_avg_pool(_first(x), out)
    np.testing.assert_allclose(_first(layers.adaptive_avg_pool(x, out)), wanted, atol=1e-6)


def test_adaptive_avg_pool_keeps_a_constant():
    pooled = layers.adaptive_avg_pool(jnp.full((1, 10, 13, 1), 0.3), 7)
    np.testing.assert_allclose(pooled, 0.3, rtol=1e-6)


def test_flatten_is_channels_first():
    x = _map(2, 3, 4, 5)
    np.testing.assert_array_equal(layers.flatten(x), _first(x).reshape(2, -1))


def test_linear_starts_as_pytorchs():
    layer = layers.linear(2000, fan_in=400, dtype=jnp.float32, name=None)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 400)))["params"]
    for name in ("kernel", "bias"):
        # Uniform in +-1/20: its standard deviation is that over the square root of three.
        assert np.abs(params[name]).max() <= 0.05
        np.testing.assert_allclose(np.std(params[name]), 0.05 / np.sqrt(3), rtol=0.05)


@pytest.mark.parametrize(
    "images, complaint",
    [
        (np.zeros((1, 8, 8, 3), np.uint8), "floating point"),
        (np.zeros((8, 8, 3), np.float32), "images\\[None\\]"),
        (np.zeros((1, 8, 8, 4), np.float32), "3 channels"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(images, complaint):
    with pytest.raises(ValueError, match=complaint):
        layers.check_images(images)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_is_flaxs(train, dtype):
    ours = layers.BatchNorm(train=train, epsilon=1e-3, dtype=dtype)
    flaxs = nn.BatchNorm(
        use_running_average=not train,
        momentum=layers.BATCH_NORM_MOMENTUM,
        epsilon=1e-3,
        dtype=dtype,
    )
    x = jnp.asarray(3 + 2 * _map(4, 5, 6, 7), dtype)
    channels = jnp.arange(7, dtype=jnp.float32)
    variables = {
        "params": {"scale": 1 + channels, "bias": 2 - channels},
        "batch_stats": {"mean": channels / 3, "var": 2 + channels},
    }
    jax.tree.map(
        np.testing.assert_array_equal,
        ours.init(jax.random.key(0), x),
        flaxs.init(jax.random.key(0), x),
    )

    def loss(layer, params, x):
        state = {**variables, "params": params}
        y, updated = layer.apply(state, x, mutable=["batch_stats"])
        assert y.dtype == dtype
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), updated

    def results(layer):
        return jax.value_and_grad(loss, argnums=(1, 2), has_aux=True)(layer, variables["params"], x)

    rtol = 1e-4 if dtype == jnp.float32 else 5e-2

    def agree(found, wanted):
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())

    jax.tree.map(agree, results(ours), results(flaxs))


def test_batch_norm_of_a_constant_channel_is_its_bias():
    # By rounding, the mean of squares less the squared mean comes out below zero for some of them.
    x = jnp.broadcast_to(jnp.linspace(100.1, 1000.3, 20), (4, 3, 3, 20))
    assert np.any(jnp.mean(x * x, (0, 1, 2)) < jnp.mean(x, (0, 1, 2)) ** 2)
    y = layers.BatchNorm(train=True).init_with_output(jax.random.key(0), x)[0]
    np.testing.assert_allclose(y, 0, atol=0.5)


def test_batch_norm_keeps_averages_that_are_not_to_change():
    layer, x = layers.BatchNorm(train=True), jnp.asarray(_map(4, 3, 3, 2))
    variables = layer.init(jax.random.key(0), x)
    y, updated = layer.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(layer.apply(variables, x), y)
    assert np.any(updated["batch_stats"]["mean"] != variables["batch_stats"]["mean"])

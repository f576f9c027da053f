"""What stands in for XLA's operations on CPUs, against these; accelerators get the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bvit import models
from bvit.models import backends, layers

# The smallest that is convolved in pieces.
WIDE = backends.LEAST_CHANNELS


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def _map(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def _value_and_gradients(conv, variables, x):
    def loss(variables, x):
        return jnp.sum(jnp.sin(conv.apply(variables, x)))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, x)


def _agrees(conv, x):
    plain = conv.clone(conv_general_dilated=None)
    variables = plain.init(jax.random.key(0), x)
    found, wanted = (_value_and_gradients(c, variables, x) for c in (conv, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4), found, wanted)


def _program(conv, x):
    variables = jax.eval_shape(conv.init, jax.random.key(0), x)
    return jax.jit(conv.apply).lower(variables, x).as_text()


def _conv(features, kernel, dtype=jnp.float32, **options):
    return layers.conv(features, kernel, dtype=dtype, name="conv", **options)


@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("kernel, size", [(3, (1, 1)), (3, (3, 2)), (3, (4, 3)), (1, (5, 4))])
def test_small_maps_and_kernels(kernel, size, stride, dilation):
    for channels, features in ((3, 5), (5, 2)):
        _agrees(_conv(features, kernel, stride=stride, dilation=dilation), _map(2, *size, channels))


@pytest.mark.parametrize("values", [1, 2**30])
@pytest.mark.parametrize(
    "kernel, size, options",
    [
        (3, (8, 8), {}),
        (3, (9, 12), {}),  # a row of tiles hangs over the edge
        (3, (10, 11), {"padding": 0}),
        (3, (8, 9), {"padding": ((2, 0), (0, 1))}),
        (3, (7, 8), {}),  # too small for Winograd's
        (3, (9, 8), {"stride": 2}),
        (3, (9, 10), {"dilation": 2}),
        (5, (6, 7), {}),
    ],
)
def test_a_batch_in_pieces(one_device, monkeypatch, kernel, size, options, values):
    monkeypatch.setattr(backends, "VALUES_AT_ONCE", values)
    options = dict(options)
    padding = options.pop("padding", None)
    conv = _conv(WIDE, kernel, **options)
    if padding is not None:
        conv = conv.clone(padding=padding)
    _agrees(conv, _map(6, *size, WIDE))


def test_pieces_divide_the_batch(one_device, monkeypatch):
    monkeypatch.setattr(backends, "VALUES_AT_ONCE", 10)
    sizes = []

    def double(x):
        sizes.append(len(x))
        return 2 * x

    for count, wanted in ((6, 2), (7, 1), (2, 2)):  # each image has 4 values: at most 2 at a time
        x = _map(count, 2, 2, 1)
        np.testing.assert_array_equal(backends._by_pieces(double, x, 4), 2 * x)
        assert sizes.pop() == wanted


def test_derivatives_of_every_kind(one_device, monkeypatch):
    monkeypatch.setattr(backends, "VALUES_AT_ONCE", 1)
    x = _map(2, 8, 8, WIDE)
    conv = _conv(WIDE, 3)
    plain = conv.clone(conv_general_dilated=None)
    variables = plain.init(jax.random.key(0), x)

    def forwards(conv):
        return jax.jvp(lambda x: conv.apply(variables, x), (x,), (jnp.cos(x),))[1]

    def twice(conv):  # forwards over backwards
        gradient = jax.grad(lambda v: jnp.sum(jnp.sin(conv.apply(v, x))))
        return jax.jvp(gradient, (variables,), (variables,))[1]

    for derivative in (forwards, twice):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
            jax.jit(derivative, static_argnums=0)(conv),
            jax.jit(derivative, static_argnums=0)(plain),
        )


def test_winograd_multiplies_less(one_device):
    x = jax.ShapeDtypeStruct((2, 16, 16, WIDE), jnp.float32)

    def operations(conv):
        variables = jax.eval_shape(conv.init, jax.random.key(0), x)
        return jax.jit(conv.apply).lower(variables, x).cost_analysis()["flops"]

    conv = _conv(WIDE, 3)
    assert operations(conv) < 0.6 * operations(conv.clone(conv_general_dilated=None))


@pytest.mark.parametrize(
    "what, shape, options",
    [
        ("few channels", (2, 16, 16, WIDE - 1), {}),
        ("one image, whose operations are counted", (1, 16, 16, WIDE), {}),
        ("bfloat16", (2, 16, 16, WIDE), {"dtype": jnp.bfloat16}),
    ],
)
def test_what_is_left_to_xla(one_device, what, shape, options):
    x = jnp.zeros(shape, options.get("dtype", jnp.float32))
    assert "stablehlo.convolution" in _program(_conv(WIDE, 3, **options), x), what


def test_a_batch_on_several_devices_stays_whole():
    x = jnp.zeros((2, 16, 16, WIDE))
    assert jax.device_count() > 1
    assert "stablehlo.convolution" in _program(_conv(WIDE, 3), x)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_cpus_get_formulations_of_their_own(one_device, platform):
    vit = models.create("vit_tiny_patch16_224", image_size=32, depth=1, dtype=jnp.bfloat16)
    cnn = models.create("resnet18", width=WIDE, depths=(1, 1))
    programs = []
    for model in (vit, cnn):
        x = jnp.zeros((2, 32, 32, 3))
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        traced = jax.jit(jax.grad(lambda *a, m=model: m.apply(*a).sum())).trace(variables, x)
        programs.append(traced.lower(lowering_platforms=(platform,)).as_text())
    tokens, maps = programs
    # 5 tokens of each of 2 images become 10 rows.
    flattened = "(tensor<2x5x192xbf16>) -> tensor<10x192xbf16>" in tokens
    assert flattened == (platform == "cpu")
    assert ("stablehlo.select_and_scatter" in maps) == (platform != "cpu")
    convolutions = 6  # the stem, two in each block, and a shortcut
    forward_and_backward = 3 * convolutions - 1  # no gradient of the images
    assert (maps.count("stablehlo.convolution") == forward_and_backward) == (platform != "cpu")


@pytest.mark.parametrize("window, stride, padding", [(3, 2, 1), (2, 2, 0), (3, 1, 1)])
def test_the_maximum_by_line_is_that_by_window(window, stride, padding):
    x = jnp.round(_map(2, 9, 8, 3))  # with equals
    sides = {"window": window, "stride": stride, "padding": [(padding, padding)] * 2}
    results = []
    for pool in (backends._max_by_line, backends._max_by_window):
        pooled, pull = jax.vjp(lambda x, pool=pool: pool(x, **sides), x)
        results.append((pooled, *pull(_map(*pooled.shape))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *results)
    assert np.isnan(backends._max_by_window(x.at[0, 0, 0].set(jnp.nan), **sides)[0, 0, 0]).all()


def test_a_network_is_the_same_in_pieces(monkeypatch):
    monkeypatch.setattr(backends, "VALUES_AT_ONCE", 2**17)
    model = models.create("resnet18", width=WIDE, depths=(1, 1), stem="small", num_classes=3)
    x = _map(4, 16, 16, 3)
    variables = jax.jit(model.init)(jax.random.key(0), x)

    def loss(params, x):
        state = {**variables, "params": params}
        logits, _ = model.apply(state, x, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(logits))

    def program():
        return jax.jit(jax.value_and_grad(lambda *a: loss(*a))).lower(variables["params"], x)

    whole = program()
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    pieces = program()
    assert "stablehlo.while" in pieces.as_text() and "stablehlo.while" not in whole.as_text()
    found, wanted = (p.compile()(variables["params"], x) for p in (pieces, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, wanted)

"""ONNX programs in onnxruntime, beside the JAX functions that they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import linen as nn
from jax import lax

from bvit import models, onnx_program
from bvit.classify import classify
from bvit.models import backends, layers
from bvit.tokens import POLICIES

SIZE = 32
VIT = models.VisionTransformer(
    image_size=SIZE, patch_size=4, width=16, depth=3, num_heads=2, num_classes=5
)


def images(count=5):
    pixels = np.random.default_rng(0).random((count, SIZE, SIZE, 3), np.float32)
    pixels[:, : SIZE // 2] *= np.linspace(0, 1, SIZE, dtype=np.float32)[:, None]
    return pixels


def check(function, parameters, pixels, tolerance=1e-5):
    """Compares all images and one of them."""

    def mapped(parameters, pixels):
        return jax.vmap(lambda one: function(parameters, one))(pixels)

    program = onnx_program.convert(mapped, parameters, pixels.shape[1:])
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    want = np.asarray(jax.jit(mapped)(parameters, pixels), np.float32)
    assert np.ptp(want, axis=0).max() > 0  # the images differ
    for count in (len(pixels), 1):
        (got,) = session.run(None, {"pixels": pixels[:count]})
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want[:count], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "name",
    # Those that take longest to trace are slow; `cluster` has most of their primitives.
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("tome", "pitome", "atc", "evit")))
        for name in sorted(set(POLICIES) - {"random"})
    ],
)
def test_a_vit_under_each_policy(name):
    policy = name if name == "keep" else f"{name}:0.6"
    shapes = jax.eval_shape(VIT.init, jax.random.key(0), images(1))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(x.dtype), shapes)
    leaves, tree = jax.tree.flatten(variables)
    parameters = {f"p{i:02}": leaf for i, leaf in enumerate(leaves)}

    def function(parameters, one):
        variables = jax.tree.unflatten(tree, list(parameters.values()))
        return classify(VIT, variables, one[None], policy)[0]

    check(function, parameters, images())


def convolved(parameters, one):
    options = {"window_strides": (2, 1), "padding": [(1, 0), (2, 2)], "rhs_dilation": (1, 2)}
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        one[None], parameters["kernel"], **options, dimension_numbers=numbers
    )[0].sum((0, 1))


def batch_normed(parameters, one):
    x = backends.conv_general_dilated(
        one[None],
        parameters["kernel"],
        (1, 1),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return nn.relu(x * parameters["scale"] + 0.1).mean((1, 2))[0]


def pooled(parameters, one):
    x = layers.max_pool(one[None], 3, stride=2, ceil_mode=True)
    x = nn.max_pool(x, (3, 2), (2, 1), [(1, 1), (0, 0)])
    return x[0].sum(1).ravel()


def sorted_and_gathered(parameters, one):
    row = one[0, :, 0]
    order = jnp.argsort(row, descending=True)
    table = jnp.take_along_axis(one[:, :, 1], order[None], axis=1)
    picked = one[order[:3], order[3:6]]
    return jnp.concatenate([jnp.sort(row), table.ravel(), picked.ravel(), jnp.cumsum(row[::-1])])


def decided(parameters, one):
    high = one > 0.5
    chosen = jnp.where(one[..., :1] > 0.2, high, ~high)
    counts = chosen.sum((0, 1)) % 7
    first = jnp.argmax(high, axis=0) - jnp.argmax(one, axis=0)
    flags = jnp.stack([high.any(), jnp.isfinite(jnp.log(one)).any()])
    values = [chosen, counts, first, flags, jnp.clip(one, 0.3, 0.4), nn.elu(one - 0.5), one**3]
    return jnp.concatenate([value.ravel().astype(jnp.float32) for value in values])


def repeated(parameters, one):
    """Each image takes its own number of steps."""

    def step(state):
        total, steps, _ = state
        return total + one[:2].sum(), steps + 1, total < 900

    total, steps, _ = lax.while_loop(lambda state: state[-1], step, (one.sum(), 0, True))
    return jnp.stack([total, steps.astype(jnp.float32)])


@pytest.mark.parametrize(
    "function", [convolved, batch_normed, pooled, sorted_and_gathered, decided, repeated]
)
def test_what_models_are_made_of(function):
    rng = np.random.default_rng(2)
    parameters = {
        "kernel": rng.normal(size=(3, 3, 3, 4)).astype(np.float32),
        "scale": rng.normal(size=4).astype(np.float32),
    }
    check(function, parameters, images(), tolerance=1e-4)


def test_a_primitive_that_is_not_known_is_an_error():
    with pytest.raises(NotImplementedError, match="'atan2'"):
        onnx_program.convert(lambda _, pixels: jnp.arctan2(pixels, 2.0), {}, (2,))

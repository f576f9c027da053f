"""VGG against NumPy loops, at reduced widths, and what its training promises."""

import cnn_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from bvit import models
from bvit.models import pretrained

OVERRIDES = {"width": 4, "hidden": 16, "num_classes": 5}
DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
CONVOLUTION_BIASES = [f"features_{i}/bias" for i in (0, 4, 8, 11, 15, 18, 22, 25)]  # of vgg11_bn


def _images(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def _oracle(images, name):
    net = cnn_oracle.Network()
    logits = cnn_oracle.vgg(
        net,
        np.moveaxis(images, -1, 1).astype(np.float64),
        depths=DEPTHS[name.removesuffix("_bn")],
        batch_norm=name.endswith("_bn"),
        width=4,
        hidden=16,
        classes=5,
    )
    return net, logits


@pytest.mark.parametrize("name", ["vgg11", "vgg13_bn", "vgg16", "vgg19_bn"])
def test_names_in_logits_out(name):
    images = _images(2, 45, 97, 3)  # a last map of 1 x 3, which is pooled up to 7 x 7
    net, logits = _oracle(images, name)
    variables = pretrained.convert(name, net.state, **OVERRIDES)
    model = models.create(name, **OVERRIDES)
    got = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-5)


def test_timm_names_its_linear_layers_as_convolutions():
    images = _images(1, 32, 32, 3)
    state = _oracle(images, "vgg11")[0].state
    renamed = {
        "classifier.0": "pre_logits.fc1",
        "classifier.3": "pre_logits.fc2",
        "classifier.6": "head.fc",
    }
    timms = {}
    for name, array in state.items():
        module, _, leaf = name.rpartition(".")
        side = 7 if module == "classifier.0" else 1
        if leaf == "weight" and module in ("classifier.0", "classifier.3"):
            array = array.reshape(len(array), -1, side, side)
        timms[f"{renamed.get(module, module)}.{leaf}"] = array
    ours, from_timm = (pretrained.convert("vgg11", s, **OVERRIDES) for s in (state, timms))
    jax.tree.map(np.testing.assert_array_equal, ours, from_timm)


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn"])
def test_every_parameter_gets_a_gradient_in_training(name):
    model = models.create(name, **OVERRIDES | {"width": 8, "hidden": 64})
    images = jnp.asarray(_images(4, 64, 64, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    @jax.jit
    @jax.grad
    def gradient(params):
        logits, _ = model.apply(
            variables | {"params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        return -jax.nn.log_softmax(logits)[:, 0].sum()

    for path, leaf in traverse_util.flatten_dict(gradient(variables["params"]), sep="/").items():
        # Batch norm takes the mean away, and with it all that a bias before it could do.
        cancelled = name == "vgg11_bn" and path in CONVOLUTION_BIASES
        assert np.isfinite(leaf).all() and (cancelled or np.abs(leaf).max() > 1e-6), path


def test_dropout_is_drawn_in_training_alone():
    model = models.create("vgg11", **OVERRIDES)
    images = jnp.asarray(_images(1, 32, 32, 3))
    net, _ = _oracle(np.asarray(images), "vgg11")
    variables = pretrained.convert("vgg11", net.state, **OVERRIDES)

    def logits(seed, train):
        return model.apply(variables, images, train=train, rngs={"dropout": jax.random.key(seed)})

    assert np.any(logits(0, True) != logits(1, True))
    np.testing.assert_array_equal(logits(0, False), logits(1, False))


def test_images_under_32_pixels_are_refused():
    model = models.create("vgg11", **OVERRIDES)
    with pytest.raises(ValueError, match="images are too small for this network"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 31, 64, 3)))

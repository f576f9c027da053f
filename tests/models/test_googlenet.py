"""GoogLeNet against NumPy loops, and what its auxiliary heads promise."""

import functools

import cnn_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from bvit import models
from bvit.models import pretrained

WIDTH, CLASSES = 8, 5
OVERRIDES = {"width": WIDTH, "num_classes": CLASSES}
AUX_WEIGHT = 0.3


def _images(n):
    return np.random.default_rng(1).normal(size=(n, 64, 86, 3)).astype(np.float32)


@functools.cache
def _oracle(train):
    """State dict, images, logits and auxiliary logits; sizes that make every pooling hang over."""
    net, images = cnn_oracle.Network(train=train), _images(2)
    logits, aux = cnn_oracle.googlenet(
        net, np.moveaxis(images, -1, 1).astype(np.float64), width=WIDTH, classes=CLASSES
    )
    return net.state, images, logits, aux


def test_names_in_logits_out():
    state, images, logits, _ = _oracle(train=False)
    variables = pretrained.convert("googlenet", state, **OVERRIDES)
    model = models.create("googlenet", **OVERRIDES)
    got, sown = jax.jit(functools.partial(model.apply, mutable=["aux_logits"]))(variables, images)
    np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-5)
    assert not sown  # the auxiliary heads are idle outside training


@functools.cache
def _training():
    """Logits, updated collections and gradients of one training step (one compilation for all)."""
    state, images, _, _ = _oracle(train=True)
    variables = pretrained.convert("googlenet", state, **OVERRIDES)
    model = models.create("googlenet", dropout=0.0, aux_dropout=0.0, **OVERRIDES)

    def loss(params):
        logits, updated = model.apply(
            variables | {"params": params},
            images,
            train=True,
            mutable=["batch_stats", "aux_logits"],
        )
        aux = sum(AUX_WEIGHT * leaf for leaf in jax.tree.leaves(updated["aux_logits"]))
        return -jax.nn.log_softmax(logits + aux)[:, 0].sum(), (logits, updated)

    gradient, (logits, updated) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    return logits, updated, gradient


def test_training_sows_the_auxiliary_logits():
    *_, logits, aux = _oracle(train=True)
    got, updated, _ = _training()
    np.testing.assert_allclose(got, logits, rtol=1e-3, atol=1e-4)
    sown = jax.tree.leaves(updated["aux_logits"])
    assert len(sown) == 2
    for ours, theirs in zip(sown, aux, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_every_parameter_gets_a_gradient_in_training():
    *_, gradient = _training()
    for path, leaf in traverse_util.flatten_dict(gradient, sep="/").items():
        assert np.isfinite(leaf).all() and np.any(leaf), path


@pytest.mark.parametrize("train", [False, True])
def test_initialising_makes_the_heads_in_either_mode_and_sows_nothing(train):
    model = models.create("googlenet", **OVERRIDES)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.eval_shape(lambda: model.init(keys, jnp.zeros((1, 64, 64, 3)), train=train))
    assert set(variables) == {"params", "batch_stats"}
    assert {"aux1", "aux2"} <= set(variables["params"])


def test_without_auxiliary_heads_it_has_the_published_parameters():
    model = models.create("googlenet", aux_heads=False)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 6_624_904


def test_transform_input_takes_imagenets_normalisation_to_minus_one_to_one():
    state, images, logits, _ = _oracle(train=False)
    pixels = images * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]
    variables = pretrained.convert("googlenet", state, **OVERRIDES)
    without = models.create("googlenet", transform_input=False, **OVERRIDES)
    got = jax.jit(without.apply)(variables, (2 * pixels - 1).astype(np.float32))
    np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-5)


def test_a_width_that_splits_channels_is_refused():
    with pytest.raises(ValueError, match="width must be a multiple of 8: got 12"):
        models.create("googlenet", width=12)

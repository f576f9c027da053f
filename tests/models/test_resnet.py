"""ResNet against NumPy loops, and what its options and its training promise."""

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


def _images(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def _oracle(images, *, train=False, **options):
    net = cnn_oracle.Network(train=train)
    images = np.moveaxis(images, -1, 1).astype(np.float64)
    return net, cnn_oracle.resnet(net, images, width=WIDTH, classes=CLASSES, **options)


@pytest.mark.parametrize(
    "name, overrides, wanted",
    [
        ("resnet18", {}, {"bottleneck": False, "depths": (2, 2, 2, 2)}),
        ("resnet18", {"stem": "small"}, {"bottleneck": False, "depths": (2, 2, 2, 2)}),
        ("resnet50", {"depths": (1, 2)}, {"bottleneck": True, "depths": (1, 2)}),
        ("resnet50_dilated", {"depths": (2, 1)}, {"bottleneck": True, "depths": (2, 1)}),
    ],
)
def test_names_in_logits_out(name, overrides, wanted):
    images = _images(2, 31, 46, 3)
    net, logits = _oracle(
        images,
        small=overrides.get("stem") == "small",
        dilation=2 if name == "resnet50_dilated" else 1,
        **wanted,
    )
    variables = pretrained.convert(name, net.state, **OVERRIDES, **overrides)
    model = models.create(name, **OVERRIDES, **overrides)
    np.testing.assert_allclose(model.apply(variables, images, train=False), logits, rtol=1e-4)


def test_training_normalises_by_the_batch_and_moves_the_averages_a_tenth():
    images = _images(3, 32, 32, 3)
    net, logits = _oracle(images, train=True, bottleneck=False, depths=(1,))
    overrides = OVERRIDES | {"depths": (1,)}
    variables = pretrained.convert("resnet18", net.state, **overrides)
    model = models.create("resnet18", **overrides)
    got, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-5)

    stem = cnn_oracle.Network()
    stem.state["conv1.weight"] = net.state["conv1.weight"]
    x = stem.conv(np.moveaxis(images, -1, 1), "conv1", WIDTH, 7, stride=2, padding=3)
    before, after = variables["batch_stats"]["bn1"], updated["batch_stats"]["bn1"]
    for key, of_batch in (("mean", x.mean((0, 2, 3))), ("var", x.var((0, 2, 3)))):
        wanted = 0.9 * before[key] + 0.1 * of_batch
        np.testing.assert_allclose(after[key], wanted, rtol=1e-4, atol=1e-5)


def test_evaluation_treats_each_image_by_itself():
    model = models.create("resnet18", stem="small", depths=(1, 1), **OVERRIDES)
    images = jnp.asarray(_images(3, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    together = model.apply(variables, images)
    apart = jnp.concatenate([model.apply(variables, image[None]) for image in images])
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-6)
    jitted = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(together, jitted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_every_parameter_gets_a_gradient_in_training(name):
    model = models.create(name, stem="small", depths=(1, 1), **OVERRIDES)
    images = jnp.asarray(_images(4, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    @jax.jit
    @jax.grad
    def gradient(params):
        logits, _ = model.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return -jax.nn.log_softmax(logits)[:, 0].sum()

    for path, leaf in traverse_util.flatten_dict(gradient(variables["params"]), sep="/").items():
        assert np.isfinite(leaf).all() and np.any(leaf), path


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_zero_init_residual_makes_every_block_start_as_its_shortcut(name):
    options = OVERRIDES | {"stem": "small", "depths": (2,), "zero_init_residual": True}
    model = models.create(name, **options)
    images = jnp.asarray(_images(1, 8, 8, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    # The second block's shortcut is the identity, so without it the logits are the same.
    shallow = models.create(name, **options | {"depths": (1,)})
    without = {
        kind: {k: v for k, v in tree.items() if k != "layer1_1"} for kind, tree in variables.items()
    }
    np.testing.assert_array_equal(
        model.apply(variables, images), shallow.apply(without, images, train=False)
    )


def test_dilation_keeps_every_shape_so_that_weights_load():
    images = jax.ShapeDtypeStruct((1, 97, 113, 3), jnp.float32)
    plain, dilated = (
        jax.eval_shape(models.create(name).init, jax.random.key(0), images)
        for name in ("resnet50", "resnet50_dilated")
    )
    assert jax.tree.structure(plain) == jax.tree.structure(dilated)
    assert jax.tree.leaves(plain) == jax.tree.leaves(dilated)


def test_early_dilation_widens_what_a_feature_sees():
    def rows_seen(early_dilation):
        model = models.create(
            "resnet18", early_dilation=early_dilation, depths=(), num_classes=1, width=2
        )
        images = jnp.ones((1, 64, 64, 3))
        variables = jax.jit(model.init)(jax.random.key(0), images)

        def centre(images):
            _, state = model.apply(variables, images, capture_intermediates=True)
            return state["intermediates"]["conv1"]["__call__"][0][0, 16, 16].sum()

        return np.any(jax.grad(centre)(images)[0] != 0, axis=(1, 2)).nonzero()[0]

    assert list(rows_seen(1)) == list(range(29, 36))
    assert list(rows_seen(2)) == list(range(26, 39, 2))


def test_a_stem_or_a_dilation_that_is_none_is_refused():
    with pytest.raises(ValueError, match="stem must be one of imagenet, small: got 'tiny'"):
        models.create("resnet18", stem="tiny")
    with pytest.raises(ValueError, match="early_dilation must be 1"):
        models.create("resnet18", early_dilation=0)

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bvit.image.conditions import indexed_keys
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD
from bvit.models.inputs import Policy
from bvit.models.resnet import BasicBlock, ResNet
from bvit.models.vit import VisionTransformer
from bvit.training import sharding
from bvit.training.optimizer import make_optimizer
from bvit.training.state import create_state
from bvit.training.step import AUX_WEIGHT, Recipe, make_inputs, make_train_step

CLASSES, SIZE, BATCH = 5, 16, 16
PLAIN = Recipe(
    condition="sharp", policy=Policy("keep", patch_size=8), mean=IMAGENET_MEAN, std=IMAGENET_STD
)
# All that draws random numbers at once.
FULL = dataclasses.replace(PLAIN, condition="sharp+blur", label_smoothing=0.1, mixup=0.2)
VIT = VisionTransformer(
    num_classes=CLASSES,
    image_size=SIZE,
    patch_size=8,
    width=32,
    depth=2,
    num_heads=2,
    dropout=0.1,
    stochastic_depth=0.1,
)
QUIET_VIT = VIT.clone(dropout=0.0, stochastic_depth=0.0)
RESNET = ResNet(block=BasicBlock, depths=(1, 1), num_classes=CLASSES, width=8, stem="small")


def make_batch(seed):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
    }


@functools.cache
def compiled(model, mesh, recipe, rate, ema):
    """The jitted functions that make a state, and that train it for a step."""
    optimizer = make_optimizer("sgd", optax.constant_schedule(rate), weight_decay=1e-4)
    create = functools.partial(
        create_state, model=model, optimizer=optimizer, image_size=SIZE, ema=ema
    )
    key = jax.random.key(0)
    places = sharding.state_shardings(jax.eval_shape(create, key), mesh)
    step = make_train_step(model, optimizer, recipe, num_classes=CLASSES, mesh=mesh)
    return (
        functools.partial(jax.jit(create, out_shardings=places), key),
        jax.jit(step, out_shardings=(places, sharding.replicated(mesh))),
    )


def run(model, mesh, *, steps=1, recipe=PLAIN, rate=0.1, ema=False, batches=None):
    """Trains for a few steps; returns the last state and the metrics of each step."""
    create, step = compiled(model, mesh, recipe, rate, ema)
    state, metrics = create(), []
    for i in range(steps):
        batch = make_batch(i) if batches is None else batches[i]
        state, values = step(state, jax.device_put(batch, sharding.batch_sharding(mesh)))
        metrics.append(jax.tree.map(float, values))
    return state, metrics


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


@pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("layout", [(8, 1), (2, 4)], ids=["data8", "data2_fsdp4"])
def test_losses_are_the_same_on_one_device_and_on_eight(model, layout):
    data, fsdp = layout
    _, one = run(model, one_device(), steps=3, recipe=FULL)
    _, eight = run(model, sharding.make_mesh(data=data, fsdp=fsdp), steps=3, recipe=FULL)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(
            [m[name] for m in eight], [m[name] for m in one], rtol=2e-5, err_msg=name
        )


def test_training_learns_a_batch_by_heart():
    _, metrics = run(QUIET_VIT, one_device(), steps=40, batches=[make_batch(0)] * 40)
    assert metrics[0]["loss"] > 1.2
    assert metrics[-1]["loss"] < 0.2
    assert metrics[-1]["accuracy"] == 1


def test_every_step_draws_anew_and_every_run_the_same():
    _, first = run(VIT, one_device(), steps=3, recipe=FULL)
    _, again = run(VIT, one_device(), steps=3, recipe=FULL)
    assert first == again
    # With dropout as the one thing that is random, and a rate of zero, only the draw differs.
    _, metrics = run(VIT, one_device(), steps=2, rate=0.0, batches=[make_batch(0)] * 2)
    assert metrics[0]["loss"] != metrics[1]["loss"]


def test_batch_statistics_are_updated():
    state, _ = run(RESNET, one_device())
    mean = state.model_state["batch_stats"]["bn1"]["mean"]
    assert np.abs(mean).max() > 1e-4


def test_an_update_that_is_not_finite_is_told():
    # The first gradient is finite, but with an infinite rate the update that it makes is not.
    _, metrics = run(QUIET_VIT, one_device(), steps=2, rate=float("inf"))
    assert [m["finite"] for m in metrics] == [1.0, 0.0]


def test_a_skipped_update_leaves_parameters_and_statistics_as_they_were():
    recipe = dataclasses.replace(PLAIN, skip_nonfinite=True, mean=(float("nan"),) * 3)
    before, _ = run(RESNET, one_device(), steps=0, recipe=recipe)
    after, metrics = run(RESNET, one_device(), recipe=recipe)
    assert metrics[0]["finite"] == 0.0
    assert int(after.step) == 1
    before, after = before.replace(step=0), after.replace(step=0)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_the_average_of_the_parameters_follows_them():
    recipe = dataclasses.replace(PLAIN, ema_decay=0.75)
    start, _ = run(QUIET_VIT, one_device(), steps=0, recipe=recipe, ema=True)
    state, _ = run(QUIET_VIT, one_device(), recipe=recipe, ema=True)
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, start.params, state.params)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        state.ema_params,
        expected,
    )
    assert state.eval_variables["params"] is state.ema_params


class TwoHeads(nn.Module):
    """A classifier with an auxiliary head, as GoogLeNet's are."""

    @nn.compact
    def __call__(self, images, train=False):
        x = images.mean((1, 2))
        aux = nn.Dense(CLASSES, name="aux")(x)
        if train:
            self.sow("aux_logits", "logits", aux)
        return nn.Dense(CLASSES, name="head")(x)


def test_auxiliary_heads_add_to_the_loss_with_their_weight():
    model, batch = TwoHeads(), make_batch(0)
    state, _ = run(model, one_device(), steps=0)
    image = (batch["image"] / np.float32(255) - IMAGENET_MEAN) / np.asarray(IMAGENET_STD)
    x = image.mean((1, 2))

    def loss(head):
        logits = x @ np.asarray(state.params[head]["kernel"])
        chosen = jax.nn.log_softmax(logits)[np.arange(BATCH), batch["label"]]
        return -float(chosen.mean())

    _, metrics = run(model, one_device(), batches=[batch])
    np.testing.assert_allclose(
        metrics[0]["loss"], loss("head") + AUX_WEIGHT * loss("aux"), rtol=1e-5
    )


def test_mixup_mixes_pictures_and_targets_of_a_pair_by_the_same_share():
    recipe = dataclasses.replace(FULL, condition="sharp", mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = make_batch(0)
    target = jax.nn.one_hot(jnp.arange(BATCH) % CLASSES, CLASSES)
    keys = indexed_keys(jax.random.key(1), jnp.arange(BATCH))
    image, _, mixed = make_inputs(keys, batch["image"], target, recipe)
    pixels = batch["image"] / np.float32(255)
    for i in range(BATCH):
        share = float(mixed[i, i % CLASSES])
        partner = i ^ 1
        np.testing.assert_allclose(mixed[i].sum(), 1, rtol=1e-6)
        np.testing.assert_allclose(
            image[i], share * pixels[i] + (1 - share) * pixels[partner], atol=1e-5
        )
    assert np.ptp(mixed.max(axis=1)) > 0.01

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import (
    BATCH,
    CLASSES,
    FULL,
    PLAIN,
    QUIET_VIT,
    RESNET,
    SIZE,
    VIT,
    make_batch,
    one_device,
    run,
)

from bvit import sharding
from bvit.classify import prepare
from bvit.image.conditions import indexed_keys
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD, to_float
from bvit.tokens import parse
from bvit.training.step import AUX_WEIGHT, cut_pairs, make_gradients, make_inputs


def test_training_learns_a_batch_by_heart():
    _, metrics = run(QUIET_VIT, one_device(), steps=40, batches=[make_batch(0)] * 40)
    assert metrics[0]["loss"] > 1.2
    assert metrics[-1]["loss"] < 0.2
    assert metrics[-1]["accuracy"] == 1


def test_every_step_draws_anew_and_every_run_the_same():
    _, first = run(VIT, one_device(), steps=3, hyper=FULL)
    _, again = run(VIT, one_device(), steps=3, hyper=FULL)
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
    hyper = dataclasses.replace(PLAIN, skip_nonfinite=True, mean=(float("nan"),) * 3)
    before, _ = run(RESNET, one_device(), steps=0, hyper=hyper)
    after, metrics = run(RESNET, one_device(), hyper=hyper)
    assert metrics[0]["finite"] == 0.0
    assert int(after.step) == 1
    before, after = before.replace(step=0), after.replace(step=0)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_the_average_of_the_parameters_follows_them():
    hyper = dataclasses.replace(PLAIN, ema_decay=0.75)
    start, _ = run(QUIET_VIT, one_device(), steps=0, hyper=hyper, ema=True)
    state, _ = run(QUIET_VIT, one_device(), hyper=hyper, ema=True)
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


def test_cutmix_exchanges_a_box_and_mixes_the_targets_by_its_area():
    n, classes = 64, 5
    image = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None, None], (n, 12, 16, 3))
    target = np.eye(classes, dtype=np.float32)[np.arange(n) % classes]
    keys = jax.random.split(jax.random.key(0), n)
    mixed, targets = map(np.asarray, cut_pairs(keys, image, target, 1.0))
    partner = np.arange(n) ^ 1
    inside = mixed[..., 0] == partner[:, None, None]
    assert (inside | (mixed[..., 0] == np.arange(n)[:, None, None])).all()
    np.testing.assert_array_equal(inside, inside[partner])
    for box in inside:  # a rectangle
        rows, columns = box.any(1), box.any(0)
        np.testing.assert_array_equal(box, rows[:, None] & columns)
        assert all(np.diff(np.flatnonzero(side)).max(initial=1) == 1 for side in (rows, columns))
    share = inside.mean((1, 2))[:, None]
    assert share.std() > 0.1 and 0.1 < share.mean() < 0.5
    np.testing.assert_allclose(targets, (1 - share) * target + share * target[partner], atol=1e-6)
    few, _ = cut_pairs(keys[4:8], image[4:8], target[4:8], 1.0)
    np.testing.assert_array_equal(few, mixed[4:8])


def test_the_box_of_cutmix_takes_the_drawn_share_of_the_area():
    n = 4096
    image = np.zeros((n, 16, 16, 1), np.float32)
    target = np.eye(2, dtype=np.float32)[np.arange(n) % 2]
    _, targets = cut_pairs(jax.random.split(jax.random.key(0), n), image, target, 1.0)
    # A side of s = √u around a uniform centre lies in the image with s − s²/4 in the mean, and u is
    # uniform: so much of the area is the mean of (s − s²/4)².
    assert abs(targets[::2, 1].mean() - (1 / 2 - 1 / 5 + 1 / 48)) < 0.02


def test_with_mixup_and_cutmix_each_pair_draws_one():
    hyper = dataclasses.replace(PLAIN, mixup=1.0, cutmix=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    n = 64
    image = np.zeros((n, 16, 16, 3), np.uint8)
    image[1::2] = 255
    target = np.eye(2, dtype=np.float32)[np.arange(n) % 2]
    keys = jax.random.split(jax.random.key(0), n)
    inputs, targets, _ = make_inputs(QUIET_VIT, keys, image, target, hyper)
    pixels = np.asarray(inputs.image)
    boxes = np.isin(pixels, [0.0, 1.0]).all((1, 2, 3))  # a mixed image is grey
    np.testing.assert_array_equal(boxes[::2], boxes[1::2])
    assert 0.25 < boxes.mean() < 0.75
    np.testing.assert_allclose(np.asarray(targets)[:, 1], pixels.mean((1, 2, 3)), atol=1e-5)


def test_mixup_mixes_pictures_and_targets_of_a_pair_by_the_same_share():
    hyper = dataclasses.replace(PLAIN, mixup=0.2, mean=(0.0,) * 3, std=(1.0,) * 3)
    batch = make_batch(0)
    target = jax.nn.one_hot(jnp.arange(BATCH) % CLASSES, CLASSES)
    keys = indexed_keys(jax.random.key(1), jnp.arange(BATCH))
    inputs, mixed, _ = make_inputs(VIT, keys, batch["image"], target, hyper)
    pixels = batch["image"] / np.float32(255)
    for i in range(BATCH):
        share = float(mixed[i, i % CLASSES])
        partner = i ^ 1
        np.testing.assert_allclose(mixed[i].sum(), 1, rtol=1e-6)
        np.testing.assert_allclose(
            inputs.image[i], share * pixels[i] + (1 - share) * pixels[partner], atol=1e-5
        )
    assert np.ptp(mixed.max(axis=1)) > 0.01


def test_parts_of_a_batch_add_up_to_the_whole():
    hyper = dataclasses.replace(FULL, accumulate=4)
    _, whole = run(QUIET_VIT, one_device(), steps=3, hyper=FULL)
    _, parts = run(QUIET_VIT, one_device(), steps=3, hyper=hyper)
    for name in ("loss", "grad_norm", "accuracy"):
        np.testing.assert_allclose(
            [m[name] for m in parts], [m[name] for m in whole], rtol=1e-5, err_msg=name
        )


def test_batch_norm_sees_the_parts_one_after_another():
    # Running statistics move towards those of each part in turn, not once towards the batch's.
    batch = make_batch(0)
    state, _ = run(RESNET, one_device(), hyper=dataclasses.replace(PLAIN, accumulate=2))
    halves = [{name: rows[i::2].repeat(2, axis=0) for name, rows in batch.items()} for i in (0, 1)]
    first, _ = run(RESNET, one_device(), batches=halves[:1])
    start, _ = run(RESNET, one_device(), steps=0)

    def mean(state):
        return np.asarray(state.model_state["batch_stats"]["bn1"]["mean"])

    # The second half by itself moves the mean from its start by what it adds to the first's.
    second, _ = run(RESNET, one_device(), batches=halves[1:])
    keep = 0.9  # momentum of the running statistics
    expected = keep * mean(first) + (mean(second) - keep * mean(start))
    np.testing.assert_allclose(mean(state), expected, rtol=1e-4, atol=1e-6)


SHALLOW_VIT = QUIET_VIT.clone(depth=1)
DISTILLED = dataclasses.replace(
    PLAIN,
    policy=parse("drop:2"),
    label_smoothing=0.1,
    distill=0.7,
    distill_temperature=2.0,
)


def softmax(logits):
    exponential = np.exp(logits - logits.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def test_distillation_pulls_towards_the_logits_of_all_tokens():
    batch = make_batch(0)
    params = jax.jit(SHALLOW_VIT.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    params = jax.tree.map(lambda x: 3 * x, params)  # logits that differ
    target = jax.nn.one_hot(batch["label"], CLASSES)
    keys = indexed_keys(jax.random.key(1), jnp.arange(BATCH))
    inputs = make_inputs(SHALLOW_VIT, keys, batch["image"], target, DISTILLED)
    reduced, _, whole = inputs
    np.testing.assert_array_equal(reduced.image, whole.image)
    gradients = jax.jit(make_gradients(SHALLOW_VIT, DISTILLED, one_device()))
    _, sums = gradients(params, {}, inputs, jax.random.key(2))

    def apply(params, **options):
        return SHALLOW_VIT.apply({"params": params}, whole.image, **options)

    teacher = np.asarray(jax.jit(apply)(params))
    student = jax.jit(functools.partial(apply, policy=DISTILLED.policy, plan=reduced.plan))
    logits, pull = jax.vjp(student, params)
    logits = np.asarray(logits)
    assert np.abs(logits - teacher).max() > 0.01
    # By the logits: of the cross-entropy, and of T² · KL, by hand.
    by_logits = softmax(logits) - target + 0.7 * 2 * (softmax(logits / 2) - softmax(teacher / 2))
    (wanted,) = pull(jnp.asarray(by_logits / BATCH, jnp.float32))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), sums.grads, wanted
    )
    divergence = np.sum(
        softmax(teacher / 2) * np.log(softmax(teacher / 2) / softmax(logits / 2)), axis=-1
    )
    entropy = -np.sum(target * np.log(softmax(logits)), axis=-1)
    np.testing.assert_allclose(sums.loss, (entropy + 0.7 * 4 * divergence).mean(), rtol=1e-4)


def test_a_sandwich_trains_the_full_pass_on_the_labels_too():
    """Its gradient is that of distilling plus that of a step with every token."""
    batch = make_batch(0)
    params = jax.jit(SHALLOW_VIT.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    params = jax.tree.map(lambda x: 3 * x, params)
    target = jax.nn.one_hot(batch["label"], CLASSES)
    keys = indexed_keys(jax.random.key(1), jnp.arange(BATCH))

    def sums(hyper):
        inputs = make_inputs(SHALLOW_VIT, keys, batch["image"], target, hyper)
        gradients = jax.jit(make_gradients(SHALLOW_VIT, hyper, one_device()))
        return gradients(params, {}, inputs, jax.random.key(2))[1]

    for distill in (0.0, 0.7):
        part = dataclasses.replace(DISTILLED, distill=distill)
        both = sums(dataclasses.replace(part, sandwich=True))
        part, full = sums(part), sums(dataclasses.replace(part, policy=PLAIN.policy))
        np.testing.assert_allclose(both.loss, part.loss + full.loss, rtol=1e-5)
        jax.tree.map(
            lambda got, a, b: np.testing.assert_allclose(got, a + b, rtol=1e-3, atol=1e-6),
            both.grads,
            part.grads,
            full.grads,
        )


@pytest.mark.parametrize("sandwich", [pytest.param(False, marks=pytest.mark.slow), True])
def test_distillation_is_the_same_in_parts_and_on_shards_with_mixup(sandwich):
    hyper = dataclasses.replace(DISTILLED, policy=parse("zero:2"), mixup=0.2, sandwich=sandwich)
    _, (one,) = run(SHALLOW_VIT, one_device(), hyper=hyper)
    mesh = sharding.make_mesh(data=2, fsdp=4)
    _, (parts,) = run(SHALLOW_VIT, mesh, hyper=dataclasses.replace(hyper, accumulate=2))
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(parts[name], one[name], rtol=1e-4, err_msg=name)


def test_a_step_with_every_token_has_nothing_to_distil():
    hyper = dataclasses.replace(DISTILLED, policy=PLAIN.policy)
    off = dataclasses.replace(hyper, distill=0.0)
    batch = make_batch(0)
    keys = indexed_keys(jax.random.key(1), jnp.arange(BATCH))
    for one in (hyper, off, dataclasses.replace(DISTILLED, distill=0.0)):
        *_, whole = make_inputs(SHALLOW_VIT, keys, batch["image"], jnp.zeros((BATCH, CLASSES)), one)
        assert whole is None


def test_a_policy_inside_the_encoder_is_trained_for():
    """The loss is that of the model that merges, in a step that every token shares."""
    hyper = dataclasses.replace(DISTILLED, policy=parse("tome:2"), distill=0.0)
    batch = make_batch(0)
    params = jax.jit(QUIET_VIT.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    target = jax.nn.one_hot(batch["label"], CLASSES)
    keys = indexed_keys(jax.random.key(1), jnp.arange(BATCH))

    def loss(hyper):
        inputs = make_inputs(QUIET_VIT, keys, batch["image"], target, hyper)
        gradients = jax.jit(make_gradients(QUIET_VIT, hyper, one_device()))
        return gradients(params, {}, inputs, jax.random.key(2))[1].loss

    image = prepare(
        QUIET_VIT, to_float(batch["image"]), hyper.policy, mean=IMAGENET_MEAN, std=IMAGENET_STD
    ).image
    apply = jax.jit(QUIET_VIT.apply, static_argnames="policy")
    logits = apply({"params": params}, image, policy=hyper.policy)
    merged = optax.softmax_cross_entropy(logits, target).mean()
    every = dataclasses.replace(hyper, policy=PLAIN.policy)
    np.testing.assert_allclose(loss(hyper), merged, rtol=1e-5)
    assert abs(loss(every) - merged) > 1e-6
    both = loss(dataclasses.replace(hyper, sandwich=True))
    np.testing.assert_allclose(both, merged + loss(every), rtol=1e-5)

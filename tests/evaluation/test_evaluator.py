import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.experimental import multihost_utils

from bvit import sharding
from bvit.evaluation import evaluator as module
from bvit.evaluation.evaluator import answer, evaluate, label_rank, make_classify, make_corrupt
from bvit.evaluation.rows import format_table, make_rows
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD
from bvit.models.vit import VisionTransformer
from bvit.tokens import parse

CLASSES, SIZE, IMAGES = 7, 16, 37
MODEL = VisionTransformer(
    num_classes=CLASSES, image_size=SIZE, patch_size=8, width=32, depth=1, num_heads=2
)


def test_rank_is_the_place_in_a_stable_sort():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 4, (200, CLASSES)).astype(np.float32)  # many ties
    label = rng.integers(0, CLASSES, 200)
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = [list(row).index(one) for row, one in zip(order, label, strict=True)]
    np.testing.assert_array_equal(label_rank(logits, label), expected)
    np.testing.assert_array_equal(label_rank(logits, label) == 0, logits.argmax(1) == label)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_never_right(value):
    logits = np.zeros((1, CLASSES), np.float32)
    logits[0, 2] = value
    assert int(label_rank(jnp.asarray(logits), jnp.array([2]))[0]) == CLASSES


def make_pictures():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3), np.uint8)
    return image, rng.integers(0, CLASSES, IMAGES).astype(np.int32)


def batches(batch_size):
    image, label = make_pictures()
    for start in range(0, IMAGES, batch_size):
        rows = np.arange(start, start + batch_size)
        chosen = np.minimum(rows, IMAGES - 1)
        yield {
            "image": image[chosen],
            "label": label[chosen],
            "index": chosen.astype(np.int32),
            "mask": rows < IMAGES,
        }


class Watched:
    """Batches that log when they are closed."""

    def __init__(self, log):
        self._batches, self._log = batches(16), log

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._batches)

    def close(self):
        self._log.append("close")


def make_variables():
    variables = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    # At initialisation all logits are nearly equal; larger ones make the images differ.
    return jax.tree.map(lambda x: 3 * x, variables)


def outcomes(batch_size, mesh):
    variables = make_variables()
    options = {"seed": 3, "mesh": mesh}
    return evaluate(
        variables,
        batches(batch_size),
        {name: make_corrupt(name, **options) for name in ("sharp", "blur", "region")},
        {
            policy: make_classify(MODEL, policy, mean=IMAGENET_MEAN, std=IMAGENET_STD, **options)
            for policy in (parse("keep"), parse("zero", score="laplacian", threshold=3e4))
        },
        mesh=mesh,
    )


@pytest.fixture(scope="module")
def reference():
    return outcomes(64, sharding.make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize(("batch_size", "devices"), [(7, 1), (64, 8), (16, 8)])
def test_results_do_not_depend_on_batches_or_devices(reference, batch_size, devices):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    for got, want in zip(outcomes(batch_size, mesh), reference, strict=True):
        assert (got.condition, got.policy) == (want.condition, want.policy)
        np.testing.assert_array_equal(got.index, np.arange(IMAGES))
        for name in ("rank", "label", "predicted"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
        np.testing.assert_allclose(got.confidence, want.confidence, rtol=1e-5)
        np.testing.assert_allclose(got.loss, want.loss, rtol=1e-5)


def test_answers_follow_from_the_logits():
    logits = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    label = np.arange(9, dtype=np.int32) % 4
    rank, true, predicted, confidence, loss = np.asarray(answer(logits, label)).T
    probability = scipy.special.softmax(logits.astype(np.float64), axis=1)
    np.testing.assert_array_equal(true, label)
    np.testing.assert_array_equal(predicted, probability.argmax(1))
    np.testing.assert_array_equal(rank == 0, predicted == label)
    np.testing.assert_allclose(confidence, probability.max(1), rtol=1e-5)
    np.testing.assert_allclose(loss, -np.log(probability[np.arange(9), label]), rtol=1e-5)


def test_the_next_answers_are_under_way_before_the_last_are_read(monkeypatch):
    log = []

    def logged(name, function):
        return lambda *args, **options: (log.append(name), function(*args, **options))[1]

    monkeypatch.setattr(module, "get_rows", logged("read", module.get_rows))
    gather = multihost_utils.process_allgather
    monkeypatch.setattr(multihost_utils, "process_allgather", logged("gather", gather))
    mesh = sharding.make_mesh()
    evaluator = module.Evaluator(
        MODEL,
        lambda: Watched(log),
        conditions=["sharp"],
        policies=[parse("keep")],
        num_images=IMAGES,
        image_size=SIZE,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        seed=3,
        mesh=mesh,
    )
    classify = evaluator._classifiers[parse("keep")]
    evaluator._classifiers[parse("keep")] = logged("start", classify)
    (found,) = evaluator(make_variables())
    np.testing.assert_array_equal(found.index, np.arange(IMAGES))
    # Three batches; then the indices of their rows, and one message for everything.
    rows = ["start", "start", "read", "start", "read", "read"]
    assert log == [*rows, "read", "read", "read", "gather", "close"]
    log.clear()
    evaluator.measure(make_variables())
    assert log[0] == "close"


def test_conditions_and_policies_change_the_answers(reference):
    ranks = {(o.condition, o.policy.name): tuple(o.rank) for o in reference}
    assert len(set(ranks.values())) == len(ranks)


def test_policies_see_identical_pixels():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    image, _ = make_pictures()
    index = jnp.arange(IMAGES)
    corrupt = make_corrupt("region", seed=3, mesh=mesh)
    pixels = corrupt(image, index)
    np.testing.assert_array_equal(corrupt(image[5:6], index[5:6])[0], pixels[5])
    other = make_corrupt("region", seed=4, mesh=mesh)(image, index)
    assert np.abs(other - pixels).max() > 0.1


def test_rows_count_every_picture_and_pair_with_keep(reference):
    costs = {o.policy: {"tokens": 4, "gflops": 0.1, "images_per_s": None} for o in reference}
    rows = make_rows(reference, costs)
    for row, outcome in zip(rows, reference, strict=True):
        assert row["n"] == IMAGES
        assert row["top1"] == np.mean(outcome.rank == 0)
        assert row["top5"] == np.mean(outcome.rank < 5)
        assert row["ci95"][0] <= row["top1"] <= row["ci95"][1]
        if row["policy"] == "keep":
            assert row["difference"] is None
            keep = row["top1"]
        else:
            np.testing.assert_allclose(row["difference"], row["top1"] - keep)
    lines = format_table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({len(line) for line in lines}) == 1
    assert f"{100 * rows[0]['top1']:.2f}" in lines[2]

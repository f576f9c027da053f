import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bvit import models, sharding
from bvit.evaluation import cost
from bvit.evaluation.adaptive import AdaptiveClassifier
from bvit.evaluation.evaluate import evaluate, label_rank, make_classify, make_corrupt
from bvit.evaluation.rows import format_table, make_rows
from bvit.image.focus_measures import relative_detail
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD, to_float
from bvit.models.vit import VisionTransformer
from bvit.tokens.inputs import Policy

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


def make_variables():
    variables = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    # At initialisation all logits are nearly equal; larger ones tell the pictures apart.
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
            for policy in (Policy("keep", 8), Policy("zero", 8, score="laplacian", threshold=3e4))
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
        np.testing.assert_array_equal(got.rank, want.rank)


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


def test_budgets_that_follow_from_the_picture_and_places_that_stay_empty(caplog):
    """On eight devices; every picture as under the one budget that it gets, and in its place."""
    mesh = sharding.make_mesh(devices=jax.devices()[:8])
    options = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "mesh": mesh}
    detail = np.asarray(relative_detail(to_float(make_pictures()[0]), patch_size=8))
    threshold = float(np.median(detail))
    needed = np.maximum((detail >= threshold).sum((1, 2)), 1)
    auto = Policy("drop", 8, threshold=threshold, budgets=(2, 4))
    partly = Policy("drop", 8, threshold=threshold, budget=2)
    classifiers = {
        policy: make_classify(MODEL, policy, seed=3, **options) for policy in (*auto.static, partly)
    }
    classifiers[auto] = AdaptiveClassifier(MODEL, auto, batch_size=8, **options)
    corruptions = {"sharp": make_corrupt("sharp", seed=3, mesh=mesh)}
    arguments = (make_variables(), list(batches(8)), corruptions, classifiers)
    two, four, masked, chosen = found = evaluate(*arguments, mesh=mesh)
    np.testing.assert_array_equal(chosen.index, np.arange(IMAGES))
    np.testing.assert_array_equal(chosen.budget, np.where(needed <= 2, 2, 4))
    assert set(chosen.budget) == {2, 4}
    np.testing.assert_array_equal(chosen.rank, np.where(needed <= 2, two.rank, four.rank))
    np.testing.assert_array_equal(masked.used, np.minimum(needed, 2))
    assert chosen.images_per_s > 0

    static = (two.policy, four.policy, partly)
    costs = {one: {"tokens": one.budget, "gflops": 0.1 * one.budget} for one in static}
    rows = make_rows(found, costs)
    assert rows[3]["tokens"] == rows[3]["tokens_used"] == np.mean(chosen.budget)
    np.testing.assert_allclose(rows[3]["gflops"], 0.1 * np.mean(chosen.budget))
    assert rows[2]["tokens"] == 2 and rows[2]["tokens_used"] == np.mean(masked.used)
    assert f"{np.mean(masked.used):.3g} of 2 " in format_table(
        [row | {"images_per_s": None} for row in rows]
    )

    caplog.clear()
    with jax.log_compiles():
        again = evaluate(*arguments, mesh=mesh)
    assert not [r for r in caplog.records if "compilation" in r.getMessage()]
    np.testing.assert_array_equal(again[3].rank, chosen.rank)


def test_tokens_are_the_mean_over_blocks_where_the_first_see_every_patch():
    late = models.create(
        "vit_tiny_patch16_224", num_classes=10, image_size=64, depth=4, plan_after=1
    )
    assert cost.num_tokens(late, Policy("drop", patch_size=16, budget=8), 64) == (16 + 3 * 8) / 4
    assert cost.num_tokens(late, Policy("keep", patch_size=16), 64) == 16
    cluster = Policy("cluster", patch_size=16, budget=8)
    assert cost.num_tokens(late, cluster, 64) == (16 + 3 * 8) / 4
    assert cost.num_tokens(late.clone(plan_after=0), cluster, 64) == (16 + 3 * 8) / 4
    assert cost.num_tokens(late.clone(plan_after=2), cluster, 64) == (2 * 16 + 2 * 8) / 4

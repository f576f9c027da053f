"""Plans chosen from pixels: exact budgets, the right patches, randomness, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bvit.image.focus import patch_laplacian_variance
from bvit.image.focus_measures import FOCUS_MEASURES
from bvit.tokens import ViTShape, parse

PATCH = 4
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.random((3, 32, 48, 3)), jnp.float32)
VIT = ViTShape((8, 12), PATCH, depth=3, width=16)
COUNT = 8 * 12


def draw(text, images=IMAGES, key=None, vit=VIT):
    return parse(text).plan(images, vit, key=jax.random.key(0) if key is None else key)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("drop:7", 7),
        ("drop:96", COUNT),
        ("pool:7", 7),
        ("random:7", 7),
        ("merge:24", 24),
        ("merge:39", 39),
        ("merge:96", COUNT),
        ("drop:7@2", 7),
    ],
)
def test_a_budget_gives_exactly_its_number_of_tokens(text, number):
    plan = draw(text)
    taken = plan.take(IMAGES)
    assert taken.shape == (3, number, PATCH * PATCH * 3)
    for row in np.asarray(plan.tile):
        assert len(set(row)) == len(row)
    where = np.asarray(plan.where)
    assert where.shape == (3, COUNT)
    counts = np.stack([np.bincount(row[row >= 0], minlength=number) for row in where])
    if plan.size is None:
        np.testing.assert_array_equal(counts, 1)
    else:
        np.testing.assert_array_equal(counts, plan.size)
        np.testing.assert_array_equal(counts.sum(1), COUNT)


def test_a_token_shows_the_mean_of_its_patches():
    """Of a ramp over the grid; a block's tile is the mean of four patches."""
    ramp = jnp.broadcast_to(jnp.arange(96.0).reshape(8, 12, 1), (3, 8, 12, 1))
    for text in ("drop:20", "pool:20", "random:20", "merge:39"):
        plan = draw(text)
        taken, where = np.asarray(plan.take(ramp))[..., 0], np.asarray(plan.where)
        for values, row in zip(taken, where, strict=True):
            means = [np.arange(96.0)[row == i].mean() for i in range(len(values))]
            np.testing.assert_allclose(values, means, rtol=1e-6)


@pytest.mark.parametrize("text", ["drop:7", "pool:7", "random:7", "merge:39"])
def test_eager_equals_jit_equals_vmap_and_any_batch_axes(text):
    keys = jax.random.split(jax.random.key(1), 3)

    def one(image, key):
        return draw(text, image, key)

    eager = one(IMAGES, keys)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(one)(IMAGES, keys), eager)
    jax.tree.map(np.testing.assert_array_equal, jax.vmap(one)(IMAGES, keys), eager)
    nested = one(IMAGES[:, None], keys[:, None])
    np.testing.assert_array_equal(nested.tile[:, 0], eager.tile)


def test_drop_takes_the_best_patches():
    plan = draw("drop:20")
    measure = np.asarray(patch_laplacian_variance(IMAGES, patch_size=PATCH)).reshape(3, -1)
    np.testing.assert_array_equal(plan.tile, np.sort(np.argsort(-measure)[:, :20]))


def test_equal_measures_go_in_raster_order():
    flat = jnp.full((1, 32, 48, 3), 0.5)
    np.testing.assert_array_equal(draw("drop:5", flat).tile[0], np.arange(5))
    np.testing.assert_array_equal(draw("merge:30", flat).tile[0, :4], [0, 1, 2, 3])
    np.testing.assert_array_equal(draw("merge:30", flat).tile[0, 4:8], [12, 13, 14, 15])


@pytest.mark.parametrize("score", FOCUS_MEASURES)
def test_merge_keeps_the_blocks_with_the_highest_mean(score):
    plan = parse("merge:39", score=score).plan(IMAGES, VIT)
    measure = np.asarray(FOCUS_MEASURES[score](IMAGES, patch_size=PATCH)).reshape(3, 4, 2, 6, 2)
    best = np.argsort(-measure.mean((2, 4)).reshape(3, -1), kind="stable")[:, :5]
    merged = np.setdiff1d(np.arange(24), best[0])
    np.testing.assert_array_equal(np.sort(plan.tile[0, 20:]), COUNT + merged)


def test_random_draws_for_each_image_by_its_key_alone():
    plan = draw("random:20")
    assert len({tuple(row) for row in np.asarray(plan.tile)}) == 3
    np.testing.assert_array_equal(draw("random:20", IMAGES[:2]).tile, plan.tile[:2])
    np.testing.assert_array_equal(draw("random:20", IMAGES * 0).tile, plan.tile)
    key = jax.random.fold_in(jax.random.key(0), 2)
    np.testing.assert_array_equal(draw("random:20", IMAGES[2], key).tile, plan.tile[2])


def test_random_is_uniform():
    counts = np.bincount(draw("random:24", jnp.zeros((400, 32, 48, 3))).tile.ravel(), minlength=96)
    assert abs(counts - 100).max() < 5 * np.sqrt(100 * 0.75)


def test_random_needs_a_key():
    with pytest.raises(ValueError, match="pass key="):
        parse("random:20").plan(IMAGES, VIT)


def test_bfloat16_images():
    plan = draw("merge:39", IMAGES.astype(jnp.bfloat16))
    assert plan.take(IMAGES.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("text", ["drop:20", "pool:20", "merge:39"])
def test_gradients_reach_the_pixels_and_are_finite(text):
    gradient = jax.jit(jax.grad(lambda x: (draw(text, x).take(x) ** 2).sum()))(IMAGES)
    assert np.isfinite(gradient).all()
    seen = np.abs(gradient).reshape(3, 8, PATCH, 12, PATCH, 3).max((2, 4, 5)) > 0
    np.testing.assert_array_equal(seen.reshape(3, -1), np.asarray(draw(text).where) >= 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drop:97", "must be 1 to 96; use 96"),
        ("pool:1", "must be 2 to 96; use 2"),
        ("merge:26", "must be 24 to 96 in steps of 3; use 24 or 27"),
        ("drop:9@4", "acts in block 4, and this ViT has blocks 1 to 3: use @3"),
    ],
)
def test_what_a_vit_can_not_do_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text).counts(VIT)


def test_an_odd_grid_gets_the_sizes_that_fit():
    with pytest.raises(ValueError, match=r"got 7×7 patches .*image to 192×192"):
        parse("merge:0.5").counts(ViTShape((7, 7), 32))

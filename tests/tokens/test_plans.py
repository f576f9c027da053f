"""Policies and plans: exact budgets, the right patches, padding, randomness, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bvit.image.focus_measures import relative_detail
from bvit.tokens import plans as tokens

PATCH = 4
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.random((3, 32, 48, 3)), jnp.float32)  # a grid of 8×12
COUNT = 8 * 12


def scores_of(image, patch_size):
    """A stand-in for a score: the mean of red."""
    rows, columns = image.shape[-3] // patch_size, image.shape[-2] // patch_size
    red = image[..., 0].reshape(*image.shape[:-3], rows, patch_size, columns, patch_size)
    return red.mean((-3, -1))


def draw(policy, budget=None, images=IMAGES, **options):
    key = jax.random.key(0) if policy == "random" else None
    options = {"key": key} | options
    return tokens.plan(images, patch_size=PATCH, policy=policy, budget=budget, **options)


BUDGETS = [
    ("keep", None, COUNT),
    ("drop", 7, 7),
    ("drop", COUNT, COUNT),
    ("pool", 7, 8),
    ("random", 7, 7),
    ("merge", 24, 24),
    ("merge", 24 + 3 * 5, 39),
    ("merge", COUNT, COUNT),
    ("merge2", 6, 6),
    ("merge2", 6 + 3 * 9, 33),
]


@pytest.mark.parametrize(("policy", "budget", "number"), BUDGETS)
def test_a_budget_gives_exactly_its_number_of_tokens(policy, budget, number):
    plan = draw(policy, budget)
    assert plan.num_tokens == number
    assert plan.mask is None
    tiles = tokens.gather(tokens.tiles(IMAGES, plan), plan)
    assert tiles.shape == (3, number, PATCH * PATCH * 3)
    assert plan.size.shape == plan.level.shape == (3, number)
    for row in np.asarray(plan.tile):
        assert len(set(row)) == len(row)
    levels = np.asarray(plan.level_map)
    assert levels.shape == (3, 8, 12)
    if policy in ("drop", "random"):
        np.testing.assert_array_equal((levels == 0).sum((1, 2)), number)
        np.testing.assert_array_equal(plan.size, 1)
    else:
        np.testing.assert_array_equal(plan.size.sum(-1), COUNT)
    for level in range(plan.levels + 1):
        shown = (np.asarray(plan.level) == level).sum(-1) - (policy == "pool")
        np.testing.assert_array_equal((levels == level).sum((1, 2)), shown * 4**level)


@pytest.mark.parametrize(
    ("policy", "budget"), [("drop", 7), ("pool", 7), ("random", 7), ("merge", 39), ("merge2", 33)]
)
def test_eager_equals_jit_equals_vmap(policy, budget):
    keys = jax.random.split(jax.random.key(1), 3)

    def one(image, key):
        return tokens.plan(image, patch_size=PATCH, policy=policy, budget=budget, key=key)

    eager = one(IMAGES, keys)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(one)(IMAGES, keys), eager)
    jax.tree.map(np.testing.assert_array_equal, jax.vmap(one)(IMAGES, keys), eager)


def test_without_batch_axes_and_with_two():
    flat = draw("merge", 39)
    single = draw("merge", 39, IMAGES[1])
    np.testing.assert_array_equal(single.tile, flat.tile[1])
    nested = draw("merge", 39, IMAGES[:, None])
    np.testing.assert_array_equal(nested.tile[:, 0], flat.tile)


def test_drop_takes_the_best_patches():
    plan = draw("drop", 20)
    scores = np.asarray(relative_detail(IMAGES, patch_size=PATCH)).reshape(3, -1)
    np.testing.assert_array_equal(plan.tile, np.sort(np.argsort(-scores)[:, :20]))


def test_equal_scores_go_in_raster_order():
    flat = jnp.full((32, 48, 3), 0.5)
    np.testing.assert_array_equal(draw("drop", 5, flat).tile, np.arange(5))
    merged = draw("merge", 24 + 3 * 2, flat)
    assert (np.asarray(merged.level_map) == 0).sum() == 8
    assert (np.asarray(merged.level_map)[:2, :4] == 0).all()


def test_merge_keeps_the_blocks_with_the_best_mean_or_best_patch():
    scores = np.asarray(scores_of(IMAGES, PATCH)).reshape(3, 4, 2, 6, 2)
    for name, block in (("mean", scores.mean((2, 4))), ("max", scores.max((2, 4)))):
        plan = draw("merge", 24 + 3 * 5, score=scores_of, block_score=name)
        best = np.argsort(-block.reshape(3, -1))[:, :5]
        expected = np.ones((3, 24))
        np.put_along_axis(expected, best, 0, axis=1)
        levels = expected.reshape(3, 4, 6).repeat(2, 1).repeat(2, 2)
        np.testing.assert_array_equal(plan.level_map, levels)


def test_merge2_spends_on_detail_and_saves_on_flat():
    """Detail in one corner only: that is fine, its surroundings by 2×2, all else by 4×4."""
    image = jnp.full((32, 32, 3), 0.5).at[:8, :8].set(IMAGES[0, :8, :8])
    plan = draw("merge2", 4 + 3 * 2, image, score="reblur")
    expected = np.full((8, 8), 2)
    expected[:4, :4] = 1
    expected[:2, :2] = 0
    np.testing.assert_array_equal(plan.level_map, expected)


def test_merge2_leaves_an_uneven_edge_at_the_first_level():
    plan = draw("merge2", 22, jnp.zeros((56, 56, 3)))
    expected = np.ones((14, 14))
    expected[:12, :12] = 2
    np.testing.assert_array_equal(plan.level_map, expected)


@pytest.mark.parametrize("policy", ["drop", "merge"])
def test_threshold_masks_what_the_budget_has_left(policy):
    scores = np.asarray(scores_of(IMAGES, PATCH))
    if policy == "merge":
        scores = scores.reshape(3, 4, 2, 6, 2).mean((2, 4))
    scores = scores.reshape(3, -1)
    threshold = float(np.sort(scores.ravel())[-10])
    reach = (scores >= threshold).sum(-1)
    assert len(set(reach)) > 1
    roomy = draw(policy, None, score=scores_of, threshold=threshold)
    assert roomy.num_tokens == COUNT
    wanted = np.maximum(reach, 1) if policy == "drop" else 24 + 3 * reach
    np.testing.assert_array_equal(roomy.mask.sum(-1), wanted)
    np.testing.assert_array_equal(roomy.size > 0, roomy.mask)
    budget = 2 if policy == "drop" else 24 + 3 * 2
    tight = draw(policy, budget, score=scores_of, threshold=threshold)
    assert tight.num_tokens == budget
    np.testing.assert_array_equal(tight.mask.sum(-1), np.minimum(wanted, budget))
    shown = np.asarray(tight.level_map) == 0
    best = np.asarray(draw(policy, budget, score=scores_of).level_map) == 0
    assert (best | ~shown).all()


def test_threshold_that_nothing_reaches_leaves_one_patch():
    plan = draw("drop", 5, threshold=1e9)
    np.testing.assert_array_equal(plan.mask.sum(-1), 1)
    best = np.asarray(relative_detail(IMAGES, patch_size=PATCH)).reshape(3, -1).argmax(-1)
    np.testing.assert_array_equal(plan.tile[plan.mask], best)


def test_threshold_may_be_traced():
    traced = jax.jit(lambda t: draw("drop", 20, threshold=t))(0.07)
    jax.tree.map(np.testing.assert_array_equal, traced, draw("drop", 20, threshold=0.07))


def test_pool_carries_the_mean_of_what_was_left_out():
    plan = draw("pool", 20)
    pixels = tokens.gather(tokens.tiles(IMAGES, plan), plan)
    tiles = np.asarray(IMAGES).reshape(3, 8, PATCH, 12, PATCH, 3).swapaxes(2, 3).reshape(3, 96, -1)
    for i, row in enumerate(np.asarray(plan.tile)):
        left_out = np.setdiff1d(np.arange(COUNT), row)
        np.testing.assert_allclose(pixels[i, -1], tiles[i, left_out].mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(pixels[i, :-1], tiles[i, row])
    np.testing.assert_array_equal(plan.size[:, -1], COUNT - 20)


def test_pool_of_nothing_is_padding():
    plan = draw("pool", COUNT)
    np.testing.assert_array_equal(plan.mask, [[True] * COUNT + [False]] * 3)
    assert np.isfinite(tokens.gather(tokens.tiles(IMAGES, plan), plan)).all()


def test_random_draws_for_each_image_by_its_key_alone():
    plan = draw("random", 20)
    assert len({tuple(row) for row in np.asarray(plan.tile)}) == 3
    np.testing.assert_array_equal(draw("random", 20, IMAGES[:2]).tile, plan.tile[:2])
    np.testing.assert_array_equal(draw("random", 20, IMAGES * 0).tile, plan.tile)
    key = jax.random.fold_in(jax.random.key(0), 2)
    np.testing.assert_array_equal(draw("random", 20, IMAGES[2], key=key).tile, plan.tile[2])


def test_random_is_uniform():
    counts = np.bincount(draw("random", 24, jnp.zeros((400, 32, 48, 3))).tile.ravel(), minlength=96)
    assert abs(counts - 100).max() < 5 * np.sqrt(100 * 0.75)


def test_bfloat16_images():
    plan = draw("merge", 39, IMAGES.astype(jnp.bfloat16))
    assert tokens.tiles(IMAGES.astype(jnp.bfloat16), plan).dtype == jnp.bfloat16


def test_positions_are_averaged_as_the_pixels_are():
    """A horizontal ramp of "embeddings": a tile's position is the centre of what it shows."""
    plan = draw("merge2", 33)
    ramp = jnp.broadcast_to(jnp.arange(12.0)[:, None], (1, 8, 12, 1))
    positions = tokens.gather(tokens.tiles(ramp, plan), plan)[..., 0]
    starts = [0, 96, 96 + 24]
    columns = [12, 6, 3]
    for tile, level, position in zip(
        np.ravel(plan.tile), np.ravel(plan.level), np.ravel(positions), strict=True
    ):
        left = (tile - starts[level]) % columns[level] * 2**level
        assert position == left + (2**level - 1) / 2


@pytest.mark.parametrize("policy", ["drop", "pool", "merge", "merge2"])
def test_gradients_reach_the_pixels_and_are_finite(policy):
    plan_of = {"drop": 20, "pool": 20, "merge": 39, "merge2": 33}

    def loss(images):
        plan = draw(policy, plan_of[policy], images)
        return (tokens.gather(tokens.tiles(images, plan), plan) ** 2).sum()

    gradient = jax.jit(jax.grad(loss))(IMAGES)
    assert np.isfinite(gradient).all()
    shown = np.asarray(draw(policy, plan_of[policy]).level_map) >= 0
    seen = np.abs(gradient).reshape(3, 8, PATCH, 12, PATCH, 3).max((2, 4, 5)) > 0
    np.testing.assert_array_equal(seen, shown | (policy == "pool"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "zero"}, "changes pixels .* needs no plan: use bvit.mask_patches"),
        ({"policy": "tome"}, "between the layers.*tome_r"),
        ({"policy": "cluster", "budget": 8}, "between the layers.*cluster_to"),
        ({"policy": "merg", "budget": 1}, "no policy is called 'merg'; did you mean merge"),
        ({"policy": "keep", "budget": 9}, "'keep' computes every token: got budget=9"),
        ({"policy": "drop"}, "'drop' needs a budget"),
        ({"policy": "drop", "budget": 0}, "can give 1 to 96 tokens: got budget=0; use 1"),
        ({"policy": "pool", "budget": 97}, "got budget=97; use 96"),
        ({"policy": "random", "budget": 9}, "needs a key"),
        ({"policy": "random", "threshold": 9.0, "key": jax.random.key(0)}, "in place of"),
        ({"policy": "merge", "budget": 26}, r"24 \+ 3·K tokens, up to 96: .*=26; use 24 or 27"),
        ({"policy": "merge2", "budget": 5}, r"6 \+ 3·K tokens, up to 96: got budget=5; use 6"),
        ({"policy": "drop", "budget": 9, "score": "laplace"}, "did you mean laplacian"),
        ({"policy": "merge", "budget": 24, "block_score": "sum"}, "choose from mean, max"),
        ({"policy": "drop", "budget": 9, "patch_size": 5}, "32×48, patch_size=5; use 4 or 8"),
        ({"policy": "merge", "budget": 9, "patch_size": 16}, "even and at least 2: got 2×3 patch"),
    ],
)
def test_what_can_not_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tokens.plan(IMAGES, **{"patch_size": PATCH} | options)


def test_an_odd_grid_is_told_which_size_to_use():
    with pytest.raises(ValueError, match=r"got 7×7 .*multiple of 64 pixels, such as 192×192"):
        tokens.plan(jnp.zeros((224, 224, 3)), patch_size=32, policy="merge", budget=49)
    with pytest.raises(ValueError, match=r"at least 4: got 2×2 .* such as 64×64"):
        tokens.plan(jnp.zeros((32, 32, 3)), patch_size=16, policy="merge2", budget=4)


def test_a_budget_at_the_usual_size_is_told_the_nearest():
    with pytest.raises(ValueError, match=r"49 \+ 3·K tokens, up to 196.*budget=98; use 97 or 100"):
        tokens.plan(jnp.zeros((224, 224, 3)), patch_size=16, policy="merge", budget=98)

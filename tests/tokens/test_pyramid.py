"""The pyramid of tiles and the choice of blocks to split, against loops and brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bvit.tokens import pyramid

RNG = np.random.default_rng(0)


def test_build_averages_and_cuts():
    """A 6×6 grid: a block of 4×4 fits once, and the 2×2 blocks beyond it have no third level."""
    image = RNG.normal(size=(2, 18, 18, 3)).astype(np.float32)
    expected = [image]
    for _ in range(2):
        fine = expected[-1]
        rows, columns = fine.shape[1] // 2, fine.shape[2] // 2
        fine = fine[:, : 2 * rows, : 2 * columns]
        expected.append(fine.reshape(2, rows, 2, columns, 2, 3).mean((2, 4)))
    tiles = [
        level[:, i : i + 3, j : j + 3].reshape(2, -1)
        for level in expected
        for i in range(0, level.shape[1] // 3 * 3, 3)
        for j in range(0, level.shape[2] // 3 * 3, 3)
    ]
    assert len(tiles) == 36 + 9 + 1 == pyramid.level_starts((6, 6), 2)[-1]
    built = pyramid.build(jnp.asarray(image), (6, 6), 2)
    np.testing.assert_allclose(built, np.stack(tiles, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("grid", "levels", "fewest"), [((14, 14), 1, 49), ((14, 14), 2, 22), ((8, 8), 2, 4)]
)
def test_fewest_tokens(grid, levels, fewest):
    assert pyramid.fewest_tokens(grid, levels) == fewest


def scores(*shapes):
    return [jnp.asarray(RNG.random(shape), jnp.float32) for shape in shapes]


def covered(splits, grid):
    """How many tiles show each patch."""
    tiles = np.asarray(pyramid.leaves(splits, grid))
    starts = pyramid.level_starts(grid, len(splits))
    total = np.zeros((len(tiles), *grid), int)
    for level, (rows, columns) in enumerate(pyramid.level_grids(grid, len(splits))):
        side = 2**level
        part = tiles[:, starts[level] : starts[level + 1]].reshape(-1, rows, columns)
        part = part.repeat(side, 1).repeat(side, 2)
        total[:, : part.shape[1], : part.shape[2]] += part
    return tiles, total


@pytest.mark.parametrize("grid", [(8, 8), (6, 10)])
@pytest.mark.parametrize("levels", [1, 2])
def test_leaves_show_every_patch_once_and_are_as_many_as_promised(grid, levels):
    shapes = [(3, *shape) for shape in pyramid.level_grids(grid, levels)[1:]]
    fewest = pyramid.fewest_tokens(grid, levels)
    most = sum(shape[1] * shape[2] for shape in shapes)
    for count in {0, 1, 3, most - 1, most}:
        inner, *outer = scores(*shapes)
        # Outer scores so low that many an inner block would be split before its outer one.
        splits = pyramid.choose_splits([inner, *(0.1 * level for level in outer)], count, None)
        tiles, shown = covered(splits, grid)
        np.testing.assert_array_equal(tiles.sum(-1), fewest + 3 * count)
        np.testing.assert_array_equal(shown, 1)
        chosen = pyramid.level_map(jnp.asarray(tiles), grid, levels)
        np.testing.assert_array_equal(chosen == 0, np.kron(splits[0], np.ones((2, 2))))


def test_one_level_splits_the_best_blocks_and_breaks_ties_in_order():
    values = jnp.asarray([[[3.0, 5, 1], [5, 0, 3]]])
    [split] = pyramid.choose_splits([values], 3, None)
    np.testing.assert_array_equal(split, [[[1, 1, 0], [1, 0, 0]]])
    [split] = pyramid.choose_splits([values], 4, jnp.asarray(4.0))
    np.testing.assert_array_equal(split, [[[0, 1, 0], [1, 0, 0]]])


def test_two_levels_gain_most_wherever_no_budget_can_do_better_on_its_hull():
    """Brute force over all valid choices on a grid of 4×8 patches."""
    fine, coarse = scores((1, 2, 4), (1, 1, 2))
    inside = np.asarray(fine).reshape(2, 2, 2).swapaxes(0, 1).reshape(2, 4)
    best = np.full(11, -np.inf)
    for outer in itertools.product((0, 1), repeat=2):
        for inner in itertools.product((0, 1), repeat=8):
            inner = np.reshape(inner, (2, 4))
            if (inner <= np.reshape(outer, (2, 1))).all():
                gain = 4 * np.dot(outer, np.asarray(coarse).ravel()) + (inner * inside).sum()
                count = sum(outer) + inner.sum()
                best[count] = max(best[count], gain)
    choose = jax.jit(pyramid.choose_splits, static_argnums=1)
    for count in range(11):
        split_fine, split_coarse = choose([fine, coarse], count, None)
        assert split_fine.sum() + split_coarse.sum() == count
        gain = float((split_fine * fine).sum() + 4 * (split_coarse * coarse).sum())
        assert gain <= best[count] + 1e-5
        slopes_before = [(best[count] - best[k]) / (count - k) for k in range(count)]
        slopes_after = [(best[k] - best[count]) / (k - count) for k in range(count + 1, 11)]
        if not slopes_before or not slopes_after or min(slopes_before) >= max(slopes_after):
            np.testing.assert_allclose(gain, best[count], rtol=1e-5)


def test_a_sharp_block_is_reached_through_a_flat_outer_one():
    fine = jnp.zeros((1, 2, 4)).at[0, 1, 2].set(1.0)
    coarse = jnp.zeros((1, 1, 2))
    for threshold in (None, jnp.asarray(0.5)):
        for count in (1, 2):
            split_fine, split_coarse = pyramid.choose_splits([fine, coarse], count, threshold)
            np.testing.assert_array_equal(split_fine, (fine > 0) & (count == 2))
            np.testing.assert_array_equal(split_coarse, [[[False, True]]])

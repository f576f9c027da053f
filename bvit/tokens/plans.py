"""What a ViT does with its patches: policies that turn pixels into a plan of tokens.

A plan names tiles of a pyramid over the image (`bvit.tokens.pyramid`): patches at full resolution,
and blocks of 2×2 or 4×4 patches averaged down to one patch each. All tiles have the same number of
pixels, so one patch embedding fits them all, and a ViT only gathers: `gather(tiles(images, plan),
plan)` are the pixels of its tokens, `gather(tiles(positions, plan), plan)`, with positions
[1, rows, columns, width], their position embeddings, and `plan.mask` says which tokens are padding.
How many tokens there are is fixed at trace time; which tiles they show is not.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from bvit.image.batching import image_keys
from bvit.image.checks import check_name
from bvit.image.focus_measures import DEFAULT_MEASURE, FOCUS_MEASURES, FocusMeasure
from bvit.image.patches import check_patch_size, nearest
from bvit.image.pixels import check_image
from bvit.tokens import clusters, pyramid

# How often each merging policy may merge.
MERGE_LEVELS = {"merge": 1, "merge2": 2}

POLICIES = ("keep", "drop", "pool", "random", *MERGE_LEVELS)
# Policies that merge tokens inside the encoder, and the fields of a ViT that make it do so.
BETWEEN_LAYERS = {"tome": "tome_r=…", "cluster": "cluster_to=…, plan_after=1"}

# How the scores of a block's four patches become the block's.
BLOCK_SCORES: dict[str, Callable[..., Array]] = {"mean": jnp.mean, "max": jnp.max}


@struct.dataclass
class TokenPlan:
    """Which tokens a ViT computes for each image; a pytree of static shape.

    Attributes:
      tile: [*b, t], what each token shows: the number of a tile of the pyramid.
      mask: [*b, num_tokens], False where a token is padding; None where none is.
      left_out: [*b, rows·columns], the patches that one more token, the last, stands for by their
        mean; None where there is no such token.
      grid: rows and columns of patches. Static.
      patch_size: side of a patch, in pixels. Static.
      levels: how often blocks may be merged; the pyramid has one level more. Static.
    """

    tile: Int[Array, "*b t"]
    mask: Bool[Array, "*b num_tokens"] | None
    left_out: Bool[Array, "*b patches"] | None
    grid: tuple[int, int] = struct.field(pytree_node=False)
    patch_size: int = struct.field(pytree_node=False)
    levels: int = struct.field(pytree_node=False)

    @property
    def num_tokens(self) -> int:
        """Tokens computed for each image, padding included; the class token is not counted."""
        return self.tile.shape[-1] + (self.left_out is not None)

    @property
    def level(self) -> Int[Array, "*b num_tokens"]:
        """The level of each token's tile; 0 for the mean of the patches that were left out."""
        level = jnp.zeros_like(self.tile)
        for start in pyramid.level_starts(self.grid, self.levels)[1:-1]:
            level += self.tile >= start
        return level if self.left_out is None else _append(level, 0)

    @property
    def size(self) -> Float[Array, "*b num_tokens"]:
        """How many patches each token stands for; 0 for padding."""
        size = 4.0**self.level
        if self.left_out is not None:
            size = _append(size[..., :-1], self.left_out.sum(-1))
        return size if self.mask is None else jnp.where(self.mask, size, 0)

    @property
    def level_map(self) -> Int[Array, "*b rows columns"]:
        """For pictures: the level at which each patch is shown, -1 where no tile shows it."""
        shown = self.tile[..., None] == jnp.arange(_num_tiles(self))
        if self.mask is not None:
            shown &= self.mask[..., : self.tile.shape[-1], None]
        return pyramid.level_map(shown.any(-2), self.grid, self.levels)


def plan(
    image: Float[ArrayLike, "*b h w 3"],
    *,
    patch_size: int,
    policy: str,
    budget: int | None = None,
    score: str | FocusMeasure = DEFAULT_MEASURE,
    threshold: float | Float[ArrayLike, ""] | None = None,
    key: Key[Array, "..."] | None = None,
    block_score: str = "mean",
) -> TokenPlan:
    """Decides, for each image by itself, which tokens a ViT computes.

    Patches are ranked by a focus score. With a budget alone, the best ones fill it. With a
    threshold as well, those that reach it are taken, best first, up to the budget, and the rest of
    the budget is padding (at least one patch is always taken). Equal scores go in raster order.

    A block's score is by default the mean of its patches'. For scores that are mean squares (all
    but "entropy" and "relative") this is the score of the block as a whole, and for "reblur" it is
    what merging the block would lose; "max" keeps a block fine for the sake of one sharp patch. For
    "merge2" the 4×4 blocks are scored likewise on the image at half resolution. What is lost adds
    up over pixels, so that score counts four times, and blocks are split where most is gained for
    each split, counting what the blocks inside would gain in their turn. Where a grid is even but
    no multiple of 4, its last two rows or columns belong to no 4×4 block: 2×2 is the most there.

    Args:
      image: RGB in [0, 1] (before normalisation), any leading batch axes.
      patch_size: side of the patches in pixels, a divisor of height and width; static.
      policy: what becomes of the patches that are not taken; static.
        "keep": takes all; no budget, no threshold.
        "drop": they are left out.
        "pool": one more token stands for all of them, by their mean.
        "random": as "drop", but taken at random; needs a key, and no threshold.
        "merge": blocks of 2×2 become one token each.
        "merge2": blocks of 4×4 may, too.
      budget: patch tokens, without pool's extra one; static. "merge" on N patches can give
        N/4 + 3·K, with K blocks left fine. None with a threshold: N, so that nothing is cut.
      score: a name in `bvit.image.focus_measures.FOCUS_MEASURES`, or a function of
        (image, patch_size=…) to [*b, rows, columns], high where there is detail; static. "keep" and
        "random" use none.
      threshold: the score from which a patch (a block, when merging) counts as sharp; those that
        do best are in `bvit.image.focus_measures.THRESHOLDS`.
      key: for "random" one PRNG key, of which image i gets fold_in(key, i), or a key for each
        image, [*b]. The other policies use none.
      block_score: "mean" or "max", how a block's score comes of its patches'; static. Only the
        merging policies use it.

    Returns:
      A plan of `budget` tokens (one more for "pool"); the same under jit and vmap.

    Raises:
      ValueError: not an RGB image, patches that do not fit, an unknown name, or a budget that the
        grid or the policy can't give.
    """
    check_image(image, channels=3)
    check_patch_size(np.shape(image)[-3:-1], patch_size)
    grid = tuple(side // patch_size for side in np.shape(image)[-3:-1])
    _check_policy(policy, budget, threshold, key)
    if isinstance(score, str):
        check_name("score", score, FOCUS_MEASURES)
        score = FOCUS_MEASURES[score]
    check_name("block_score", block_score, BLOCK_SCORES)
    if policy in MERGE_LEVELS:
        _check_merge_grid(policy, grid, patch_size)
    if budget is None:
        budget = grid[0] * grid[1]
    _check_budget(policy, budget, grid)
    return _plan(
        jnp.asarray(image),
        threshold,
        key if policy == "random" else None,
        patch_size=patch_size,
        policy=policy,
        budget=budget,
        score=score,
        block_score=block_score,
    )


def budget_for(policy: str, grid: tuple[int, int], share: float) -> int:
    """The largest budget of a policy that is at most a share of the patches, or else its smallest.

    Args:
      policy: one of `POLICIES`, or "cluster", or "zero", whose budget is the patches that are left.
      grid: rows and columns of patches.
      share: of the patches, in (0, 1].

    Raises:
      ValueError: for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"a budget is a number of tokens, or a share in (0, 1]: got {share}.")
    possible = _possible_budgets(policy, grid)
    return max((b for b in possible if b <= share * grid[0] * grid[1]), default=possible.start)


def tiles(image: Float[Array, "*b h w c"], plan: TokenPlan) -> Float[Array, "*b tiles values"]:
    """All tiles that a plan can name, of images or of anything else that lies on its grid.

    Args:
      image: rows·s × columns·s pixels for some s: s = patch_size for images (normalised or not:
        averaging commutes with that), 1 for position embeddings as [1, rows, columns, width].
      plan: a plan for these images; only its static fields are used.

    Returns:
      [*b, tiles, s·s·c], each tile flattened in the order (row, column, channel).
    """
    return pyramid.build(image, plan.grid, plan.levels)


def gather(
    all_tiles: Float[Array, "*b tiles d"], plan: TokenPlan
) -> Float[Array, "*b num_tokens d"]:
    """Takes a plan's tokens from what `tiles` gave, or from a linear map of it.

    Args:
      all_tiles: one row for each tile; a batch axis may be 1 where all images share it, as they do
        position embeddings.
      plan: which tiles to take.

    Returns:
      One row for each token: its tile's; for the token that stands for what was left out, the mean.
    """
    # A plan's numbers lie within the pyramid: without bounds to check, this is a plain copy.
    taken = jnp.take_along_axis(all_tiles, plan.tile[..., None], -2, mode="promise_in_bounds")
    if plan.left_out is None:
        return taken
    patches = all_tiles[..., : plan.left_out.shape[-1], :]
    weights = plan.left_out[..., None, :].astype(patches.dtype)
    total = jnp.matmul(weights, patches, preferred_element_type=jnp.float32)
    # If none was left out the token is padding, and has only to be finite.
    mean = total / jnp.maximum(plan.left_out.sum(-1), 1)[..., None, None]
    return jnp.concatenate([taken, mean.astype(taken.dtype)], axis=-2)


@partial(jax.jit, static_argnames=("patch_size", "policy", "budget", "score", "block_score"))
def _plan(image, threshold, key, *, patch_size, policy, budget, score, block_score):
    *batch, height, width, _ = image.shape
    grid = height // patch_size, width // patch_size
    count = grid[0] * grid[1]
    levels = MERGE_LEVELS.get(policy, 0)
    if policy == "keep":
        chosen = jnp.ones((*batch, count), bool)
    elif policy == "random":
        chosen = _best(_random_scores(key, tuple(batch), count), budget, None)
    elif levels:
        reduce = BLOCK_SCORES[block_score]
        scores = pyramid.block_scores(image.astype(jnp.float32), patch_size, levels, score, reduce)
        splits = (budget - pyramid.fewest_tokens(grid, levels)) // pyramid.SPLIT_COST
        chosen = pyramid.leaves(pyramid.choose_splits(scores, splits, threshold), grid)
    else:
        scores = score(image, patch_size=patch_size).reshape(*batch, count)
        chosen = _best(scores, budget, threshold)
    tile, mask = _first(chosen, budget)
    padded = threshold is not None
    left_out = None
    if policy == "pool":
        left_out = ~chosen
        mask = _append(mask, left_out.any(-1))
        padded |= budget == count
    return TokenPlan(tile, mask if padded else None, left_out, grid, patch_size, levels)


def _random_scores(key, batch, count):
    keys = image_keys(key, batch).reshape(-1)
    return jax.vmap(lambda k: jax.random.uniform(k, (count,)))(keys).reshape(*batch, count)


def _best(scores, count, threshold):
    """True for the `count` highest scores; of these for one, and for all that reach a threshold."""
    ranks = pyramid.ranks(scores)
    best = ranks < count
    return best if threshold is None else best & ((scores >= threshold) | (ranks == 0))


def _first(chosen, count):
    """The places of the first `count` true values, then of false ones; and which are true."""
    place = jnp.argsort(~chosen, axis=-1, stable=True)[..., :count].astype(jnp.int32)
    return place, jnp.take_along_axis(chosen, place, axis=-1)


def _append(values, last):
    last = jnp.broadcast_to(jnp.asarray(last, values.dtype)[..., None], (*values.shape[:-1], 1))
    return jnp.concatenate([values, last], axis=-1)


def _num_tiles(plan):
    return pyramid.level_starts(plan.grid, plan.levels)[-1]


def _check_policy(policy, budget, threshold, key):
    if policy == "zero":
        raise ValueError(
            "policy 'zero' changes pixels and computes every token, so it needs no plan: use "
            "bvit.mask_patches(image, bvit.patch_mask(image, patch_size=…), patch_size=…)."
        )
    if policy in BETWEEN_LAYERS:
        raise ValueError(
            f"policy {policy!r} merges tokens between the layers, so it needs no plan: create the "
            f"ViT with {BETWEEN_LAYERS[policy]} instead."
        )
    check_name("policy", policy, POLICIES)
    bounded = budget is not None or threshold is not None
    if policy == "keep" and bounded:
        raise ValueError(
            f"policy 'keep' computes every token: got budget={budget}, threshold={threshold}; "
            "leave them out, or use another policy."
        )
    if policy != "keep" and not bounded:
        raise ValueError(
            f"policy {policy!r} needs a budget, the number of patch tokens, or a threshold."
        )
    if policy == "random" and (key is None or threshold is not None):
        raise ValueError(
            "policy 'random' needs a key, such as key=jax.random.key(0), and a budget in place of "
            "a threshold."
        )


def _check_merge_grid(policy, grid, patch_size):
    least = 2 ** MERGE_LEVELS[policy]
    if all(side % 2 == 0 and side >= least for side in grid):
        return
    height, width = (side * patch_size for side in grid)
    fits = [max(side // 2 * 2, least) * patch_size for side in grid]
    raise ValueError(
        f"policy {policy!r} merges blocks of patches, so both sides of the grid must be even and "
        f"at least {least}: got {grid[0]}×{grid[1]} patches (image {height}×{width}, "
        f"patch_size={patch_size}); resize the image to a multiple of {2 * patch_size} pixels, "
        f"such as {fits[0]}×{fits[1]}, or change patch_size."
    )


def _possible_budgets(policy: str, grid: tuple[int, int]) -> range:
    patches = grid[0] * grid[1]
    if policy == "cluster":
        return clusters.budgets(grid)
    if policy not in MERGE_LEVELS:
        return range(1, patches + 1)
    fewest = pyramid.fewest_tokens(grid, MERGE_LEVELS[policy])
    return range(fewest, patches + 1, pyramid.SPLIT_COST)


def _check_budget(policy, budget, grid):
    possible = _possible_budgets(policy, grid)
    if policy in MERGE_LEVELS:
        rule = f"{possible.start} + {possible.step}·K tokens, up to {possible[-1]}"
    else:
        rule = f"1 to {possible[-1]} tokens"
    if budget not in possible:
        raise ValueError(
            f"policy {policy!r} on a grid of {grid[0]}×{grid[1]} patches can give {rule}: "
            f"got budget={budget}; use {nearest(budget, possible)}."
        )

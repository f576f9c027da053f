"""Fits the weights of the focus map, and prints how well they do on scenes left out."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from bvit.data.decode import Pixels
from bvit.image.evidence import MEAN, cell_energies, measures, noise_variance
from bvit.image.focus_map import Weights, both_log_odds, grey_levels
from bvit.image.pixels import to_float
from bvit.studies.focus_truth import CHANGES, PATCH, Truth

FOLDS = 5
# How much a patch counts in fitting: hand-drawn maps are few, and blurs on purpose easy to make.
COUNTS = {"pair": 1.0, "mask": 2.0, "blurred": 0.4}
# Strength of the ridge, on measures of standard deviation 1, and steps of Newton's method.
RIDGE, NEWTON_STEPS = 3.0, 15
CELLS_PER_PATCH = PATCH // 8


class Measured(NamedTuple):
    """What is seen of a photograph under one change, cell by cell.

    Attributes:
      truth: the photograph.
      change: of `CHANGES`.
      found: its measures.
      structure: the variance of what there is to see.
      mean: grey level.
      noise: variance of the noise.
    """

    truth: Truth
    change: str
    found: Float[np.ndarray, "measures m n"]
    structure: Float[np.ndarray, "m n"]
    mean: Float[np.ndarray, "m n"]
    noise: float


def measure(truth: Sequence[Truth], rng: np.random.Generator) -> list[Measured]:
    """Measures photographs under every change; those blurred on purpose under one of them each."""
    found = []
    for one in truth:
        changes = (
            list(CHANGES) if one.kind != "blurred" else ["as it is", rng.choice([*CHANGES][1:])]
        )
        found += [
            Measured(one, name, *measured(CHANGES[name](rng, one.pixels))) for name in changes
        ]
    return found


def measured(pixels: Pixels) -> tuple[np.ndarray, ...]:
    """Measures, structure, mean grey levels and noise of a photograph, cell by cell."""
    return tuple(map(np.asarray, _measure(jnp.asarray(pixels))))


@jax.jit
def _measure(pixels):
    cells = cell_energies(grey_levels(to_float(pixels)))
    valid = jnp.ones(cells.shape[1:], bool)
    noise = noise_variance(cells, valid)
    return (*measures(cells, valid, noise), cells[MEAN], noise)


def fit(examples: Sequence[Measured], rng: np.random.Generator, *, share: float = 0.1) -> Weights:
    """Fits a cell's own log-odds first, then the shares of its own and its neighbours'.

    Args:
      examples: to be learnt from.
      rng: of the cells that are drawn.
      share: of the cells of clear patches that are used; of enlarged images, less in proportion.
    """
    x, sharp, counts = [], [], []
    for one in examples:
        clear = _to_cells(one.truth.clear) & (
            rng.random(one.mean.shape) < share / one.truth.scale**2
        )
        x.append(one.found[:, clear].T)
        sharp.append(_to_cells(one.truth.sharp)[clear])
        counts.append(np.full(clear.sum(), COUNTS[one.truth.kind]))
    x, sharp, counts = (np.concatenate(part).astype(np.float64) for part in (x, sharp, counts))
    mean, spread = x.mean(0), x.std(0)
    standard = (x - mean) / spread
    found = regression(np.concatenate([standard, standard**2], axis=1), sharp, counts)
    bias, (linear, square) = found[-1], found[:-1].reshape(2, -1)
    # The same polynomial of the measures as they are.
    weights = Weights(
        bias=float(bias + np.sum(square * (mean / spread) ** 2 - linear * mean / spread)),
        linear=tuple(map(float, linear / spread - 2 * square * mean / spread**2)),
        square=tuple(map(float, square / spread**2)),
        own=0.5,
        neighbours=0.5,
    )
    both = [to_patches(both_of_cells(one, weights)) for one in examples]
    clear = [one.truth.clear for one in examples]
    x = np.concatenate([b[:, c].T for b, c in zip(both, clear, strict=True)])
    sharp = np.concatenate([one.truth.sharp[c] for one, c in zip(examples, clear, strict=True)])
    counts = np.concatenate(
        [
            np.full(c.sum(), COUNTS[one.truth.kind] / one.truth.scale**2)
            for one, c in zip(examples, clear, strict=True)
        ]
    )
    own, neighbours = regression(x, sharp.astype(np.float64), counts, intercept=False)
    return weights._replace(own=float(own), neighbours=float(neighbours))


def regression(
    x: Float[np.ndarray, "n k"],
    y: Float[np.ndarray, " n"],
    counts: Float[np.ndarray, " n"],
    *,
    intercept: bool = True,
) -> Float[np.ndarray, " k+1"]:
    """Logistic regression with a ridge, by Newton's method.

    Args:
      x: what is known of each example.
      y: 0 or 1.
      counts: how much each example counts.
      intercept: whether a constant is fitted too, without ridge.

    Returns:
      The coefficients, the constant last.
    """
    ridge = np.full(x.shape[1], RIDGE)
    if intercept:
        x, ridge = np.concatenate([x, np.ones((len(x), 1))], axis=1), np.append(ridge, 0.0)
    found = np.zeros(x.shape[1])
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ found, -30, 30)))
        slope = x.T @ (counts * (p - y)) + ridge * found
        curve = (x * (counts * p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        found -= np.linalg.solve(curve, slope)
    return found


def both_of_cells(one: Measured, weights: Weights) -> Float[np.ndarray, "2 m n"]:
    """Each cell's own log-odds, and its neighbours'."""
    packed = jnp.asarray([weights.bias, *weights.linear, *weights.square], jnp.float32)
    return np.asarray(_both(one.found, one.structure, one.mean, one.noise, packed))


def to_patches(x: Float[np.ndarray, "*b m n"]) -> Float[np.ndarray, "*b rows columns"]:
    """Means over the cells of each patch."""
    *batch, rows, columns = x.shape
    side = CELLS_PER_PATCH
    return x.reshape(*batch, rows // side, side, columns // side, side).mean((-3, -1))


@jax.jit
def _both(found, structure, mean, noise, packed):
    linear, square = packed[1:].reshape(2, -1)
    weights = Weights(packed[0], linear, square, 0.5, 0.5)
    valid = jnp.ones(mean.shape, bool)
    return jnp.stack(both_log_odds(found, structure, valid, mean, noise, weights))


def log_odds(one: Measured, weights: Weights) -> Float[np.ndarray, "m n"]:
    """The log-odds of each cell."""
    own, neighbours = both_of_cells(one, weights)
    return weights.own * own + weights.neighbours * neighbours


def left_out(examples: Sequence[Measured], rng: np.random.Generator) -> list[np.ndarray]:
    """The log-odds of each example's cells, by weights that saw nothing of its scene."""
    scenes = sorted({one.truth.scene for one in examples})
    fold = dict(zip(rng.permutation(scenes), np.arange(len(scenes)) % FOLDS, strict=True))
    found: list[np.ndarray] = [np.empty(0)] * len(examples)
    for k in range(FOLDS):
        seen = [one for one in examples if fold[one.truth.scene] != k]
        weights = fit(seen, rng)
        for i, one in enumerate(examples):
            if fold[one.truth.scene] == k:
                found[i] = log_odds(one, weights)
    return found


def area_under_curve(score: Float[np.ndarray, " n"], sharp: Bool[np.ndarray, " n"]) -> float:
    """The probability that a sharp patch scores higher than a blurred one (ties count half)."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    _, first, count = np.unique(ranked, return_index=True, return_counts=True)
    rank = np.empty(len(score))
    rank[order] = np.repeat(first + (count + 1) / 2, count)
    sharps = int(sharp.sum())
    above = rank[sharp].sum() - sharps * (sharps + 1) / 2
    return float(above / (sharps * (len(score) - sharps)))


def grouped(examples: Sequence[Measured], scores: Sequence[np.ndarray]) -> list[tuple]:
    """(kind, scale, change, patches, AUC, accuracy at 0) of each kind under each change."""
    rows = []
    for kind, scale in sorted({(e.truth.kind, e.truth.scale) for e in examples}):
        for change in CHANGES:
            chosen = [
                (to_patches(score)[e.truth.clear], e.truth.sharp[e.truth.clear])
                for e, score in zip(examples, scores, strict=True)
                if (e.truth.kind, e.truth.scale, e.change) == (kind, scale, change)
            ]
            score, sharp = (np.concatenate(part) for part in zip(*chosen, strict=True))
            right = float(((score > 0) == sharp).mean())
            rows.append((kind, scale, change, len(score), area_under_curve(score, sharp), right))
    return rows


_to_cells = partial(np.kron, b=np.ones((CELLS_PER_PATCH, CELLS_PER_PATCH), bool))

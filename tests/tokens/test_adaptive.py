"""Adaptive budgets: the answers of each image alone, in order, without compiling again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bvit.image.focus import patch_laplacian_variance
from bvit.image.pixels import normalize
from bvit.models.vit import VisionTransformer
from bvit.tokens import plans as tokens
from bvit.tokens.adaptive import adaptive_apply

MODEL = VisionTransformer(
    num_classes=5, image_size=32, patch_size=4, width=12, depth=1, num_heads=3
)
BUDGETS = (16, 31, 64)


def variables():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=0.3, size=x.shape)), shapes)


def images(n):
    """Noise of rising contrast, in an order that mixes the budgets."""
    contrast = np.random.default_rng(1).permutation(np.linspace(0.01, 0.05, n))
    noise = np.random.default_rng(2).random((n, 32, 32, 3))
    return (noise * contrast.reshape(-1, 1, 1, 1)).astype(np.float32)


@pytest.mark.parametrize(("policy", "budgets"), [("merge", BUDGETS), ("pool", (64, 1, 20))])
def test_logits_are_those_of_each_image_alone_at_its_budget(policy, budgets):
    x = images(11)
    params = variables()
    result = adaptive_apply(
        MODEL, params, x, budgets=budgets, policy=policy, score="laplacian", chunk_size=4
    )
    scores = np.asarray(patch_laplacian_variance(x, patch_size=4))
    if policy == "merge":
        blocks = scores.reshape(-1, 4, 2, 4, 2).mean((2, 4))
        needed = 16 + 3 * (blocks >= 100).sum((1, 2))
    else:
        needed = np.maximum((scores >= 100).sum((1, 2)), 1)
    expected = [min(b for b in budgets if b >= n) for n in needed]
    np.testing.assert_array_equal(result.budget, expected)
    assert len(set(expected)) == 3

    def alone(image, budget):
        options = {"policy": policy, "budget": budget, "score": "laplacian"}
        plan = tokens.plan(image, patch_size=4, **options)
        return MODEL.apply(params, normalize(image), plan=plan)

    alone = jax.jit(alone, static_argnums=1)
    for image, budget, logits in zip(x, expected, result.logits, strict=True):
        np.testing.assert_allclose(logits, alone(image[None], budget)[0], rtol=1e-3, atol=1e-4)


def test_an_image_that_needs_more_than_there_is_gets_the_largest():
    x = np.random.default_rng(0).random((2, 32, 32, 3)).astype(np.float32)
    options = {"budgets": (16, 31), "threshold": 0.0, "chunk_size": 2}
    result = adaptive_apply(MODEL, variables(), x, **options)
    np.testing.assert_array_equal(result.budget, 31)


def test_nothing_compiles_again_after_the_first_pass():
    traces = []

    def score(image, *, patch_size):
        traces.append(image.shape)
        return patch_laplacian_variance(image, patch_size=patch_size)

    params = variables()
    for n in (11, 5, 3, 17):
        result = adaptive_apply(
            MODEL, params, images(n), budgets=BUDGETS, score=score, threshold=100.0, chunk_size=4
        )
        assert result.logits.shape == (n, 5)
        if n == 11:
            assert set(result.budget) == set(BUDGETS)
            first = len(traces)
    assert len(traces) == first
    # The scores once, and each budget once to check it and once to compute.
    assert first <= 1 + 2 * len(BUDGETS)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros((32, 32, 3), np.float32), {}, "one batch.*image.None."),
        (np.zeros((0, 32, 32, 3), np.float32), {}, "at least one image"),
        (np.zeros((1, 32, 32, 3), np.uint8), {}, "uint8"),
        (np.zeros((1, 32, 32, 3), np.float32), {"budgets": ()}, "at least one budget"),
        (np.zeros((1, 32, 32, 3), np.float32), {"budgets": (16, 33)}, "use 31 or 34"),
        (np.zeros((1, 32, 32, 3), np.float32), {"policy": "keep"}, "computes every token"),
        (np.zeros((1, 32, 32, 3), np.float32), {"score": jnp.mean}, "no threshold of its own"),
        (np.zeros((1, 32, 32, 3), np.float32), {"score": "relativ"}, "did you mean relative"),
    ],
)
def test_bad_input_is_refused(x, options, message):
    with pytest.raises(ValueError, match=message):
        adaptive_apply(MODEL, {}, x, **{"budgets": BUDGETS} | options)

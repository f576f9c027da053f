"""The Vision Transformer against a float64 NumPy one, its options, and its refusals."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from bvit.image.patches import patchify
from bvit.models.vit import VisionTransformer
from bvit.tokens import parse

TINY = {
    "num_classes": 5,
    "image_size": 16,
    "patch_size": 4,
    "width": 12,
    "depth": 2,
    "num_heads": 3,
}


def images(n=2, size=16, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, size, size, 3))


def randomised(model, x, seed=1):
    """Variables drawn at random, every parameter, so that none hides behind a zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), leaf.dtype), shapes
    )


def numpy_vit(params, image, patch, heads, pool):
    """One image at a time, one head at a time, as the papers write it."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, q):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * q["scale"] + q["bias"]

    size = image.shape[0]
    tokens = []
    for i in range(0, size, patch):
        for j in range(0, size, patch):
            tile = np.asarray(image[i : i + patch, j : j + patch], np.float64)
            product = (tile[..., None] * p["patch_embed"]["kernel"]).sum((0, 1, 2))
            tokens.append(product + p["patch_embed"]["bias"])
    x = np.stack(tokens)
    if pool == "cls":
        x = np.concatenate([p["cls_token"][0], x])
    x = x + p["pos_embed"][0]
    for layer in range(2):
        block = p[f"blocks_{layer}"]
        y = norm(x, block["norm1"])
        attention = block["attn"]
        out = np.zeros_like(x)
        for head in range(heads):
            query, key, value = (
                y @ attention["qkv"]["kernel"][:, part, head] + attention["qkv"]["bias"][part, head]
                for part in range(3)
            )
            scores = query @ key.T / np.sqrt(query.shape[-1])
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out += weights @ value @ attention["proj"]["kernel"][head]
        x = x + out + attention["proj"]["bias"]
        y = norm(x, block["norm2"]) @ block["mlp"]["fc1"]["kernel"] + block["mlp"]["fc1"]["bias"]
        y = y * (1 + erf(y / np.sqrt(2))) / 2
        x = x + y @ block["mlp"]["fc2"]["kernel"] + block["mlp"]["fc2"]["bias"]
    pooled = norm(x[0] if pool == "cls" else x.mean(0), p["norm"])
    return pooled @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_forward_equals_numpy(pool):
    model = VisionTransformer(**TINY, pool=pool)
    x = images()
    variables = randomised(model, x)
    logits = jax.jit(model.apply)(variables, x)
    expected = np.stack([numpy_vit(variables["params"], i, 4, 3, pool) for i in np.asarray(x)])
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_eager_equals_jit():
    model = VisionTransformer(**{**TINY, "depth": 1})
    x = images()
    variables = randomised(model, x)
    logits = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(model.apply(variables, x), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "kind", [{"pool": "cls"}, {"pool": "mean", "registers": 2}, {"pool": "attention"}]
)
def test_every_parameter_gets_a_gradient(kind):
    model = VisionTransformer(**TINY, **kind)
    x = images()
    variables = randomised(model, x)
    grads = jax.jit(jax.grad(lambda v: model.apply(v, x)[:, 1].sum()))(variables)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path


def test_remat_changes_memory_and_nothing_else():
    x = images()
    options = {**TINY, "depth": 1, "dropout": 0.2}
    plain = VisionTransformer(**options)
    remat = VisionTransformer(**options, remat=True)
    variables = randomised(plain, x)

    def gradient(model):
        def loss(v):
            return model.apply(v, x, train=True, rngs={"dropout": jax.random.key(3)}).var()

        return jax.jit(jax.grad(loss))(variables)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient(plain),
        gradient(remat),
    )


def test_dropout_needs_training_and_a_key():
    model = VisionTransformer(**TINY, dropout=0.5)
    x = images()
    variables = randomised(model, x)

    @jax.jit
    def train(seed):
        return model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)})

    assert not np.allclose(train(0), train(1))
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        model.apply(variables, x, train=True)
    plain = jax.jit(VisionTransformer(**TINY).apply)(variables, x)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, x), plain)


def test_dropout_acts_on_embeddings():
    model = VisionTransformer(**{**TINY, "depth": 0}, dropout=0.5, pool="mean")
    x = images()
    variables = randomised(model, x)
    rngs = {"dropout": jax.random.key(0)}
    logits = model.apply(variables, x, train=True, rngs=rngs)
    assert not np.allclose(logits, model.apply(variables, x))


def test_stochastic_depth_skips_whole_branches_of_the_last_block():
    """At depth 2 the first block has rate 0 and the last the full one: four outcomes an image."""
    model = VisionTransformer(**TINY, stochastic_depth=0.5)
    x = jnp.repeat(images(1), 64, axis=0)
    variables = randomised(model, x)
    rngs = {"dropout": jax.random.key(0)}
    logits = jax.jit(lambda v: model.apply(v, x, train=True, rngs=rngs))(variables)
    assert len(np.unique(np.round(logits, 3), axis=0)) == 4


def test_bfloat16_is_close_to_float32():
    x = images()
    variables = randomised(VisionTransformer(**TINY), x)
    logits = jax.jit(VisionTransformer(**TINY).apply)(variables, x)
    rough = jax.jit(VisionTransformer(**TINY, dtype="bfloat16").apply)(variables, x)
    np.testing.assert_allclose(rough, logits, atol=0.1)
    assert not np.array_equal(rough, logits)


def test_images_that_are_not_square():
    model = VisionTransformer(**{**TINY, "image_size": (8, 16)})
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 16, 3)))
    assert shapes["params"]["pos_embed"].shape == (1, 1 + 2 * 4, 12)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"image_size": 224, "patch_size": 15}, "got image 224×224, patch_size=15; use 14 or 16"),
        ({"patch_size": 0}, "patch_size must divide .* use 1"),
        ({"width": 16}, "width must be a multiple of num_heads.*use width=15 or 18"),
        ({"pool": "max"}, "pool must be one of cls, mean, attention: got 'max'"),
        ({"dropout": 1.0}, r"dropout must be a rate in \[0, 1\)"),
        ({"stochastic_depth": -0.1}, r"stochastic_depth must be a rate in \[0, 1\)"),
    ],
)
def test_bad_options_are_refused_at_construction(override, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**{**TINY, **override})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (jnp.ones((2, 24, 24, 3)), r"16×16: got 24×24; .* image_size=\(24, 24\)"),
        (jnp.ones((2, 16, 16, 1)), "repeat a grey channel"),
        (jnp.ones((16, 16, 3)), "batch axis"),
        (jnp.ones((2, 16, 16, 3), jnp.uint8), "floating point and normalised: got uint8"),
    ],
)
def test_bad_images_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**TINY).init(jax.random.key(0), x)


SMALL = {**TINY, "image_size": 32}  # a grid of 8×8


def pixels(n=2, seed=0):
    return jax.random.uniform(jax.random.key(seed), (n, 32, 32, 3))


def follow(model, text, x, **options):
    """A function of the variables: the logits of x, taken as it is, under a policy."""
    policy = parse(text, **options)
    plan = policy.plan(x, model.shape) if policy.needs_plan else None
    return jax.jit(lambda variables: model.apply(variables, x, policy=policy, plan=plan))


KINDS = [
    {"pool": "cls"},
    {"pool": "mean"},
    {"pool": "attention"},
    {"pool": "cls", "registers": 2},
    {"pool": "mean", "registers": 3, "pre_norm": True},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["drop:64", "drop:64@1", "merge:64", "merge:64@1", "cluster:64"])
def test_a_policy_of_all_patches_changes_nothing(kind, text):
    model = VisionTransformer(**SMALL, **kind)
    x = pixels()
    variables = randomised(model, x)
    whole = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(follow(model, text, x)(variables), whole, rtol=1e-3, atol=1e-3)


def test_tokens_are_embedded_tiles_with_mean_positions():
    model = VisionTransformer(**{**SMALL, "depth": 1})
    x = pixels()
    policy = parse("merge:31", score="laplacian")
    plan = policy.plan(x, model.shape)
    variables = randomised(model, x)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    seen = []

    def watch(call, args, kwargs, context):
        if context.module.name == "blocks_0" and context.method_name == "__call__":
            seen.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        model.apply(variables, x, policy=policy, plan=plan)
    tokens, where = seen[0], np.asarray(plan.where)
    grid = p["pos_embed"][0, 1:]
    for i, image in enumerate(np.asarray(x, np.float64)):
        own = p["cls_token"][0, 0] + p["pos_embed"][0, 0]
        np.testing.assert_allclose(tokens.x[i, 0], own, rtol=1e-4, atol=1e-4)
        for number in range(31):
            patches = np.flatnonzero(where[i] == number)
            row, column = divmod(patches[0], 8)
            side = int(len(patches) ** 0.5)
            block = image[4 * row : 4 * (row + side), 4 * column : 4 * (column + side)]
            tile = block.reshape(4, side, 4, side, 3).mean((1, 3)).ravel()
            wanted = tile @ p["patch_embed"]["kernel"].reshape(-1, 12) + p["patch_embed"]["bias"]
            wanted += grid[patches].mean(0)
            np.testing.assert_allclose(tokens.x[i, 1 + number], wanted, rtol=1e-3, atol=1e-3)
            assert tokens.size[i, 1 + number] == side**2


def test_drop_is_equivariant_to_shuffling_patches_with_their_positions():
    model = VisionTransformer(**SMALL)
    x = pixels()
    variables = randomised(model, x)
    order = np.random.default_rng(0).permutation(64)
    tiles = patchify(x, 4)[:, order].reshape(2, 8, 8, 4, 4, 3)
    shuffled = tiles.swapaxes(2, 3).reshape(2, 32, 32, 3)
    positions = variables["params"]["pos_embed"]
    moved = jnp.concatenate([positions[:, :1], positions[:, 1:][:, order]], axis=1)
    moved = {"params": {**variables["params"], "pos_embed": moved}}
    # The measure of a patch alone; the default one compares patches to find the noise.
    logits = follow(model, "drop:20", x, score="laplacian")(variables)
    again = follow(model, "drop:20", shuffled, score="laplacian")(moved)
    np.testing.assert_allclose(again, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_token_counts_as_the_patches_it_stands_for(kind):
    """Where the patches of a block are all alike, merging them must not show at all."""
    model = VisionTransformer(**SMALL, **kind)
    x = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3))
    x = jnp.repeat(jnp.repeat(x, 8, 1), 8, 2)  # blocks of one colour
    variables = randomised(model, x)
    own, positions = jnp.split(variables["params"]["pos_embed"], [model.positioned], axis=1)
    positions = positions.reshape(1, 8, 8, 12)
    positions = jnp.repeat(jnp.repeat(positions[:, ::2, ::2], 2, 1), 2, 2).reshape(1, 64, 12)
    variables["params"]["pos_embed"] = jnp.concatenate([own, positions], axis=1)
    whole = jax.jit(model.apply)(variables, x)
    for text in ("merge:28", "merge:28@1"):
        merged = follow(model, text, x)(variables)
        np.testing.assert_allclose(merged, whole, rtol=1e-3, atol=1e-4)


def test_where_is_reported_on_request_and_is_no_variable():
    model = VisionTransformer(**SMALL)
    assert set(jax.eval_shape(model.init, jax.random.key(0), pixels())) == {"params"}
    variables = randomised(model, pixels())
    _, kept = model.apply(variables, pixels(), mutable=["intermediates"])
    (where,) = kept["intermediates"]["where"]
    np.testing.assert_array_equal(where, [np.arange(64)] * 2)

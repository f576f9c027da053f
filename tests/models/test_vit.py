"""The Vision Transformer against a float64 NumPy one, its options, and its refusals."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from bvit.image.focus_measures import relative_detail
from bvit.image.patches import halve, patchify
from bvit.models.vit import VisionTransformer
from bvit.tokens import plans as tokens

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


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_every_parameter_gets_a_gradient(pool):
    model = VisionTransformer(**TINY, pool=pool)
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
        ({"pool": "max"}, "pool must be one of cls, mean: got 'max'"),
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


SMALL = {**TINY, "image_size": 32, "merge_levels": 2}  # a grid of 8×8


def pixels(n=2, seed=0):
    return jax.random.uniform(jax.random.key(seed), (n, 32, 32, 3))


def draw(x, policy, budget=None, **options):
    return tokens.plan(x, patch_size=4, policy=policy, budget=budget, **options)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize(
    ("policy", "budget", "after"),
    [
        ("keep", None, 0),
        ("drop", 64, 0),
        ("pool", 64, 0),
        ("merge", 64, 0),
        ("merge2", 64, 0),
        ("merge2", 64, 1),
    ],
)
def test_a_plan_of_all_patches_changes_nothing(pool, policy, budget, after):
    model = VisionTransformer(**{**SMALL, "depth": 1 + after}, pool=pool, plan_after=after)
    x = pixels()
    variables = randomised(model, x)
    planned = jax.jit(model.apply)(variables, x, plan=draw(x, policy, budget))
    np.testing.assert_allclose(planned, jax.jit(model.apply)(variables, x), rtol=1e-4, atol=1e-4)


def given_to(block, model, variables, x, plan):
    """The tokens that a block is given."""
    seen = []

    def watch(call, args, kwargs, context):
        if context.module.name == block:
            seen.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        model.apply(variables, x, plan=plan)
    return seen[0]


def embedded(model, variables, x, plan):
    """What the first block is given."""
    return given_to("blocks_0", model, variables, x, plan)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_plan_after_a_block_takes_means_of_what_the_block_made(pool):
    model = VisionTransformer(**SMALL, pool=pool, plan_after=1, merge_detail=True)
    x = pixels()
    plan = draw(x, "merge2", 4 + 3 * 5, score="laplacian")  # of which all levels come here
    variables = randomised(model, x)
    p = jax.tree.map(np.asarray, variables["params"])
    whole = np.asarray(given_to("blocks_1", model, variables, x, None))
    taken = np.asarray(given_to("blocks_1", model, variables, x, plan))
    own = int(pool == "cls")
    np.testing.assert_allclose(taken[:, :own], whole[:, :own], rtol=1e-4, atol=1e-4)
    assert taken.shape[1] == own + 19
    fine = whole[:, own:].reshape(2, 4, 2, 4, 2, 12)  # halves of halves, to average over
    middle = fine.mean((2, 4))
    levels = [
        whole[:, own:],
        middle.reshape(2, 16, 12)
        + p["scale_embed"][0]
        + fine.swapaxes(2, 3).reshape(2, 16, 48) @ p["detail_kernel"][0],
        middle.reshape(2, 2, 2, 2, 2, 12).mean((2, 4)).reshape(2, 4, 12)
        + p["scale_embed"][1]
        + middle.reshape(2, 2, 2, 2, 2, 12).swapaxes(2, 3).reshape(2, 4, 48)
        @ p["detail_kernel"][1],
    ]
    tiles = np.concatenate(levels, axis=1)
    wanted = np.take_along_axis(tiles, np.asarray(plan.tile)[..., None], 1)
    np.testing.assert_allclose(taken[:, own:], wanted, rtol=1e-3, atol=1e-3)
    assert set(np.ravel(plan.level)) == {0, 1, 2}


def test_a_plan_must_leave_blocks_to_run():
    with pytest.raises(ValueError, match="plan_after must leave blocks .* 0 to depth - 1 = 1"):
        VisionTransformer(**TINY, plan_after=2)


@pytest.mark.parametrize("detail", [False, True])
def test_tokens_are_embedded_tiles_with_mean_position_scale_and_detail(detail):
    model = VisionTransformer(**{**SMALL, "depth": 1}, merge_detail=detail)
    x = pixels()
    plan = draw(x, "merge2", 4 + 3 * 5, score="laplacian")  # of which all levels come here
    variables = randomised(model, x)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    kernel = p["patch_embed"]["kernel"].reshape(-1, 12)

    def embed(image, row, column, side):
        """The tile at pixels (row, column), `side` patches wide, averaged down and embedded."""
        block = np.asarray(image, np.float64)[row : row + 4 * side, column : column + 4 * side]
        tile = block.reshape(4, side, 4, side, 3).mean((1, 3))
        return tile.ravel() @ kernel + p["patch_embed"]["bias"]

    x_embedded = embedded(model, variables, x, plan)
    grid = p["pos_embed"][0, 1:].reshape(8, 8, 12)
    for i, image in enumerate(np.asarray(x)):
        np.testing.assert_allclose(
            x_embedded[i, 0], p["cls_token"][0, 0] + p["pos_embed"][0, 0], rtol=1e-4, atol=1e-4
        )
        for token, tile in enumerate(np.asarray(plan.tile[i])):
            level = int(plan.level[i, token])
            side = 2**level
            row, column = (side * k for k in divmod(tile - [0, 64, 80][level], 8 // side))
            expected = embed(image, 4 * row, 4 * column, side)
            expected += grid[row : row + side, column : column + side].mean((0, 1))
            if level:
                expected += p["scale_embed"][level - 1]
            if level and detail:
                half = side // 2
                four = [
                    embed(image, 4 * (row + half * a), 4 * (column + half * b), half)
                    for a in (0, 1)
                    for b in (0, 1)
                ]
                expected += np.concatenate(four) @ p["detail_kernel"][level - 1]
            np.testing.assert_allclose(
                x_embedded[i, 1 + token], expected, rtol=1e-3, atol=1e-3, err_msg=f"level {level}"
            )
    assert set(np.ravel(plan.level)) == {0, 1, 2}


def test_a_model_without_scale_embeddings_takes_merged_tokens():
    """Levels that the model has no embedding for get none; so zeros change nothing."""
    x = pixels()
    plan = draw(x, "merge2", 4 + 3 * 5)
    variables = randomised(VisionTransformer(**SMALL), x)
    scale = variables["params"].pop("scale_embed")
    bare = jax.jit(VisionTransformer(**{**SMALL, "merge_levels": 0}).apply)
    one = jax.jit(VisionTransformer(**{**SMALL, "merge_levels": 1}).apply)
    with_one = {"params": {**variables["params"], "scale_embed": 0 * scale[:1]}}
    np.testing.assert_allclose(
        one(with_one, x, plan=plan), bare(variables, x, plan=plan), rtol=1e-5
    )


def test_drop_is_equivariant_to_shuffling_patches_with_their_positions():
    model = VisionTransformer(**{**SMALL, "merge_levels": 0})
    x = pixels()
    variables = randomised(model, x)
    order = np.random.default_rng(0).permutation(64)
    tiles = patchify(x, 4)[:, order].reshape(2, 8, 8, 4, 4, 3)
    shuffled = tiles.swapaxes(2, 3).reshape(2, 32, 32, 3)
    positions = variables["params"]["pos_embed"]
    moved = jnp.concatenate([positions[:, :1], positions[:, 1:][:, order]], axis=1)
    moved = {"params": {**variables["params"], "pos_embed": moved}}
    # A score of a patch alone; the default one measures the noise between patches too.
    plan, plan_shuffled = (draw(y, "drop", 20, score="laplacian") for y in (x, shuffled))
    np.testing.assert_array_equal(
        np.sort(order[np.asarray(plan_shuffled.tile)]), np.asarray(plan.tile)
    )
    apply = jax.jit(model.apply)
    logits = apply(variables, x, plan=plan)
    np.testing.assert_allclose(apply(moved, shuffled, plan=plan_shuffled), logits, rtol=1e-3)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_padding_changes_nothing(pool):
    model = VisionTransformer(**{**SMALL, "depth": 1}, pool=pool)
    x = pixels(1)
    variables = randomised(model, x)
    scores = np.sort(np.ravel(relative_detail(x, patch_size=4)))
    exact = draw(x, "drop", 10)
    padded = draw(x, "drop", 30, threshold=scores[-10])
    assert (padded.num_tokens, int(padded.mask.sum())) == (30, 10)
    apply = jax.jit(model.apply)
    expected = apply(variables, x, plan=exact)
    np.testing.assert_allclose(apply(variables, x, plan=padded), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_size_bias_makes_a_merged_token_count_as_the_patches_it_stands_for(pool):
    """Where the patches of a block are all alike, merging them must not show at all."""
    model = VisionTransformer(**{**SMALL, "merge_levels": 0}, pool=pool, size_bias=True)
    x = jnp.tile(jax.random.uniform(jax.random.key(0), (2, 4, 4, 3)), (1, 8, 8, 1))
    x = x * jnp.repeat(jnp.repeat(jax.random.uniform(jax.random.key(1), (2, 4, 4, 1)), 8, 1), 8, 2)
    variables = randomised(model, x)
    # A block's tile is the mean of what its four patches show, 2×2 pixels at a time: equal to them
    # only if they are flat.
    x = jnp.repeat(jnp.repeat(halve(halve(halve(x))), 8, 1), 8, 2)
    prefix = int(pool == "cls")
    positions = variables["params"]["pos_embed"][:, prefix:].reshape(1, 8, 8, 12)
    positions = jnp.repeat(jnp.repeat(positions[:, ::2, ::2], 2, 1), 2, 2).reshape(1, 64, 12)
    own = variables["params"]["pos_embed"][:, :prefix]
    variables["params"]["pos_embed"] = jnp.concatenate([own, positions], axis=1)
    apply = jax.jit(model.apply)
    merged = apply(variables, x, plan=draw(x, "merge", 16 + 3 * 4))
    np.testing.assert_allclose(merged, apply(variables, x), rtol=1e-3, atol=1e-4)


def test_every_parameter_gets_a_gradient_from_merged_tokens():
    """As initialised, so with the zeros of the scale embedding and of the detail."""
    model = VisionTransformer(**{**SMALL, "depth": 1}, merge_detail=True)
    x = pixels()
    plan = draw(x, "merge2", 4 + 3 * 5)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    for name in ("scale_embed", "detail_kernel"):
        assert not variables["params"][name].any()

    def loss(variables, x):
        return model.apply(variables, x, plan=plan)[:, 1].sum()

    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables, x)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path


def test_a_plan_for_other_images_is_refused():
    x = pixels()
    variables = randomised(VisionTransformer(**SMALL), x)
    other = tokens.plan(x, patch_size=8, policy="drop", budget=4)
    for plan in (other, draw(x[:1], "drop", 4), draw(x[0], "drop", 4)):
        with pytest.raises(
            ValueError, match="plan must be for 2 images of 8×8 patches of 4 pixels"
        ):
            VisionTransformer(**SMALL).apply(variables, x, plan=plan)


def test_detail_without_levels_is_refused():
    with pytest.raises(ValueError, match="merge_detail needs merge_levels"):
        VisionTransformer(**TINY, merge_detail=True)

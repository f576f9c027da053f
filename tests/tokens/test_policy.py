"""What holds for every policy: counts, shares of the operations, and what the ViT reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bvit.classify import classify, forward, prepare, shown
from bvit.image.focus import mask_patches, patch_mask
from bvit.image.focus_measures import FOCUS_MEASURES, THRESHOLDS
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize
from bvit.models.vit import VisionTransformer
from bvit.tokens import POLICIES, Keep, ViTShape, mean_tokens, operations, parse

VIT = ViTShape((14, 14))
ONE_OF_EACH = [
    "keep",
    "zero",
    *("drop:20", "drop:20@1", "drop:20@2", "pool:20", "random:20", "merge:31", "merge:31@1"),
    *("cluster:20", "cluster:40+20@1+2", "tome:8", "pitome:8", "atc:20", "evit:20"),
]
SHAREABLE = sorted(POLICIES.keys() - {"keep", "zero"})
SIZE, PATCH = 32, 4
OPTIONS = {"num_classes": 5, "image_size": SIZE, "patch_size": PATCH, "width": 16, "depth": 2}
NORMALISATION = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def test_one_of_each():
    assert {text.split(":")[0] for text in ONE_OF_EACH} == set(POLICIES)


@pytest.fixture(scope="module")
def images():
    """Images whose patches have all sorts of contrast, and a key for each."""
    noise = jax.random.uniform(jax.random.key(0), (3, SIZE, SIZE, 3))
    return noise * np.linspace(0, 0.3, SIZE)[:, None], jax.random.split(jax.random.key(1), 3)


@pytest.fixture(scope="module")
def vit(images):
    model = VisionTransformer(**OPTIONS, num_heads=2)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images[0])
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=0.3, size=x.shape)), shapes)


@pytest.mark.parametrize("share", [0.4, 0.5, 0.75])
@pytest.mark.parametrize("name", SHAREABLE)
def test_a_share_is_a_share_of_the_operations_of_keep(name, share):
    policy = parse(f"{name}:{share}")
    got = operations(policy, VIT) / operations(Keep(), VIT)
    # One step of each budget changes the operations by less than this.
    assert share - 0.035 < got <= share
    assert mean_tokens(policy, VIT) < 196


def test_the_operations_are_those_of_the_network():
    """Against XLA's count, which has norms, softmax, GELU and the head besides."""
    model = VisionTransformer(num_classes=10)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    for text in ("keep", "drop:98", "merge:97@2"):

        def run(variables, image, text=text):
            return classify(model, variables, image, text)

        counted = jax.jit(run).lower(variables, image).cost_analysis()["flops"]
        assert 0.93 < operations(parse(text), model.shape) / counted < 1


@pytest.mark.parametrize("text", ONE_OF_EACH)
def test_counts_are_the_tokens_that_the_layers_are_given(vit, images, text):
    """Seen from outside: the shapes that each block's attention and MLP get."""
    from flax import linen as nn

    model, variables = vit
    policy, prefix, seen = parse(text), model.shape.prefix, []

    def watch(call, args, kwargs, context):
        if context.module.name in ("norm1", "norm2"):
            seen.append(args[0].shape[1] - prefix)
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        inputs = prepare(model, images[0], policy, **NORMALISATION, key=images[1])
        jax.eval_shape(lambda v: forward(model, v, inputs, policy), variables)
    counts = policy.counts(model.shape)
    assert seen == [n for i in range(2) for n in (counts[i], counts[i + 1])]


@pytest.mark.parametrize("text", ONE_OF_EACH)
def test_images_are_classified_alike_alone_jitted_and_mapped(vit, images, text):
    model, variables = vit

    @jax.jit
    def run(image, key):
        return classify(model, variables, image, text, key=key)

    image, keys = images
    whole = run(image, keys)
    assert whole.shape == (3, 5) and np.isfinite(whole).all()
    np.testing.assert_allclose(run(image[1:2], keys[1:2])[0], whole[1], rtol=2e-3, atol=2e-3)
    mapped = jax.vmap(lambda x, k: run(x[None], k[None])[0])(image, keys)
    np.testing.assert_allclose(mapped, whole, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("text", ONE_OF_EACH)
def test_each_patch_is_shown_by_a_token_or_none(vit, images, text):
    model, variables = vit
    policy = parse(text)
    where = jax.jit(lambda x, keys: shown(model, variables, x, policy, **NORMALISATION, key=keys))
    where = np.asarray(where(*images)).reshape(3, -1)
    left = policy.counts(model.shape)[-1]
    for row in where:
        numbers = set(row[row >= 0])
        assert max(numbers) < left
        if not text.startswith(("zero", "drop", "random")):
            assert numbers == set(range(left)) and (row >= 0).all()
        elif not text.startswith("zero"):
            assert len(numbers) == (row >= 0).sum() == left


@pytest.mark.parametrize("text", ["drop:20@1", "pool:20", "merge:31@1", "cluster:20", "evit:20"])
def test_gradients_are_finite_and_reach_every_parameter(vit, images, text):
    model, variables = vit
    grads = jax.jit(jax.grad(lambda v: classify(model, v, images[0], text)[:, 0].sum()))(variables)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path


@pytest.mark.parametrize("zero_at", ["pixels", "normalized"])
def test_zero_masks_before_or_after_normalisation(vit, images, zero_at):
    image = images[0]
    keep = patch_mask(image, patch_size=PATCH, threshold=100.0)
    assert 0 < keep.sum() < keep.size
    got = prepare(vit[0], image, parse("zero", zero_at=zero_at), **NORMALISATION).image
    black = normalize(mask_patches(image, keep, patch_size=PATCH))
    mean_colour = mask_patches(normalize(image), keep, patch_size=PATCH)
    np.testing.assert_array_equal(got, black if zero_at == "pixels" else mean_colour)


def test_zero_leaves_what_reaches_a_threshold_or_the_best(images):
    image = images[0]
    for score in ("relative", "reblur"):
        measure = FOCUS_MEASURES[score](image, patch_size=PATCH)
        kept = parse("zero:threshold", score=score).kept(image, patch_size=PATCH)
        np.testing.assert_array_equal(kept, measure >= THRESHOLDS[score])
    best = np.asarray(parse("zero:10", score="reblur").kept(image, patch_size=PATCH))
    for row, values in zip(best, np.asarray(measure), strict=True):
        assert row.sum() == 10 and values[row].min() >= values[~row].max()
    assert parse("zero:0.25").kept(image, patch_size=PATCH).sum() == 3 * 16
    with pytest.raises(ValueError, match="8×8; use zero:64 or fewer"):
        parse("zero:65").kept(image, patch_size=PATCH)


def test_tokens_are_the_mean_over_the_blocks():
    shape = ViTShape((4, 4), depth=4)
    assert mean_tokens(parse("drop:8"), shape) == 8
    assert mean_tokens(parse("drop:8@1"), shape) == (16 + 3 * 8) / 4
    assert mean_tokens(parse("cluster:8@2"), shape) == (2 * 16 + 2 * 8) / 4
    assert mean_tokens(parse("cluster:12+8@1+3"), shape) == (16 + 2 * 12 + 8) / 4
    assert mean_tokens(parse("tome:3"), shape) == (16 + 13 + 10 + 7) / 4


def test_a_plan_is_needed_by_those_that_draw_one_and_by_no_other(vit, images):
    model, variables = vit
    image = normalize(images[0])
    with pytest.raises(ValueError, match="drop:9 chooses tokens from pixels: .*bvit.classify"):
        model.apply(variables, image, policy=parse("drop:9"))
    plan = parse("drop:9").plan(images[0], model.shape)
    with pytest.raises(ValueError, match="needs no plan"):
        model.apply(variables, image, plan=plan)
    with pytest.raises(ValueError, match="for these 3 images.*got one for 2"):
        other = parse("drop:9").plan(images[0][:2], model.shape)
        model.apply(variables, image, policy=parse("drop:9"), plan=other)

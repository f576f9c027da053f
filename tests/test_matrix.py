"""The public API under every transformation and dtype of JAX that its documentation promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import bvit
from bvit import image, sharding
from bvit.image.focus_measures import FOCUS_MEASURES
from bvit.tokens.grammar import POLICIES

SIDE, PATCH, SMALL = 16, 8, {"kernel_size": 5}
KEY = jax.random.key(0)
KERNEL = np.outer([0.25, 0.5, 0.25], [0.25, 0.5, 0.25]).astype(np.float32)
# What gives images of the image's dtype.
IMAGES = {
    "gaussian_blur": lambda x: bvit.gaussian_blur(x, 1.0, **SMALL),
    "random_gaussian_blur": lambda x: bvit.random_gaussian_blur(KEY, x, **SMALL),
    "region_blur": lambda x: bvit.region_blur(KEY, x, **SMALL),
    "mask_patches": lambda x: bvit.mask_patches(
        x, np.zeros((*x.shape[:-3], 2, 2), bool), patch_size=PATCH
    ),
    "anisotropic_gaussian_blur": lambda x: image.anisotropic_gaussian_blur(
        x, 1.0, 2.0, 0.3, **SMALL
    ),
    "box_blur": lambda x: image.box_blur(x, 3.0, **SMALL),
    "convolve": lambda x: image.convolve(x, KERNEL),
    "defocus_blur": lambda x: image.defocus_blur(x, 1.5, **SMALL),
    "motion_blur": lambda x: image.motion_blur(x, 3.0, 0.3, **SMALL),
    "glass_blur": lambda x: image.glass_blur(KEY, x, 0.7),
    "normalize": image.normalize,
    "random_anisotropic_gaussian_blur": lambda x: image.random_anisotropic_gaussian_blur(
        KEY, x, sigma_along_range=(1.0, 1.0), **SMALL
    ),
    "random_box_blur": lambda x: image.random_box_blur(KEY, x, width_range=(1.0, 3.0), **SMALL),
    "random_color_jitter": lambda x: image.random_color_jitter(
        KEY, x, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
    ),
    "random_defocus_blur": lambda x: image.random_defocus_blur(
        KEY, x, radius_range=(0.5, 1.5), **SMALL
    ),
    "random_glass_blur": lambda x: image.random_glass_blur(KEY, x, **SMALL),
    "random_motion_blur": lambda x: image.random_motion_blur(
        KEY, x, length_range=(1.0, 3.0), **SMALL
    ),
    "random_shake_blur": lambda x: image.random_shake_blur(
        KEY, x, length_range=(1.0, 3.0), **SMALL
    ),
    "random_variable_gaussian_blur": lambda x: image.random_variable_gaussian_blur(KEY, x, **SMALL),
    "random_zoom_blur": lambda x: image.random_zoom_blur(KEY, x),
    "sensor_noise": lambda x: image.sensor_noise(KEY, x, read=0.01, shot=0.01),
    "variable_gaussian_blur": lambda x: image.variable_gaussian_blur(
        x, np.ones(x.shape[:-1], np.float32), **SMALL
    ),
    "zoom_blur": lambda x: image.zoom_blur(x, 1.1),
    "grayscale": image.grayscale,
    "corrupt": lambda x: image.corruptions.corrupt(KEY, x, name="defocus_blur", severity=1),
    "wiener": lambda x: image.deblur.wiener(x, KERNEL),
    "richardson_lucy": lambda x: image.deblur.richardson_lucy(x, KERNEL, iterations=2),
}
# What measures an image, in float32 whatever its dtype is.
MEASURES = {
    "patch_laplacian_variance": lambda x: bvit.patch_laplacian_variance(x, patch_size=PATCH),
    "estimate_sigma": image.estimate_sigma,
    **{
        name: functools.partial(measure, patch_size=PATCH)
        for name, measure in FOCUS_MEASURES.items()
    },
}
MASKS = {"patch_mask": lambda x: bvit.patch_mask(x, patch_size=PATCH)}
FUNCTIONS = IMAGES | MEASURES | MASKS
# Modules, checks, and what takes no image: tried elsewhere.
OTHERS = {"check_image", "corruptions", "deblur", "region_mask", "to_float"}
# The focus map and what is estimated beside it have tests like these in tests/image/test_focus_map.
OTHERS |= {"BlurMap", "Motion", "blur_map", "estimate_motion", "focus_map"}
SIZES = {"corrupt": 24}  # pixels a side, the least for ImageNet-C's kernels


def batch(name, n=2, dtype=np.float32):
    side = SIZES.get(name, SIDE)
    pixels = np.random.default_rng(0).uniform(0.1, 0.9, (n, side, side, 3))
    return jnp.asarray(pixels, dtype)


def draws(name):
    """Whether the images of a batch draw differently from each alone."""
    return name.startswith("random") or name in ("region_blur", "glass_blur", "sensor_noise")


def test_every_public_function_of_images_is_here():
    assert set(image.__all__) - OTHERS <= set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jit_and_an_empty_batch(name):
    function, pixels = FUNCTIONS[name], batch(name)
    eager, jitted = function(pixels), jax.jit(function)(pixels)
    np.testing.assert_allclose(np.float64(jitted), np.float64(eager), rtol=1e-4, atol=2e-4)
    empty = function(pixels[:0])
    assert empty.shape == (0, *eager.shape[1:]) and empty.dtype == eager.dtype


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap(name):
    """One image at a time is the batch, where nothing is drawn."""
    function, pixels = FUNCTIONS[name], batch(name)
    mapped, whole = jax.vmap(function)(pixels), function(pixels)
    assert mapped.shape == whole.shape and mapped.dtype == whole.dtype
    if not draws(name):
        np.testing.assert_allclose(np.float64(mapped), np.float64(whole), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", IMAGES | MEASURES)
def test_gradients_are_finite_also_of_a_flat_image(name):
    slope = jax.jit(jax.grad(lambda x: FUNCTIONS[name](x).astype(jnp.float32).sum()))
    for pixels in (batch(name), jnp.full_like(batch(name), 0.5), jnp.zeros_like(batch(name))):
        assert np.isfinite(slope(pixels)).all()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(name, dtype):
    pixels = batch(name, dtype=dtype)
    found, exact = FUNCTIONS[name](pixels), FUNCTIONS[name](pixels.astype(jnp.float32))
    assert found.dtype == (exact.dtype if name in MEASURES | MASKS else dtype)
    assert np.isfinite(np.float32(found)).all()
    if name in IMAGES and name != "wiener":  # which divides by what is next to nothing
        np.testing.assert_allclose(np.float32(found), np.float32(exact), atol=0.1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_x64(name):
    """Images keep float64; measures stay float32, as they say."""
    with jax.enable_x64(True):
        found = FUNCTIONS[name](batch(name, dtype=np.float64))
        wanted = np.float64 if name in IMAGES else bool if name in MASKS else np.float32
        assert found.dtype == wanted
        narrow = FUNCTIONS[name](batch(name, dtype=np.float32))
        assert narrow.dtype == (np.float32 if name in IMAGES else wanted)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_shard_map(name):
    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    place = P(sharding.BATCH_AXES)
    mapped = jax.shard_map(FUNCTIONS[name], mesh=mesh, in_specs=place, out_specs=place)
    pixels = batch(name, 4)
    found, whole = jax.jit(mapped)(pixels), FUNCTIONS[name](pixels)
    assert found.shape == whole.shape and found.dtype == whole.dtype
    if not draws(name):
        np.testing.assert_allclose(np.float64(found), np.float64(whole), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_nan_on_the_way(name):
    with jax.debug_nans(True):
        for pixels in (batch(name), jnp.full_like(batch(name), 0.5), jnp.zeros_like(batch(name))):
            FUNCTIONS[name](pixels)


# Policies as typed on a grid of 4×4 patches and two blocks.
TYPED = {
    "keep": "keep",
    "zero": "zero",
    "drop": "drop:8",
    "pool": "pool:8",
    "random": "random:8",
    "merge": "merge:7",
    "cluster": "cluster:8@1",
    "tome": "tome:2",
    "pitome": "pitome:2",
    "atc": "atc:0.8",
    "evit": "evit:0.8",
}


@functools.cache
def tiny():
    size = {"image_size": SIDE, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2}
    model = bvit.models.create("vit_tiny_patch16_224", num_classes=3, **size)
    return model, jax.jit(model.init)(KEY, jnp.zeros((1, SIDE, SIDE, 3)))


def classifier(name):
    model, variables = tiny()
    options = {"mean": (0.5,) * 3, "std": (0.25,) * 3}

    def classify(x):
        keys = {}
        if bvit.tokens.parse(TYPED[name]).draws:
            keys = {"key": jnp.broadcast_to(KEY, (len(x),))}
        return bvit.classify(model, variables, x, TYPED[name], **options, **keys)

    return classify


def test_every_policy_is_here():
    assert set(TYPED) == set(POLICIES)


@pytest.mark.parametrize("name", TYPED)
def test_classify_under_jit_grad_and_shard_map(name):
    classify, pixels = classifier(name), batch("", 4)
    whole = jax.jit(classify)(pixels)
    assert whole.dtype == jnp.float32 and np.isfinite(whole).all()
    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    place = P(sharding.BATCH_AXES)
    mapped = jax.shard_map(classify, mesh=mesh, in_specs=place, out_specs=place)
    np.testing.assert_allclose(jax.jit(mapped)(pixels), whole, rtol=1e-3, atol=1e-4)
    slope = jax.jit(jax.grad(lambda x: classify(x).sum()))
    for one in (pixels, jnp.full_like(pixels, 0.5)):
        assert np.isfinite(slope(one)).all()


@pytest.mark.parametrize("name", TYPED)
def test_classify_in_other_dtypes(name):
    for dtype in (jnp.float16, jnp.bfloat16):
        found = jax.jit(classifier(name))(batch("", dtype=dtype))
        assert found.dtype == jnp.float32 and np.isfinite(found).all()
    with jax.enable_x64(True):
        found = jax.jit(classifier(name))(batch("", dtype=np.float64))
        assert found.dtype == jnp.float32 and np.isfinite(found).all()


@pytest.mark.parametrize("name", TYPED)
def test_classify_with_debug_nans_and_an_empty_batch(name):
    with jax.debug_nans(True):
        jax.jit(classifier(name))(jnp.full((2, 16, 16, 3), 0.5))
    assert jax.jit(classifier(name))(jnp.zeros((0, 16, 16, 3))).shape == (0, 3)

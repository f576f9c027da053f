"""What an error shows of a value: one line, however large the value is."""

import jax
import numpy as np
import pytest

import bvit
from bvit import image
from bvit.image.checks import MOST_SHOWN, short

KEY = jax.random.key(0)
PIXELS = np.full((32, 32, 3), 0.5, np.float32)
LIST = np.random.default_rng(0).random((64, 64, 3)).tolist()
LONG = "x" * 100_000

WRONG = {
    "an image": lambda: bvit.gaussian_blur(LIST, 1.0),
    "an image to draw for": lambda: bvit.random_gaussian_blur(KEY, LIST),
    "an image to measure": lambda: bvit.patch_laplacian_variance(LIST, patch_size=8),
    "an image to mask": lambda: bvit.mask_patches(LIST, np.ones((8, 8), bool), patch_size=8),
    "an image to convert": lambda: image.to_float(LIST),
    "an image to convolve": lambda: image.convolve(LIST, np.ones((3, 3), np.float32)),
    "a kernel": lambda: image.convolve(PIXELS, LIST),
    "a kernel size": lambda: bvit.gaussian_blur(PIXELS, 1.0, kernel_size=LIST),
    "a patch size": lambda: bvit.patch_laplacian_variance(PIXELS, patch_size=LIST),
    "which to remove": lambda: bvit.patch_mask(PIXELS, patch_size=8, remove=LIST),
    "a severity": lambda: image.corruptions.corrupt(
        KEY, PIXELS, name="defocus_blur", severity=LIST
    ),
    "sigmas": lambda: bvit.gaussian_blur(np.stack([PIXELS] * 99), -np.ones(99)),
    "a policy": lambda: bvit.tokens.parse(LONG),
    "a policy of numbers": lambda: bvit.tokens.parse(LIST),
    "a model": lambda: bvit.models.create(LONG),
    "a model's patches": lambda: bvit.models.create("vit_tiny_patch16_224", patch_size=LIST),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_error_shows_little_of_a_large_value(name):
    with pytest.raises(ValueError) as error:
        WRONG[name]()
    assert len(str(error.value)) < 750 and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [LIST, LONG, np.zeros(10**6), {i: i for i in range(999)}, {1}])
def test_a_value_is_short(value):
    assert len(short(value)) <= MOST_SHOWN + 30 and "\n" not in short(value)


def test_a_list_is_converted_as_the_error_says():
    with pytest.raises(ValueError, match="numpy.asarray"):
        bvit.gaussian_blur(LIST, 1.0)
    assert bvit.gaussian_blur(np.asarray(LIST), 1.0).shape == (64, 64, 3)

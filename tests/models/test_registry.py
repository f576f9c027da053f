"""The table of models: exact parameter counts for every row, and clear refusals."""

import math

import jax
import jax.numpy as jnp
import pytest

from bvit import models

# The published figures: torchvision's `num_params` for the CNNs (for GoogLeNet plus the auxiliary
# heads' 6,379,984), timm for the ViTs (results-imagenet.csv, and its models' own counts).
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet50_dilated": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "googlenet": 6_624_904 + 6_379_984,
    "vit_tiny_patch16_224": 5_717_416,
    "vit_tiny_patch32_224": 6_131_560,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch32_224": 22_878_952,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch32_224": 88_224_232,
    "vit_large_patch16_224": 304_326_632,
    "vit_large_patch32_224": 306_535_400,
    # For 224 px, with a head. timm's 22.06, 86.58 and 304.37 million are of features for 518 px.
    "vit_small_patch14_dinov2": 22_004_584,
    "vit_base_patch14_dinov2": 86_475_496,
    "vit_large_patch14_dinov2": 304_203_752,
    # timm's own models without the scales of LayerScale, which are folded.
    "vit_small_patch14_reg4_dinov2": 22_005_736,
    "vit_base_patch14_reg4_dinov2": 86_477_800,
    "vit_large_patch14_reg4_dinov2": 304_206_824,
    "vit_little_patch16_reg1_gap_256": 22_506_088,
    "vit_little_patch16_reg4_gap_256": 22_507_048,
    "vit_medium_patch16_reg1_gap_256": 38_867_944,
    "vit_medium_patch16_reg4_gap_256": 38_869_480,
    "vit_mediumd_patch16_reg4_gap_256": 64_088_552,
    "vit_betwixt_patch16_reg1_gap_256": 60_381_160,
    "vit_betwixt_patch16_reg4_gap_256": 60_383_080,
    "vit_base_patch32_clip_224": 88_225_000,
    "vit_base_patch16_clip_224": 86_568_424,
    "vit_large_patch14_clip_224": 304_204_776,
    "vit_base_patch32_clip_quickgelu_224": 88_225_000,
    "vit_base_patch16_clip_quickgelu_224": 86_568_424,
    "vit_large_patch14_clip_quickgelu_224": 304_204_776,
    "vit_base_patch16_siglip_224": 93_653_224,
    "vit_large_patch16_siglip_256": 316_981_224,
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192,
}


def _images(model, count):
    size = getattr(model, "image_size", 224)
    return jax.ShapeDtypeStruct((count, size, size, 3), jnp.float32)


def test_every_row_has_a_known_parameter_count():
    assert set(models.MODELS) == set(PARAMETERS)


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_parameter_count(name):
    model = models.create(name)
    images = _images(model, 1)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    shapes = [leaf.shape for leaf in jax.tree.leaves(variables["params"])]
    assert sum(math.prod(shape) for shape in shapes) == PARAMETERS[name]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_logits_are_float32_in_bfloat16_compute(name):
    model = models.create(name, num_classes=7, dtype=jnp.bfloat16)
    images = _images(model, 2)
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="did you mean .*vit_tiny_patch16_224"):
        models.create("vit_tiny_patch16")


def test_unknown_override_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="no option 'patchsize'; did you mean patch_size"):
        models.create("vit_tiny_patch16_224", patchsize=8)


def test_linen_fields_are_not_overrides():
    with pytest.raises(ValueError, match="no option 'parent'"):
        models.create("vit_tiny_patch16_224", parent=None)

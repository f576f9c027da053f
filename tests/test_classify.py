"""The public forward pass: what it computes, and what it refuses before anything compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bvit
from bvit.image.pixels import normalize
from bvit.models.resnet import BasicBlock, ResNet
from bvit.models.vit import VisionTransformer

VIT = VisionTransformer(num_classes=5, image_size=32, patch_size=8, width=16, depth=1, num_heads=2)
CNN = ResNet(block=BasicBlock, depths=(1,), num_classes=5, width=8, stem="small")
IMAGES = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))


@pytest.mark.parametrize("model", [VIT, CNN], ids=["vit", "cnn"])
def test_keep_is_the_model_on_normalised_images(model):
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    want = model.apply(variables, normalize(IMAGES, (0.5,) * 3, (0.2,) * 3), train=False)
    got = bvit.classify(model, variables, IMAGES, mean=(0.5,) * 3, std=(0.2,) * 3)
    np.testing.assert_array_equal(got, want)


def test_zero_suits_a_cnn_and_the_other_policies_do_not():
    variables = CNN.init(jax.random.key(0), IMAGES, train=False)
    dark = 0.01 * IMAGES  # under the paper's threshold everywhere
    masked = bvit.classify(CNN, variables, dark, "zero")
    np.testing.assert_array_equal(masked, bvit.classify(CNN, variables, 0 * IMAGES))
    with pytest.raises(ValueError, match="reduces the tokens of a ViT, and ResNet has none"):
        bvit.classify(CNN, variables, IMAGES, "cluster:0.5")


@pytest.mark.parametrize(
    ("image", "policy", "message"),
    [
        (IMAGES[0], "keep", r"one batch, .*image\[None\]"),
        (jnp.ones((1, 32, 32, 3), jnp.uint8), "keep", "floating point"),
        (IMAGES, "clustre:0.5", "did you mean 'cluster'"),
        (IMAGES, "drop:17", "must be 1 to 16"),
        (IMAGES, "random:3", "needs a key"),
    ],
)
def test_bad_arguments_are_refused(image, policy, message):
    variables = VIT.init(jax.random.key(0), IMAGES, train=False)
    with pytest.raises(ValueError, match=message):
        bvit.classify(VIT, variables, image, policy)

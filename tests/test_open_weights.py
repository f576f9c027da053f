"""Published weights are known by their names, and prepared for as their authors do."""

import json
import sys
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image
from published import PICO, add_pico, write_weights
from safetensors.numpy import save_file

import bvit
from bvit import models
from bvit.data import decode, preprocessing
from bvit.data.preprocessing import HALF, by_name
from bvit.image.pixels import IMAGENET_MEAN
from bvit.published import Published

# OpenAI's CLIP, clip/clip.py.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Writes weights of a tiny ViT under a name; returns their path."""
    add_pico(monkeypatch)
    return lambda name, **options: write_weights(tmp_path / name, num_classes=7, **options)


# As timm 1.0.31's `default_cfgs` and torchvision 0.28's weights enums have them: mean, short side,
# interpolation.
PUBLISHED = {
    ("deit_tiny_patch16_224", "deit_tiny_patch16_224.safetensors"): ("imagenet", 248, "bicubic"),
    ("vit_tiny_patch16_224", "deit_tiny_patch16_224.safetensors"): ("imagenet", 248, "bicubic"),
    ("deit_base_distilled_patch16_384", "model.pth"): ("imagenet", 384, "bicubic"),
    ("vit_small_patch16_224", "model.safetensors"): ("half", 248, "bicubic"),
    ("vit_base_patch16_384", "augreg.npz"): ("half", 384, "bicubic"),
    ("vit_base_patch16_224", "timm/vit_base_patch16_224.mae"): ("imagenet", 248, "bicubic"),
    ("resnet50", "resnet50-0676ba61.pth"): ("imagenet", 256, "bilinear"),
    ("resnet50", "resnet50-11ad3fa6.pth"): ("imagenet", 232, "bilinear"),
    ("resnet101", "resnet101-cd907fc2.pth"): ("imagenet", 232, "bilinear"),
    ("resnet152", "resnet152-f82ba261.pth"): ("imagenet", 232, "bilinear"),
    ("resnet50", "timm/resnet50.a1_in1k"): ("imagenet", 235, "bicubic"),
    ("resnet50", "timm/resnet50.a1h_in1k"): ("imagenet", 248, "bicubic"),
    ("resnet101", "timm/resnet101.a1h_in1k"): ("imagenet", 235, "bicubic"),
    ("resnet34", "timm/resnet34.ra4_e3600_r224_in1k"): ("half", 248, "bicubic"),
    ("vit_small_patch14_224", "vit_small_patch14_dinov2.pth"): ("imagenet", 224, "bicubic"),
    ("vit_base_patch16_224", "clip_224.openai_ft_in1k"): ("clip", 248, "bicubic"),
    ("vit_large_patch14_224", "patch14_clip_224.openai_ft_in1k"): ("clip", 224, "bicubic"),
    ("vit_large_patch14_224", "patch14_clip_224.laion2b_ft_in1k"): ("half", 224, "bicubic"),
    ("vit_base_patch16_224", "vit_base_patch16_siglip_224"): ("half", 248, "bicubic"),
    ("vit_base_patch16_384", "vit_base_patch16_siglip_384"): ("half", 426, "bicubic"),
    ("vit_medium_patch16_224", "timm/vit_medium_patch16_reg4_gap_256.sbb_in1k"): (
        "half",
        235,
        "bicubic",
    ),
    ("vit_medium_patch16_reg4_gap_384", "timm/vit_medium_patch16_reg4_gap_384.sbb2_in1k"): (
        "half",
        384,
        "bicubic",
    ),
    ("resnet50", "timm/resnet50.gluon_in1k"): ("imagenet", 256, "bicubic"),
    ("vgg16_bn", "timm/vgg16_bn.tv_in1k"): ("imagenet", 256, "bilinear"),
    ("googlenet", "googlenet-1378be20.pth"): ("imagenet", 256, "bilinear"),
}


@pytest.mark.parametrize(("model", "file"), PUBLISHED)
def test_each_family_is_prepared_as_its_authors_do(model, file):
    mean, short_side, interpolation = PUBLISHED[model, file]
    found = by_name(model, file, 384 if "384" in model else 224)
    assert found.mean == {"half": HALF, "clip": OPENAI_MEAN, "imagenet": IMAGENET_MEAN}[mean]
    assert (found.short_side, found.interpolation) == (short_side, interpolation)


def test_a_file_is_opened_by_its_name_alone(weights, tmp_path):
    path = weights("deit_pico_patch16_224-0123abcd.safetensors")
    model, variables, preprocess = bvit.pretrained.open(path)
    named, _, same = bvit.pretrained.open("deit_pico_patch16_224", path)
    assert model == named and preprocess == same and model.num_classes == 7
    assert Published("", str(path)).preprocess == preprocess  # of the commands
    pixels = np.random.default_rng(0).integers(0, 256, (300, 250, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    images = preprocess(tmp_path / "image.png", pixels)
    wanted = decode.center_crop(pixels, size=224, short_side=248, interpolation="bicubic")
    np.testing.assert_allclose(images, np.stack([wanted, wanted]) / np.float32(255))
    mean, std = preprocess.mean, preprocess.std
    classify = partial(bvit.classify, model, mean=mean, std=std)
    logits = jax.jit(classify)(variables, images)
    assert logits.shape == (2, 7) and np.isfinite(logits).all()


def test_size_and_pooling_follow_from_name_and_arrays(weights):
    path = weights("deit_pico_patch16_384.safetensors", image_size=384, pool="mean")
    model, _, preprocess = bvit.pretrained.open(path)
    assert model.image_size == preprocess.image_size == 384 and model.pool == "mean"


def test_a_model_made_for_256_pixels_is_known_at_384(weights, monkeypatch):
    options = {"registers": 4, "pool": "mean"}
    name = "vit_pico_patch16_reg4_gap_256"
    monkeypatch.setitem(models.MODELS, name, partial(PICO, image_size=256, **options))
    for size in (256, 384):
        path = weights(f"vit_pico_patch16_reg4_gap_{size}.safetensors", image_size=size, **options)
        model, _, preprocess = bvit.pretrained.open(path)
        assert model.image_size == preprocess.image_size == size
        assert model.registers == 4 and model.pool == "mean"


def test_timms_config_is_followed(weights):
    path = weights("model.safetensors", image_size=64)
    cfg = {"input_size": [3, 64, 64], "crop_pct": 0.8, "interpolation": "bilinear"}
    cfg |= {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}
    settings = {"architecture": "deit_pico_patch16_224", "pretrained_cfg": cfg}
    beside = path.with_name("config.json")
    beside.write_text(json.dumps(settings))
    model, _, preprocess = bvit.pretrained.open(path)
    assert model.image_size == 64
    assert preprocess == preprocessing.Preprocessing(64, 80, "bilinear", (0.1, 0.2, 0.3), (1, 1, 1))
    assert Published("", str(path)).preprocess == preprocess
    settings["pretrained_cfg"]["crop_mode"] = "squash"
    beside.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="squash"):
        bvit.pretrained.open(path)


def test_what_can_not_be_opened_is_an_error_with_a_remedy(weights, tmp_path):
    path = weights("unknown.safetensors")
    with pytest.raises(ValueError, match="--model=NAME"):
        bvit.pretrained.open(path)
    with pytest.raises(ValueError, match="did you mean deit_pico"):
        bvit.pretrained.open("deit_pico_patch16", path)
    save_file({"params/norm/scale": np.ones(8)}, tmp_path / "features.safetensors")
    with pytest.raises(ValueError, match="no classifier"):
        bvit.pretrained.open("deit_pico_patch16_224", tmp_path / "features.safetensors")
    _, _, preprocess = bvit.pretrained.open("deit_pico_patch16_224", path)
    with pytest.raises(ValueError, match="uint8 RGB"):
        preprocess(np.zeros((9, 9, 3)))


def test_without_safetensors_the_error_names_the_package(weights, monkeypatch):
    path = weights("deit_pico_patch16_224.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        bvit.pretrained.open(path)

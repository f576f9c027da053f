"""Published weights, tested without any training: blur, and what fewer tokens cost.

    python -m bvit.main --config=configs/pretrained.py:model=vit_tiny_patch16_224,data=folder \
        --config.data.dir=DIR --config.init_from=deit_tiny_patch16_224.safetensors

`model` is a row of the model table, `init_from` a file of its published weights, or
hf:timm/deit_tiny_patch16_224.fb_in1k after pip install ".[hub]". `data` is folder, with the class
folders in DIR/val, or a tfds set. No training images are needed. Folders that are named by WordNet
ids are read in ImageNet's order.

For labels or a quick table, `bvit.predict` and `bvit.evaluate --weights=FILE` need no config.

Images are prepared as timm's evaluation does for these weights: the short side resized to 256 by
bicubic interpolation, a centre crop of 224, ImageNet's mean and standard deviation. AugReg's ViTs
want --config.data.mean=0.5,0.5,0.5 --config.data.std=0.5,0.5,0.5 instead, torchvision's CNNs
--config.data.interpolation=bilinear. The paper's Tables 1 and 2 are these runs with model=resnet50,
vgg19 and googlenet on data=imagenet2012: not yet run. DeiT-Tiny: docs/results.md.
"""

from ml_collections import ConfigDict

from bvit.config import default_config, parse_arguments
from bvit.models import is_vit

# Sigmas of the plot of accuracy against blur; the paper's 19 taps cut those above 3 off.
SIGMAS = (0, 0.5, 1, 1.5, 2, 2.5, 3, 4)


def get_config(arguments: str = "") -> ConfigDict:
    """Returns the locked config for `model=…,data=…`."""
    chosen = parse_arguments(arguments, model="resnet50", data="imagenet2012")
    config = default_config()
    config.data.name = chosen["data"]
    config.data.image_size = 64 if chosen["data"] == "photos" else 224
    config.data.interpolation = "bicubic"
    config.model.name = chosen["model"]
    config.init_head = True
    config.train.steps = 0
    if is_vit(chosen["model"]):
        config.eval.conditions = "sharp,blur,region"
        config.eval.policies = (
            "keep,zero,cluster:0.5,cluster:0.6,tome:0.5,atc:0.5,pitome:0.5,evit:0.5,drop:0.5,"
            "random:0.5,merge:0.5"
        )
    else:
        sigmas = [f"gaussian:{sigma:g}" for sigma in SIGMAS]
        config.eval.conditions = ",".join(["sharp", "blur", *sigmas])
        config.eval.policies = "keep"
    return config.lock()

"""A ViT that knows which patches are blurry: the paper's Table 5, and what its policies cost.

    python -m bvit.main --config=configs/vit_mask.py                 # embedded photographs
    python -m bvit.main --config=configs/vit_mask.py:folder --config.data.dir=DIR
    python -m bvit.main --config=configs/vit_mask.py:imagenet2012    # or any tfds set

`folder` takes class folders of images (DIR/train/CLASS/*, DIR/val/CLASS/*). On the embedded
photographs: three to five minutes on 2 CPU cores, table in docs/guide.md. On ten classes of
ImageNet (imagenette): tables in docs/results.md, measured with the policies of that time; with
today's, not yet run. imagenet2012 and other tfds sets: not yet run.
"""

from ml_collections import ConfigDict, config_dict

from bvit.config import default_config, parse_arguments


def get_config(arguments: str = "") -> ConfigDict:
    """Returns the locked config; `arguments` is the data set: photos, folder or a tfds name."""
    data = parse_arguments(arguments, data="photos")["data"]
    config = default_config()
    config.data.name = data

    # Fields of the ViT; None leaves what the name says.
    config.model.name = "vit_tiny_patch16_224"
    config.model.patch_size = config_dict.placeholder(int)
    config.model.width = config_dict.placeholder(int)
    config.model.depth = config_dict.placeholder(int)
    config.model.num_heads = config_dict.placeholder(int)
    config.model.pool = "cls"  # what the head reads: cls, mean or attention
    config.model.dropout = 0.0
    config.model.stochastic_depth = 0.0  # share of images that skip the last block, less before it
    config.model.remat = False  # recompute activations in the backward pass: less memory, more time

    config.train.condition = "sharp+blur+region"
    config.optimizer.clip_norm = 1.0
    if data == "photos":
        _photos(config)
    elif data == "imagenet2012":
        _imagenet(config)
    else:
        _small(config)
    return config.lock()


def _photos(config: ConfigDict) -> None:
    """Minutes on two CPU cores: 64 px crops, 64 patches of 8 px."""
    config.data.image_size = 64
    config.data.crop_scale = (0.45, 1.0)  # smaller crops would be enlarged, and so blurred
    config.model.patch_size = 8
    config.model.width = 128
    config.model.depth = 4
    config.model.num_heads = 4
    config.model.pool = "mean"
    config.tokens.policy = "keep,merge:0.5"
    config.train.steps = 1000
    config.train.batch_size = 64
    config.optimizer.warmup = 0.1
    config.eval.policies = "keep,zero,drop:0.5,merge:0.5,cluster:0.5"
    config.eval.every_steps = 500


def _small(config: ConfigDict) -> None:
    """A few thousand pictures on a laptop: 128 px, 64 patches of 16 px."""
    config.data.image_size = 128
    config.data.crop_scale = (0.25, 1.0)
    config.model.depth = 6
    config.model.pool = "mean"
    config.tokens.policy = "keep,merge:0.5,merge:0.3"
    config.train.epochs = 20.0
    config.train.batch_size = 64
    config.train.label_smoothing = 0.1
    config.optimizer.warmup = 0.07
    config.eval.policies = (
        "keep,zero,drop:0.5,pool:0.5,random:0.5,merge:0.5,merge:0.3,cluster:0.5,cluster:0.3,tome:8"
    )
    config.eval.every_steps = 1000


def _imagenet(config: ConfigDict) -> None:
    """ViT-S/16 on ImageNet, the recipe of Beyer et al. 2022 (arXiv:2205.01580). Not yet run."""
    config.data.image_size = 224
    config.model.name = "vit_small_patch16_224"
    config.model.pool = "mean"
    config.model.dtype = "bfloat16"
    config.train.epochs = 90.0
    config.train.batch_size = 1024
    config.train.mixup = 0.2
    config.optimizer.warmup = 0.09  # 10,000 steps
    config.optimizer.weight_decay = 0.1
    config.eval.batch_size = 1024
    config.eval.every_steps = 5000
    config.checkpoint.every_steps = 1000
    config.data.num_workers = 8

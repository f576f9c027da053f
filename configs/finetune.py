"""Published weights, fine-tuned so that blur costs less: what a practitioner would do first.

    python -m bvit.main --config=configs/finetune.py:data=imagenet2012
    python -m bvit.main --config=configs/finetune.py:model=resnet50,data=imagenet2012
    python -m bvit.main --config=configs/finetune.py:data=folder --config.data.dir=DIR

The weights come from the Hugging Face hub (pip install ".[hub]"), or with
--config.init_from=FILE from a .safetensors, .npz or .pth file. On ImageNet their head is kept.

A ViT (vit_small_patch16_224 by default) learns to work with fewer tokens. Each step draws a budget
of policy cluster, and learns from the labels and from the full pass, which is trained in the same
step. On small ViTs and ten classes that kept the accuracy of every token with half of them, with
the cluster policy of that time (docs/results.md). The recipe is AugReg's for fine-tuning (Steiner
et al. 2022, "How to train your ViT?", section 3.2, and the configs published with it): SGD with
momentum 0.9, batch 512, 20,000 steps on ImageNet, of which 500 warm up, a cosine, gradients clipped
at a norm of 1, no weight decay, no dropout, pixels scaled to [-1, 1]. AugReg starts weights that
have not seen ImageNet-1k at a rate of 0.03. These have seen it, and start at a tenth of that.

A CNN (resnet50, vgg19, …) is trained on half blurred, half sharp images, which the paper did not
try: 25,000 steps of 256, five epochs of ImageNet, at a tenth of the rate of its training. For
googlenet, which timm does not publish, give a file.

Neither has been run yet: ImageNet is not at hand.
"""

from ml_collections import ConfigDict

from bvit.config import default_config, parse_arguments
from bvit.models import is_vit
from configs.cnn_blur import CAUTIOUS

# The tags under which timm publishes weights trained in the way that each recipe goes on from.
VIT_TAG, CNN_TAG = "augreg_in21k_ft_in1k", "tv_in1k"
WARMUP_STEPS = 500
# AugReg scales pixels to [-1, 1].
HALF = (0.5, 0.5, 0.5)


def get_config(arguments: str = "") -> ConfigDict:
    """Returns the locked config for `model=…,data=…`."""
    chosen = parse_arguments(arguments, model="vit_small_patch16_224", data="imagenet2012")
    config = default_config()
    config.data.name = chosen["data"]
    config.data.image_size = 224
    config.model.name = chosen["model"]
    config.model.dtype = "bfloat16"
    config.init_head = chosen["data"] == "imagenet2012"
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.checkpoint.every_steps = 1000
    config.eval.every_steps = 5000
    if is_vit(chosen["model"]):
        _vit(config)
    else:
        _cnn(config)
    return config.lock()


def _vit(config: ConfigDict) -> None:
    """AugReg's fine-tuning, under random token budgets."""
    config.init_from = f"hf:timm/{config.model.name}.{VIT_TAG}"
    config.data.mean = HALF
    config.data.std = HALF
    config.tokens.policy = "cluster:0.5,cluster:0.33"
    config.train.condition = "sharp+blur+region"
    config.train.steps = 20_000
    config.train.batch_size = 512
    config.train.sandwich = True
    config.train.distill = 1.0
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = WARMUP_STEPS / config.train.steps
    config.optimizer.learning_rate = 0.003
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.eval.batch_size = 512
    config.eval.policies = (
        "keep,zero,drop:0.5,pool:0.5,random:0.5,merge:0.5,cluster:0.5,cluster:0.33,tome:0.5"
    )


def _cnn(config: ConfigDict) -> None:
    """The published training (`cnn_blur`), shortened, at a tenth of its rate, on the mix."""
    config.init_from = f"hf:timm/{config.model.name}.{CNN_TAG}"
    config.train.condition = "mix"
    config.train.steps = 25_000
    config.train.batch_size = 256
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 0.001 if config.model.name in CAUTIOUS else 0.01
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_all = True
    config.eval.batch_size = 256
    config.eval.conditions = "sharp,blur"
    config.eval.policies = "keep"

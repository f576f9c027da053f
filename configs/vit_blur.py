"""The paper's Tables 3 and 4 on a published ViT: fine-tuned on blurred, mixed or sharp images.

    python -m bvit.main --config=configs/vit_blur.py:train=mix,policy=cluster:0.5,data=folder \
        --config.data.dir=DIR --config.init_from=deit_tiny_patch16_224.safetensors

`train` is sharp, mix, blur or another condition, `policy` what tokens are computed in training,
`model` a ViT of the model table. By default the weights are DeiT's (Touvron et al. 2021), from the
Hugging Face hub (pip install ".[hub]"). The head is new, unless `data` is imagenet2012.

All trainings, three seeds, six at a time on one GPU:

    bash launch/sweep.sh --at-once=6 runs/vit_blur policy='keep cluster:0.5' \
        train='sharp mix blur' seed='0 1 2' -- \
        --config='configs/vit_blur.py:train={train},policy={policy}' \
        --config.seed={seed} --config.data.dir=DIR --config.data.resize=224 \
        --config.init_from=deit_tiny_patch16_224.safetensors

Few epochs at a low rate do where the classes are among those that the weights know. Measured on ten
classes of ImageNet (imagenette), means of three seeds, top-1 in % on sharp / blurred / motion
images; 5 minutes on one H100. docs/results.md has intervals and more.

    every token    sharp 97.4 / 93.9 / 89.6, mix 97.2 / 95.7 / 92.1, blur 97.1 / 95.9 / 92.2
    cluster:0.5    sharp 97.2 / 93.4 / 88.2, mix 97.1 / 95.5 / 91.2, blur 97.0 / 95.5 / 91.8
"""

from ml_collections import ConfigDict

from bvit.config import default_config, parse_arguments


def get_config(arguments: str = "") -> ConfigDict:
    """Returns the locked config for `train=…,policy=…,data=…,model=…`."""
    chosen = parse_arguments(
        arguments, train="mix", policy="keep", data="folder", model="vit_tiny_patch16_224"
    )
    config = default_config()
    config.init_from = f"hf:timm/{chosen['model'].replace('vit', 'deit')}.fb_in1k"
    config.init_head = chosen["data"] == "imagenet2012"
    config.data.name = chosen["data"]
    config.data.image_size = 224
    config.data.interpolation = "bicubic"
    config.data.crop_scale = (0.35, 1.0)
    config.model.name = chosen["model"]
    config.model.dtype = "bfloat16"
    config.tokens.policy = chosen["policy"]
    config.train.condition = chosen["train"]
    config.train.epochs = 2.0
    config.train.batch_size = 128
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup = 0.1
    config.optimizer.clip_norm = 1.0
    config.eval.conditions = "sharp,blur,region,motion,defocus"
    reduced = "cluster:0.5,cluster:0.6,tome:0.5" if chosen["policy"] == "keep" else chosen["policy"]
    config.eval.policies = f"keep,{reduced}"
    config.eval.batch_size = 256
    return config.lock()

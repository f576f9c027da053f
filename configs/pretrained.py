"""The paper's Tables 1 and 2: weights trained on sharp pictures, tested sharp and blurred.

    python -m bvit.main --config=configs/pretrained.py:model=resnet50,data=imagenet2012 \
        --config.init_from=resnet50.safetensors

`model` is resnet50, vgg19, googlenet or any other row of the model table; `init_from` is a file of
published weights, or hf:timm/resnet50.tv_in1k with the extra that README.md names. Nothing is
trained: a run takes one pass over the test set, minutes on a GPU. To fine-tune the weights on
blurred pictures, as practitioners would first: configs/finetune.py. On ImageNet: not yet run.
"""

from ml_collections import ConfigDict

from bvit.config import default_config, parse_arguments

# Sigmas of the plot of accuracy against blur; with the paper's 19 taps those above 3 are cut off.
SIGMAS = (0, 0.5, 1, 1.5, 2, 2.5, 3, 4)


def get_config(arguments: str = "") -> ConfigDict:
    """Returns the locked config for `model=…,data=…`."""
    chosen = parse_arguments(arguments, model="resnet50", data="imagenet2012")
    config = default_config()
    config.data.name = chosen["data"]
    config.data.image_size = 64 if chosen["data"] == "photos" else 224
    config.model.name = chosen["model"]
    config.init_head = True
    config.train.steps = 0
    config.eval.conditions = ",".join(["sharp", "blur", *(f"gaussian:{s:g}" for s in SIGMAS)])
    config.eval.policies = "keep"
    return config.lock()

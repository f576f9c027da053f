"""The paper's Tables 3 and 4: CNNs trained from scratch on blurred, mixed or sharp pictures.

    python -m bvit.main --config=configs/cnn_blur.py:model=resnet50,train=mix,data=imagenet2012

`model` is resnet50, vgg19, googlenet, resnet50_dilated or any other row of the model table, `train`
is blur, mix or sharp, `data` is photos (embedded), folder (with --config.data.dir) or a tfds set.
The paper used a fifth of ImageNet: --config.data.train_split=train[:20%].

Hyperparameters are those of the published ResNet training (He et al. 2016, section 3.4): SGD with
momentum 0.9 and a rate of 0.1 for 256 pictures, weight decay 1e-4, 90 epochs, the rate divided by
ten after 30 and 60. VGG without batch norm and GoogLeNet start at 0.01, as torchvision trains them.
Full size costs days on one GPU. On ImageNet: not yet run. On ten of its classes (imagenette, 72 px,
4 epochs, seed 0; commands and more in docs/results.md), top-1 in % on sharp / blurred pictures:

    resnet18, 8 minutes on 2 CPU cores     sharp 62.9 / 36.0, mix 58.5 / 57.3, blur 54.5 / 56.2
    vgg11_bn, a quarter of the width, 3    sharp 24.6 / 14.0, mix 26.6 / 25.5, blur 28.1 / 29.3
    googlenet, 10                          sharp 48.7 / 31.3, mix 41.0 / 40.5, blur 47.0 / 48.0
"""

from ml_collections import ConfigDict, config_dict

from bvit.config import default_config, parse_arguments

# The batch that the published rate is for.
REFERENCE_BATCH = 256
# Networks that diverge at a rate of 0.1 (torchvision's reference trains them with 0.01).
CAUTIOUS = ("vgg11", "vgg13", "vgg16", "vgg19", "googlenet")
# Pictures smaller than this lose too much in a stem that divides their side by four.
SMALL_PICTURE = 96


def get_config(arguments: str = "") -> ConfigDict:
    """Returns the locked config for `model=…,train=…,data=…`."""
    chosen = parse_arguments(arguments, model="resnet50", train="mix", data="photos")
    config = default_config()
    config.data.name = chosen["data"]
    config.data.image_size = 64 if chosen["data"] == "photos" else 224
    config.model.name = chosen["model"]
    if chosen["model"].startswith("resnet"):
        small = config.data.image_size < SMALL_PICTURE
        config.model.stem = "small" if small else "imagenet"  # small: no early downsampling
        config.model.zero_init_residual = False  # start each block as the identity
    if chosen["model"].startswith("vgg"):  # None leaves what was published
        config.model.width = config_dict.placeholder(int)  # channels of the first stage
        config.model.hidden = config_dict.placeholder(int)  # units of the hidden linear layers

    config.train.condition = chosen["train"]
    config.train.epochs = 90.0
    config.train.batch_size = 64 if chosen["data"] == "photos" else REFERENCE_BATCH
    config.optimizer.name = "sgd"
    config.optimizer.schedule = "steps"
    config.optimizer.boundaries = (1 / 3, 2 / 3)
    rate = 0.01 if chosen["model"] in CAUTIOUS else 0.1
    config.optimizer.learning_rate = rate * config.train.batch_size / REFERENCE_BATCH
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_all = True

    config.eval.conditions = "sharp,blur"
    config.eval.policies = "keep"
    config.eval.batch_size = config.train.batch_size
    config.checkpoint.every_steps = 1000
    return config.lock()

"""Deblur or not: is it better to deblur an image before it is classified?

    python -m bvit.main --config=configs/deblur_or_not.py:run=runs/cnn --workdir=runs/deblur/cnn
    python -m bvit.main --config=configs/deblur_or_not.py:model=resnet50,data=imagenet2012 \
        --config.init_from=resnet50.safetensors --workdir=runs/deblur/resnet50
    python -m bvit.studies.deblurring runs/deblur/cnn --plot=deblur.png    # or several runs

The first two are evaluations; the third prints accuracies, costs and the quality of the images.

With `run`, a finished or stopped run of this project, its model, data and settings are taken, and
the weights of its newest checkpoint. Without, they are those of `model` and `data` (photos, folder
with --config.data.dir, or a tfds set), and `init_from` is a run directory or a file of weights.
Other images and methods: --config.eval.conditions=stored:motion,wiener_blind:stored:motion, see
`bvit.image.conditions`.

Measured with a ResNet-18 trained on sharp images (imagenette, 72 px, 4 epochs), seed 0, on 1,907
test images, top-1 in %; docs/results.md has intervals and models trained on blur. Two minutes on 2
CPU cores. PSNR and SSIM: not yet run.

                               blur, stored  blur, noisy  sigma 3, stored  sigma 3, noisy    ms
    direct                             35.9         35.4             18.6            18.8   2.1
    Wiener, known sigma                62.0         60.3             42.3            34.3   2.5
    Wiener, estimated sigma            56.7         56.8             37.8            32.4   2.5
    Richardson-Lucy, known             58.0         58.9          not run         not run  12.1
    (trained on blur, direct           56.2         56.1             45.8            45.9   2.1)
"""

from pathlib import Path

from ml_collections import ConfigDict

from bvit import config as config_lib
from bvit.config import default_config, parse_arguments

# The paper's blur, and one beyond it.
BLURS = ("blur", "gaussian:3")
# As a file holds the image without noise, and with a sensor's.
CAMERAS = ("stored", "noisy")
# How each is classified: directly, and deblurred with the known and with an estimated sigma.
METHODS = ("", "wiener:", "wiener_blind:")
# Takes several times as long as a small network, so it is evaluated on the paper's blur alone.
SLOW = "richardson_lucy:"


def get_config(arguments: str = "") -> ConfigDict:
    """Returns the locked config for `run=…`, or for `model=…,data=…`."""
    chosen = parse_arguments(arguments, run="", model="resnet50", data="imagenet2012")
    config = _of_run(chosen["run"]) if chosen["run"] else _of_weights(**chosen)
    config.init_head = True
    config.train.steps = 0
    config.eval.policies = "keep"
    config.eval.conditions = ",".join(
        f"{method}{camera}:{blur}"
        for blur in BLURS
        for camera in CAMERAS
        for method in (*METHODS, *([SLOW] if blur == BLURS[0] else []))
    )
    return config.lock()


def _of_run(run: str) -> ConfigDict:
    path = Path(run).expanduser()
    if not (path / "config.json").exists():
        raise ValueError(f"run must be a run directory: {run} has no config.json.")
    config = config_lib.load(path / "config.json").unlock()
    config.init_from = run
    return config


def _of_weights(model: str, data: str, run: str) -> ConfigDict:
    del run
    config = default_config()
    config.data.name = data
    config.data.image_size = 64 if data == "photos" else 224
    config.model.name = model
    return config

"""The road not taken: is it better to deblur a picture before it is classified?

    python -m bvit.main --config=configs/deblur_or_not.py:run=runs/cnn_blur
    python -m bvit.main --config=configs/deblur_or_not.py:model=resnet50,data=imagenet2012 \
        --config.init_from=resnet50.safetensors

With `run`, a finished or stopped run of this project, its model, data and settings are taken, and
the weights of its newest checkpoint. Without, they are those of `model` and `data` (photos, folder
with --config.data.dir, or a tfds set), and `init_from` is a run directory or a file of weights.
"""

from pathlib import Path

from ml_collections import ConfigDict

from bvit import config as config_lib
from bvit.config import default_config, parse_arguments
from bvit.image.conditions import DEBLURRING

# The paper's blur, and what lies below, within and beyond it.
BLURS = ("blur", "gaussian:3")
# As a file holds the picture without noise, and with a sensor's.
CAMERAS = ("stored", "noisy")


def get_config(arguments: str = "") -> ConfigDict:
    """Returns the locked config for `run=…`, or for `model=…,data=…`."""
    chosen = parse_arguments(arguments, run="", model="resnet50", data="imagenet2012")
    config = _of_run(chosen["run"]) if chosen["run"] else _of_weights(**chosen)
    config.init_head = True
    config.train.steps = 0
    config.eval.policies = "keep"
    config.eval.conditions = ",".join(
        ":".join(filter(None, (method, camera, blur)))
        for camera in CAMERAS
        for blur in BLURS
        for method in ("", *DEBLURRING)
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

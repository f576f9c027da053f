"""A tiny run over a folder of images, trained once for all tests that use a trained model."""

import functools
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from bvit import config as config_lib
from bvit.experiment import prepare
from bvit.interrupt import SignalWatch
from bvit.run import Run
from bvit.training.loop import train_and_evaluate
from configs.vit_mask import get_config

CLASSES = ("checks", "dots", "stripes")
SIZE = 32


def write_picture(path, seed, shape=(50, 70)):
    """Noise on the left, a plain colour on the right: an image that is blurry in one half."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*shape, 3), np.uint8)
    pixels[:, shape[1] // 2 :] = rng.integers(0, 256, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@functools.cache
def run_directory():
    """A finished run of two steps, its state in shards on all devices; its data is gone."""
    top = Path(tempfile.mkdtemp())
    with tempfile.TemporaryDirectory() as data:
        for split in ("train", "val"):
            for label, name in enumerate(CLASSES):
                for i in range(4):
                    write_picture(Path(data, split, name, f"{i}.png"), seed=10 * label + i)
        experiment = prepare(_config(data))
        run = Run.begin(top / "run", config_lib.to_dict(experiment.config))
        train_and_evaluate(experiment, run, SignalWatch())
    run.close()
    return run.path


def _config(data):
    config = get_config("folder")
    config.data.dir = data
    config.data.image_size = SIZE
    config.model.patch_size = 8
    config.model.width = 32
    config.model.depth = 1
    config.model.num_heads = 2
    config.train.condition = "sharp"
    config.train.steps = 2
    config.train.batch_size = 16
    config.train.ema_decay = 0.9
    config.tokens.policy = "merge:7"
    config.eval.conditions = "sharp"
    config.eval.policies = "keep"
    config.eval.batch_size = 8
    config.eval.every_steps = 0
    config.mesh.fsdp = 8
    return config

"""Every setting of a run in one place, with its default and its meaning."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder as _optional

# An error shows so many characters of what was typed.
MOST_SHOWN = 80


def default_config() -> ConfigDict:
    """Returns the settings shared by all experiments; a file in `configs/` changes what differs.

    The result is open; `get_config` of an experiment locks it, so that a misspelt key is an error.
    """
    c = ConfigDict()
    c.seed = 0  # of everything random: initial weights, data order, augmentation, test blurs
    # Weights to start from: a run directory, a file, or hf:<repository>; "" = random.
    c.init_from = ""
    c.init_head = False  # take their head too: same classes, in the same order

    c.data = ConfigDict()
    c.data.name = "photos"  # photos (embedded), folder, or the name of a tfds set
    c.data.dir = ""  # folder: where the class folders are; tfds: the data directory
    # The split, or of tfds a part of one: "" = train; train[:20%] is the paper's share of ImageNet.
    c.data.train_split = ""
    # tfds: "" = validation, or test where there is no validation. folder: all = every image of the
    # class folders, where there is no val beside them; "" = a tenth of them.
    c.data.test_split = ""
    # What is validated on, every eval.every_steps: a share of the training images ("0.1"), or the
    # name of a split; "" = nothing. The run's model is then the best one found, not the newest.
    c.data.valid = ""
    c.data.exclude = ""  # folder: a pattern of file names to leave out, as "copy_*"
    c.data.image_size = 64  # side of the image that the model sees, in pixels
    c.data.resize = 0  # evaluation: short side before the centre crop; 0 = image_size × 256/224
    c.data.interpolation = "bilinear"  # evaluation: of the resizing, bilinear or bicubic
    c.data.crop_scale = (0.08, 1.0)  # training: area of the random crop as a share of the image
    c.data.flip = True  # training: mirror half of the images
    c.data.mean = (0.485, 0.456, 0.406)  # normalisation of RGB in [0, 1]: ImageNet's mean
    c.data.std = (0.229, 0.224, 0.225)  # … and standard deviation
    c.data.num_workers = 0  # worker processes that decode; 0 = threads of this process
    c.data.on_error = "raise"  # an unreadable image: raise, or skip (counted in the log)

    c.model = ConfigDict()
    c.model.name = "vit_tiny_patch16_224"  # a row of bvit.models.MODELS
    c.model.dtype = "float32"  # of the computation: float32 or bfloat16; parameters are float32

    c.tokens = ConfigDict()
    # Which tokens training computes, see bvit.tokens.parse: name, name:tokens or name:share, as
    # cluster:0.5. Of several ("keep,merge:0.5") each step draws one, so that one checkpoint serves
    # every budget. zero alone is the paper's experiment, by the variance of the Laplacian.
    c.tokens.policy = "keep"
    # What patches are ranked by: laplacian (the paper's), relative, reblur, tenengrad or entropy.
    c.tokens.score = "laplacian"
    # The score from which a patch counts as sharp; None = the score's own (relative 0.07, laplacian
    # the paper's 100, …: bvit.image.focus_measures.THRESHOLDS).
    c.tokens.threshold = _optional(float)
    c.tokens.zero_at = "pixels"  # zero blanks in the "pixels" (black) or when "normalized" (mean)

    c.train = ConfigDict()
    c.train.condition = "mix"  # sharp, blur, mix (half and half), region, or several joined by +
    c.train.steps = _optional(int)  # length in updates, wins over epochs; 0 = evaluate only
    c.train.epochs = _optional(float)  # length in passes over the training set
    c.train.batch_size = 64  # images for an update, over all devices
    # Parts of a batch computed one after another, for less memory; batch norm normalises each part.
    c.train.accumulate = 1
    c.train.label_smoothing = 0.0  # share of the target spread over all classes
    # Random changes of colour, before the blur: strengths of brightness, contrast, saturation (each
    # up to 1) and hue (up to 0.5), as (0.4, 0.4, 0.4, 0.1); () = off.
    c.train.color_jitter = ()
    # RandAugment before the blur: operations for each image and their magnitude in [0, 1], as
    # (2, 0.3); () = off.
    c.train.rand_augment = ()
    c.train.mixup = 0.0  # α of Beta(α, α), by which pairs of images are mixed; 0 = off
    # The same, by which a box of one is pasted into the other; with mixup, each pair draws one.
    c.train.cutmix = 0.0
    c.train.ema_decay = 0.0  # moving average of the parameters, used in evaluation; 0 = off
    # Weight of the divergence from the logits that all tokens give in the same step: a forward pass
    # more for each step under another policy than keep. 0 = off; ViTs only.
    c.train.distill = 0.0
    c.train.distill_temperature = 1.0  # by which both logits are divided; above 1 softens them
    # Train with every token in each such step too: a backward pass more.
    c.train.sandwich = False
    c.train.skip_nonfinite = 0  # non-finite updates in a row that are skipped before stopping
    c.train.patience = 0  # validations without a better one after which training stops; 0 = never

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # adamw or sgd
    c.optimizer.schedule = "cosine"  # cosine, steps or constant, after a linear warm-up
    c.optimizer.learning_rate = 1e-3  # the peak
    c.optimizer.warmup = 0.0  # share of the training in which the rate rises from 0 to the peak
    c.optimizer.boundaries = ()  # steps: when to decay, as shares of the training
    c.optimizer.decay = 0.1  # steps: factor at each boundary
    c.optimizer.momentum = 0.9  # β₁ of AdamW, momentum of SGD
    c.optimizer.b2 = 0.999  # β₂ of AdamW
    c.optimizer.weight_decay = 0.05
    c.optimizer.decay_all = False  # decay biases, norms and embeddings too
    c.optimizer.clip_norm = _optional(float)  # largest global norm of the gradient; None = any

    c.eval = ConfigDict()
    c.eval.conditions = "sharp,blur,region"  # what is done to the test images
    # Which tokens the model computes, as tokens.policy; several separated by commas.
    c.eval.policies = "keep,zero"
    c.eval.batch_size = 64
    # Evaluate while training, for the curves: on the validation images, or without them on the test
    # images; 0 = only at the end.
    c.eval.every_steps = 0

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = 200
    c.checkpoint.keep = 3  # the newest so many are kept

    c.log = ConfigDict()
    c.log.every_steps = 10  # a line in metrics.jsonl and a point on the curves

    c.profile = ConfigDict()
    c.profile.steps = ()  # first and last training step to trace, as 10,20; () = none

    c.mesh = ConfigDict()  # how the devices are laid out; -1 takes what is left
    c.mesh.data = -1  # splits the batch
    c.mesh.fsdp = 1  # splits the batch and the parameters
    c.mesh.tensor = 1  # splits the ViT's heads and hidden units
    return c


# How a run is computed, not what it computes, and what becomes of images and updates that would
# stop it: a resumed run may change these.
RESUME_MAY_CHANGE = (
    "mesh",
    "log",
    "profile",
    "checkpoint",
    "train.accumulate",
    "train.skip_nonfinite",
    "data.num_workers",
    "data.on_error",
    "data.dir",
)

# What gives a training its length: a run may be made longer where its learning rates allow it.
LENGTH = {"train.steps", "train.epochs", "optimizer.warmup", "optimizer.boundaries"}


def parse_arguments(text: str, **defaults: str) -> dict[str, str]:
    """Reads the part of `--config=file.py:arguments` behind the colon.

    Args:
      text: "value" (of the first of `defaults`) and "name=value", separated by commas.
      **defaults: the arguments there are, with their defaults.

    Raises:
      ValueError: for an unknown name; it suggests the nearest.
    """
    values = dict(defaults)
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not equals:
            name, value = next(iter(defaults)), name
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"config arguments are {', '.join(defaults)}: got {name[:MOST_SHOWN]!r} in "
                f"{text[:MOST_SHOWN]!r}{hint}"
            )
        values[name] = value
    return values


def words(text: str) -> tuple[str, ...]:
    """Reads a list of names, "a,b"; brackets and quotes around them, as in Python, may stay."""
    return tuple(word for item in text.split(",") if (word := item.strip(" ()[]'\"")))


def valid_share(text: str) -> float | None:
    """The share of the training images that `data.valid` names; None if it names a split."""
    try:
        return float(text)
    except ValueError:
        return None


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values."""
    return json.loads(config.to_json())


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configs differ in what they compute, with both values.

    A key that is newer than the old config had its default.
    """
    old, new = flatten(old), flatten(new)
    defaults = complete({})
    old = {key: defaults[key] for key in new.keys() & defaults.keys()} | old
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and not any(key == free or key.startswith(free + ".") for free in RESUME_MAY_CHANGE)
    }


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config with dotted keys; keys that are newer than the run have their defaults.

    The options of a model have none: they depend on the model.
    """
    now = flatten(to_dict(default_config()))
    return {k: v for k, v in now.items() if not k.startswith("model.")} | flatten(config)


def load(path: Path) -> ConfigDict:
    """Reads a run's `config.json` back, over the defaults, locked.

    Raises:
      ValueError: the file is damaged, or of something else.
    """
    config, values = default_config(), read(path)
    with config.unlocked():
        config.model = ConfigDict()
        try:
            config.update(values)
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is no config of bvit: {error}") from error
    return config.lock()


def read(path: Path) -> dict[str, Any]:
    """Reads a run's `config.json` as plain values.

    Raises:
      ValueError: the file is damaged, or of something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no config of bvit.")
    return found


def read_json(path: Path) -> Any:
    """The contents of a JSON file.

    Raises:
      ValueError: the file is damaged.
    """
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # cut short, no text, or nested without end
        raise ValueError(f"{path} is damaged ({error}).") from error

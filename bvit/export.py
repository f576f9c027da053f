"""Writes a trained model for others: python -m bvit.export --run=runs/vit_mask --to=DIR

With --weights=FILE --model=NAME instead of --run, it writes published weights.

DIR gets model.stablehlo, the program, from pixels to logits, with the token policy and the
normalisation in it, for any number of images at once; parameters.safetensors, what it computes
with; and about.json: classes, size of the images, policy. It runs without bvit:

    import jax, safetensors.numpy
    program = jax.export.deserialize(open("DIR/model.stablehlo", "rb").read())
    parameters = safetensors.numpy.load_file("DIR/parameters.safetensors")
    logits = program.call(parameters, pixels)  # RGB in [0, 1], float32 [n, size, size, 3]
"""

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export as jax_export
from jaxtyping import Array, Float, PyTree
from safetensors.numpy import load_file, save

from bvit import outputs
from bvit.arguments import EXIT_BAD_INPUT, Parser, fail
from bvit.classify import classify
from bvit.data.imagenet import readable
from bvit.published import add_arguments, add_checkpoint, load
from bvit.run import Trained
from bvit.tokens import Policy

PROGRAM, PARAMETERS, ABOUT = "model.stablehlo", "parameters.safetensors", "about.json"
# What the program is lowered for; it runs on all of them.
PLATFORMS = ("cpu", "cuda", "tpu")
# Images that what was written is tried on.
TRIED = 3

EXIT_DIFFERS = 1


class ExportError(Exception):
    """What was written does not give the logits of the model."""


def main(arguments: Sequence[str]) -> None:
    """Writes the model that the arguments name."""
    parser = Parser("python -m bvit.export", __doc__)
    add_arguments(parser)
    add_checkpoint(parser)
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="where to write")
    parser.add_argument(
        "--policy",
        default="",
        metavar="NAME[:BUDGET]",
        help="which tokens are computed, as in bvit.predict; by default what the run trained with",
    )
    options = parser.parse_args(arguments)
    try:
        check_folder(options.to)
        trained = load(options)
        difference = export(trained, trained.policy(options.policy), options.to)
    except (ValueError, OSError) as error:
        fail(str(error), EXIT_BAD_INPUT)
    except ExportError as error:
        fail(str(error), EXIT_DIFFERS)
    for name in (PROGRAM, PARAMETERS, ABOUT):
        print(f"{options.to / name}  {(options.to / name).stat().st_size / 1e6:.2f} MB")
    print(
        f"Read back and tried on {TRIED} images, it differs from the model by {difference:.1e} "
        "of the largest logit."
    )


def export(trained: Trained, policy: Policy, folder: Path) -> float:
    """Writes a trained model as a StableHLO program and its parameters; reads them back and checks.

    Args:
      trained: of `bvit.run.Run.load`, or published weights.
      policy: which tokens are computed.
      folder: where to write; files of an earlier export are replaced, all others are kept.

    Returns:
      The largest difference between the logits of what was written and those of the model, as a
      share of the largest logit.

    Raises:
      ValueError: the policy draws random numbers, for which a program of pixels has no key; or a
        file is in the way that is not of an earlier export.
      ExportError: that difference is more than rounding.
    """
    if policy.draws:
        raise ValueError(
            f"policy {policy.label} needs a PRNG key for each image, and an exported model is "
            "given pixels alone: export another policy."
        )
    parameters = traverse_util.flatten_dict(jax.device_get(trained.variables), sep="/")
    size = trained.preprocess.image_size
    pixels = jax.ShapeDtypeStruct(
        jax_export.symbolic_shape(f"batch, {size}, {size}, 3"), jnp.float32
    )
    program = jax_export.export(jax.jit(_by_name(trained, policy)), platforms=PLATFORMS)
    serialized = bytes(program(parameters, pixels).serialize())
    contents = {PROGRAM: serialized, PARAMETERS: save(parameters)}
    _write(folder, contents, _about(trained, policy))
    return _check(trained, policy, folder)


def check_folder(folder: Path) -> None:
    """Raises an error where an export could not be written, before anything is loaded.

    Raises:
      ValueError: the place is a file, or a file there is not of an earlier export.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--to must be a folder: {folder} is a file; choose another name.")
    if folder.is_dir():
        for name in (PROGRAM, PARAMETERS, ABOUT):
            outputs.check(folder / name, _is_ours)


def _write(folder: Path, contents: Mapping[str, bytes], about: Mapping[str, object]) -> None:
    """Writes all files, or none where one is there that is not of an earlier export."""
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in contents:
        (folder / name).unlink(missing_ok=True)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    text = json.dumps({"written": outputs.MARK, **about, "sha256": sums}, indent=2) + "\n"
    # It comes first: it says of the others that they are of an export.
    outputs.write(folder / ABOUT, text.encode(), _is_ours)
    for name, content in contents.items():
        outputs.write(folder / name, content, _is_ours)


def _is_ours(path: Path) -> bool:
    """Whether a file is as an export wrote it, by its about.json."""
    about = path.with_name(ABOUT)
    if not about.is_file() or not outputs.is_marked(about):
        return False
    if path.name == ABOUT:
        return True
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        return json.loads(about.read_text())["sha256"][path.name] == found
    except (ValueError, KeyError, TypeError):
        return False


def _logits(
    trained: Trained, policy: Policy, variables: PyTree, image: Float[Array, "n h w 3"]
) -> Float[Array, "n classes"]:
    """Pixels in [0, 1] to logits."""
    mean, std = trained.preprocess.mean, trained.preprocess.std
    return classify(trained.model, variables, image, policy, mean=mean, std=std)


def _by_name(trained: Trained, policy: Policy) -> Callable[[dict[str, Array], Array], Array]:
    """(parameters by name, pixels) → logits, for any number of images.

    The models are written for batches of a known size. Mapped over single images, they never see
    the size that is not known; the compiler makes the same program of it.
    """

    def call(parameters: dict[str, Array], image: Array) -> Array:
        variables = traverse_util.unflatten_dict(parameters, sep="/")
        return jax.vmap(lambda one: _logits(trained, policy, variables, one[None])[0])(image)

    return call


def _about(trained: Trained, policy: Policy) -> dict[str, object]:
    size = trained.preprocess.image_size
    return {
        "input": f"float32 [n, {size}, {size}, 3], RGB in [0, 1]",
        "output": f"float32 [n, {len(trained.class_names)}], logits",
        "classes": [readable(name) for name in trained.class_names],
        "policy": policy.label,
        "model": trained.config.model.name,
        "step": trained.step,
        "platforms": PLATFORMS,
        "jax": jax.__version__,
    }


def _check(trained: Trained, policy: Policy, folder: Path) -> float:
    program = jax_export.deserialize((folder / PROGRAM).read_bytes())
    size = trained.preprocess.image_size
    pixels = np.random.default_rng(0).random((TRIED, size, size, 3), np.float32)
    got = np.asarray(program.call(load_file(folder / PARAMETERS), pixels))
    want = np.asarray(
        jax.jit(functools.partial(_logits, trained, policy))(trained.variables, pixels)
    )
    difference = float(np.abs(got - want).max() / np.abs(want).max())
    if not difference <= jnp.finfo(trained.model.dtype).eps ** 0.5:
        raise ExportError(
            f"{folder / PROGRAM} does not give the logits of the model: they differ by "
            f"{difference:.1e} of the largest."
        )
    return difference


if __name__ == "__main__":
    main(sys.argv[1:])

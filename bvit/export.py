"""Writes a trained model for others: python -m bvit.export --run=runs/vit_mask --to=DIR

With --weights=FILE --model=NAME instead of --run, it writes published weights.

DIR gets model.stablehlo, the program, from pixels to logits, with the token policy and the
normalisation in it, for any number of images at once; parameters.safetensors, what it computes
with; and about.json: classes, size of the images, policy. It runs without bvit:

    import jax, safetensors.numpy
    program = jax.export.deserialize(open("DIR/model.stablehlo", "rb").read())
    parameters = safetensors.numpy.load_file("DIR/parameters.safetensors")
    logits = program.call(parameters, pixels)  # RGB in [0, 1], float32 [n, size, size, 3]

With --onnx, DIR also gets model.onnx, the same program with the parameters inside, in float32:

    import onnxruntime
    session = onnxruntime.InferenceSession("DIR/model.onnx")
    (logits,) = session.run(None, {"pixels": pixels})
"""

import functools
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax import export as jax_export
from jaxtyping import Array, PyTree
from safetensors.numpy import load as load_parameters
from safetensors.numpy import save

from bvit import onnx_program, outputs
from bvit.arguments import EXIT_BAD_INPUT, Parser, fail
from bvit.classify import classify
from bvit.data.imagenet import readable
from bvit.published import add_arguments, add_checkpoint, load
from bvit.tokens import Policy
from bvit.trained import Trained

PROGRAM, PARAMETERS, ABOUT = "model.stablehlo", "parameters.safetensors", "about.json"
ONNX = "model.onnx"
ONNX_PACKAGES = ("onnx", "onnxruntime")
# What the program is lowered for; it runs on all of them.
PLATFORMS = ("cpu", "cuda", "tpu")
# Images that a program is tried on before it is written.
TRIED = 3

EXIT_DIFFERS = 1


class ExportError(Exception):
    """A program does not give the logits of the model, or can't be made."""


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
    parser.add_argument("--onnx", action="store_true", help=f"also write {ONNX}")
    options = parser.parse_args(arguments)
    try:
        if options.onnx:
            check_packages()
        names = (PROGRAM, PARAMETERS, *[ONNX] * options.onnx, ABOUT)
        check_folder(options.to, names)
        trained = load(options)
        policy = trained.policy(options.policy)
        difference = export(trained, policy, options.to, onnx=options.onnx)
    except (ValueError, OSError) as error:
        fail(str(error), EXIT_BAD_INPUT)
    except ExportError as error:
        fail(str(error), EXIT_DIFFERS)
    for name in names:
        print(f"{options.to / name}  {(options.to / name).stat().st_size / 1e6:.2f} MB")
    print(
        f"Tried on {TRIED} images, what was written differs from the model by {difference:.1e} "
        "of the largest logit."
    )


def export(trained: Trained, policy: Policy, folder: Path, *, onnx: bool = False) -> float:
    """Writes a trained model as a StableHLO program and its parameters, after trying them.

    Args:
      trained: of `bvit.run.Run.load`, or published weights.
      policy: which tokens are computed.
      folder: where to write; files of an earlier export are replaced or deleted, all others are
        kept.
      onnx: also write an ONNX program, which computes in float32.

    Returns:
      The largest difference between the logits of what was written and those of the model, as a
      share of the largest logit.

    Raises:
      ValueError: the policy draws random numbers, for which a program of pixels has no key; or a
        file is in the way that is not of an earlier export.
      ImportError: the packages for ONNX are not installed.
      ExportError: that difference is more than rounding, or there is no ONNX program of the model.
        Nothing is written then.
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
    function = jax.jit(_by_name(_forward(trained.model, trained, policy)))
    program = jax_export.export(function, platforms=PLATFORMS)
    serialized = bytes(program(parameters, pixels).serialize())
    contents = {PROGRAM: serialized, PARAMETERS: save(parameters)}
    if onnx:
        contents[ONNX] = _onnx(trained, policy, parameters)
    difference = _check(trained, policy, contents)
    _write(folder, contents, _about(trained, policy))
    return difference


def check_packages() -> None:
    """Raises an error where --onnx could not be followed, before anything is loaded.

    Raises:
      ValueError: a package is not installed.
    """
    missing = [name for name in ONNX_PACKAGES if not importlib.util.find_spec(name)]
    if missing:
        raise ValueError(
            f"--onnx needs {' and '.join(missing)}; install with pip install {' '.join(missing)}."
        )


def check_folder(folder: Path, names: Sequence[str] = (PROGRAM, PARAMETERS, ABOUT)) -> None:
    """Raises an error where an export could not be written, before anything is loaded.

    Args:
      folder: where it is to be written.
      names: of the files that are to be written.

    Raises:
      ValueError: the place is a file, or a file there is not of an earlier export.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--to must be a folder: {folder} is a file; choose another name.")
    if folder.is_dir():
        for name in names:
            outputs.check(folder / name, _is_ours)


def _write(folder: Path, contents: Mapping[str, bytes], about: Mapping[str, object]) -> None:
    """Writes all files, or none where one is there that is not of an earlier export."""
    check_folder(folder, (*contents, ABOUT))
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / name for name in (PROGRAM, PARAMETERS, ONNX)):
        if path.is_file() and _is_ours(path):
            path.unlink()
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


def _forward(
    model: nn.Module, trained: Trained, policy: Policy
) -> Callable[[PyTree, Array], Array]:
    """(variables, pixels in [0, 1]) → logits."""
    mean, std = trained.preprocess.mean, trained.preprocess.std
    return functools.partial(classify, model, policy=policy, mean=mean, std=std)


def _by_name(
    forward: Callable[[PyTree, Array], Array],
) -> Callable[[dict[str, Array], Array], Array]:
    """(parameters by name, pixels) → logits, for any number of images.

    The models are written for batches of a known size. Mapped over single images, they never see
    the size that is not known; the compiler makes the same program of it.
    """

    def call(parameters: dict[str, Array], image: Array) -> Array:
        variables = traverse_util.unflatten_dict(parameters, sep="/")
        return jax.vmap(lambda one: forward(variables, one[None])[0])(image)

    return call


def _onnx(trained: Trained, policy: Policy, parameters: Mapping[str, np.ndarray]) -> bytes:
    size = trained.preprocess.image_size
    # onnxruntime computes little in half precision on CPUs.
    function = _by_name(_forward(trained.model.clone(dtype=jnp.float32), trained, policy))
    try:
        return onnx_program.convert(function, parameters, (size, size, 3))
    except NotImplementedError as error:
        raise ExportError(
            f"policy {policy.label} of {trained.config.model.name} can't be written as ONNX: "
            f"{error}. Leave out --onnx, since StableHLO holds every model and policy."
        ) from error


def _run_stablehlo(contents: Mapping[str, bytes], pixels: np.ndarray) -> np.ndarray:
    program = jax_export.deserialize(contents[PROGRAM])
    return np.asarray(program.call(load_parameters(contents[PARAMETERS]), pixels))


def _run_onnx(contents: Mapping[str, bytes], pixels: np.ndarray) -> np.ndarray:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(contents[ONNX], providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {onnx_program.INPUT: pixels})
    except Exception as error:  # its errors share no class
        raise ExportError(f"onnxruntime can't run {ONNX}: {error}") from error
    return logits


RUNNERS = {PROGRAM: _run_stablehlo, ONNX: _run_onnx}


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


def _check(trained: Trained, policy: Policy, contents: Mapping[str, bytes]) -> float:
    """The largest difference of all programs."""
    size = trained.preprocess.image_size
    pixels = np.random.default_rng(0).random((TRIED, size, size, 3), np.float32)
    forward = jax.jit(_forward(trained.model, trained, policy))
    want = np.asarray(forward(trained.variables, pixels))
    differences = []
    for name in RUNNERS.keys() & contents.keys():
        got = RUNNERS[name](contents, pixels)
        differences.append(float(np.abs(got - want).max() / np.abs(want).max()))
        if not differences[-1] <= jnp.finfo(trained.model.dtype).eps ** 0.5:
            raise ExportError(
                f"{name} does not give the logits of the model: they differ by "
                f"{differences[-1]:.1e} of the largest. Nothing was written."
            )
    return max(differences)


if __name__ == "__main__":
    main(sys.argv[1:])

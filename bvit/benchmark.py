"""bvit's hot functions beside their peers: python -m bvit.benchmark --suite=image.

Everything is measured in one run, the functions taking turns, because machines drift: read the
ratios. Compile time stands in a column of its own.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh
from tqdm import tqdm

from bvit import models
from bvit.evaluation import report
from bvit.evaluation.evaluate import make_classify
from bvit.image.blur import gaussian_blur
from bvit.image.focus import patch_laplacian_variance
from bvit.image.pixels import IMAGENET_MEAN, IMAGENET_STD
from bvit.models.inputs import Policy, parse_policy
from bvit.models.tokens import plan

SUITE = flags.DEFINE_enum("suite", "all", ["all", "image", "tokens"], "What is measured.")
REPEATS = flags.DEFINE_integer("repeats", 15, "Timed rounds; the median counts.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "File to write the rows to as well, one object a line.")

# 32 pictures of ImageNet's size: what the speed targets of the image functions are stated for.
BATCH, SIZE, PATCH, KERNEL = 32, 224, 16, 19


@dataclasses.dataclass(frozen=True)
class Case:
    """One function of bvit and what it is compared with.

    Attributes:
      suite: what it belongs to.
      name: what is computed.
      run: does it once, and waits for the result.
      peer: the name of what it is compared with.
      peer_run: does the same by the peer's means.
    """

    suite: str
    name: str
    run: Callable[[], object]
    peer: str
    peer_run: Callable[[], object]


def image_cases() -> Iterator[Case]:
    """Blur and focus scores, beside dm-pix and OpenCV."""
    import cv2
    import dm_pix

    rng = np.random.default_rng(0)
    pictures = rng.random((BATCH, SIZE, SIZE, 3), np.float32)
    sigmas = rng.uniform(1, 2, BATCH).astype(np.float32)
    image, sigma = jnp.asarray(pictures), jnp.asarray(sigmas)
    name = f"gaussian_blur, {BATCH}×{SIZE}², k={KERNEL}, a σ each"
    blur = _waiting(lambda: gaussian_blur(image, sigma, kernel_size=KERNEL))

    def opencv_blur() -> None:
        for one, s in zip(pictures, sigmas, strict=True):
            cv2.GaussianBlur(one, (KERNEL, KERNEL), float(s), borderType=cv2.BORDER_REFLECT_101)

    pix = jax.jit(jax.vmap(lambda x, s: dm_pix.gaussian_blur(x, s, KERNEL)))
    yield Case("image", name, blur, "dm-pix, jit(vmap)", _waiting(lambda: pix(image, sigma)))
    yield Case("image", name, blur, "cv2.GaussianBlur, looped", opencv_blur)

    for border in ("image", "patch"):
        yield Case(
            "image",
            f"patch_laplacian_variance, {BATCH}×{SIZE}², border={border}",
            _waiting(lambda b=border: patch_laplacian_variance(image, patch_size=PATCH, border=b)),
            f"cv2.Laplacian by {border} and NumPy, looped",
            lambda b=border: [_opencv_scores(one, b) for one in pictures],
        )


def _opencv_scores(picture: np.ndarray, border: str) -> np.ndarray:
    import cv2

    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) * 255
    side = SIZE // PATCH
    if border == "image":
        edges = cv2.Laplacian(grey, cv2.CV_32F, borderType=cv2.BORDER_REFLECT_101)
        return edges.reshape(side, PATCH, side, PATCH).var(axis=(1, 3))
    tiles = grey.reshape(side, PATCH, side, PATCH).swapaxes(1, 2).reshape(-1, PATCH, PATCH)
    return np.array([cv2.Laplacian(tile, cv2.CV_32F).var() for tile in tiles])


def token_cases() -> Iterator[Case]:
    """A ViT at fewer tokens beside the same ViT at all, scoring and gathering included."""
    model = models.create("vit_small_patch16_224", num_classes=1000)
    image = jax.random.uniform(jax.random.key(0), (BATCH, SIZE, SIZE, 3))
    variables = jax.jit(model.init)(jax.random.key(1), image[:1])
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    index = jnp.arange(BATCH)

    def forward(policy: Policy) -> Callable[[], object]:
        classify = make_classify(
            model, policy, mean=IMAGENET_MEAN, std=IMAGENET_STD, seed=0, mesh=mesh
        )
        return _waiting(lambda: classify(variables, image, index))

    keep = forward(Policy())
    for text in ("merge:97", "drop:98", "merge:49", "drop:49", "tome:8"):
        policy = parse_policy(text, grid=(SIZE // PATCH,) * 2, patch_size=PATCH)
        yield Case("tokens", f"vit_small, {BATCH}×{SIZE}², {text}", forward(policy), "keep", keep)
    select = jax.jit(lambda x: plan(x, patch_size=PATCH, policy="merge", budget=97))
    yield Case(
        "tokens", "scores and selection of merge:97", _waiting(lambda: select(image)), "keep", keep
    )


SUITES: dict[str, Callable[[], Iterator[Case]]] = {"image": image_cases, "tokens": token_cases}


def measure(cases: Sequence[Case], *, repeats: int) -> list[dict[str, object]]:
    """Times all cases, taking turns.

    Args:
      cases: what to time; a function that several share is timed once a round.
      repeats: rounds, after one that compiles; in each a function runs twice, and its second run
        counts.

    Returns:
      For each case: suite, name, ms, peer, peer_ms, ratio (ms over peer_ms: below 1, bvit is
      faster) and compile_s (the first call of bvit's function). Times are medians.
    """
    functions = list(dict.fromkeys(f for case in cases for f in (case.run, case.peer_run)))
    first = {f: _seconds(f) for f in tqdm(functions, desc="compiling", leave=False)}
    times: dict[Callable, list[float]] = {f: [] for f in functions}
    for _ in tqdm(range(repeats), desc="measuring", leave=False):
        for function in functions:
            function()  # whatever ran before left the caches to itself
            times[function].append(_seconds(function))
    median = {f: statistics.median(seconds) for f, seconds in times.items()}
    return [
        {
            "suite": case.suite,
            "name": case.name,
            "ms": 1e3 * median[case.run],
            "peer": case.peer,
            "peer_ms": 1e3 * median[case.peer_run],
            "ratio": median[case.run] / median[case.peer_run],
            "compile_s": max(0.0, first[case.run] - median[case.run]),
        }
        for case in cases
    ]


def _waiting(function: Callable[[], object]) -> Callable[[], object]:
    return lambda: jax.block_until_ready(function())


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def format_rows(rows: Sequence[dict[str, object]]) -> str:
    """The rows as a table."""
    lines = [["suite", "name", "ms", "peer", "its ms", "ratio", "compile s"]]
    for row in rows:
        lines.append(
            [
                str(row["suite"]),
                str(row["name"]),
                f"{row['ms']:.2f}",
                str(row["peer"]),
                f"{row['peer_ms']:.2f}",
                f"{row['ratio']:.3f}",
                f"{row['compile_s']:.1f}",
            ]
        )
    return report.align(lines)


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}.")
    suites = SUITES if SUITE.value == "all" else {SUITE.value: SUITES[SUITE.value]}
    device = jax.devices()[0]
    print(f"{len(jax.devices())} × {device.device_kind}, jax {jax.__version__}, float32")
    rows = measure([case for cases in suites.values() for case in cases()], repeats=REPEATS.value)
    print(format_rows(rows))
    if JSON.value:
        Path(JSON.value).write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(app.run(main))

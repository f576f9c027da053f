"""What launch/gpu_check.sh runs: the suites that matter on a GPU, each with a time limit.

Every section is a process, so that an error or a hang in one does not affect the others. After
each, everything measured so far is written to gpu_check.json and, as a table, to gpu_check.md; what
the processes print goes to gpu_check.log.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from bvit.arguments import parse_flags
from bvit.benchmarks.harness import Row, cpu_cores, cpu_name, format_rows
from bvit.run import METRICS, read_lines

OUT = flags.DEFINE_string("out", "gpu_check", "Folder for what is written.")
DATA = flags.DEFINE_string(
    "data", None, "Folder of class folders to train on; by default photographs that come along."
)
SECONDS = flags.DEFINE_float(
    "seconds", 300, "Time for all sections together; what takes longer is cut off."
)
SMOKE = flags.DEFINE_bool("smoke", False, "Runs everything with few images, on CPUs too.")
ONLY = flags.DEFINE_list("only", [], "Sections to run; by default all.")

PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "flax", "torch", "torchvision", "timm")
# Tests of what is computed differently on devices.
TESTS = (
    "tests/models/test_attention.py",
    "tests/tokens/test_agglomerate.py",
    "tests/image/test_blur.py",
)
# What is kept of the output of a section that failed.
TAIL = 2000


@dataclasses.dataclass(frozen=True)
class Section:
    """A process.

    Attributes:
      name: as --only takes it.
      command: the arguments of `python -m`.
      limit: seconds that it may take.
      environment: variables that are set for it.
    """

    name: str
    command: Sequence[str]
    limit: float
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def sections(folder: Path, *, smoke: bool, data: str | None) -> list[Section]:
    """All sections, the most important first; they write to that folder."""

    def suite(name: str, limit: float, repeats: int) -> Section:
        small = ["--tiny", "--repeats=1"] if smoke else [f"--repeats={repeats}"]
        rows = f"--json={folder / name}.json"
        return Section(name, ["bvit.benchmark", f"--suite={name}", *small, rows], limit)

    # By default a GPU multiplies float32 with mantissas of 10 bits: too coarse for the tests.
    exact = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    if not smoke:
        exact["JAX_PLATFORMS"] = "cuda,cpu"
    return [
        suite("tokens", 110, 7),
        suite("models", 140, 7),
        suite("attention", 40, 9),
        suite("train", 90, 5),
        suite("image", 40, 9),
        Section("training", ["bvit.main", *_training(folder, smoke=smoke, data=data)], 75),
        Section("tests", ["pytest", "-q", "-p", "no:cacheprovider", *TESTS], 75, exact),
    ]


def _training(folder: Path, *, smoke: bool, data: str | None) -> list[str]:
    """A short training of a ViT-S in bfloat16, or of a tiny ViT on the photographs."""
    options = {
        "train.steps": 4 if smoke else 40,
        "log.every_steps": 2 if smoke else 10,
        "eval.every_steps": 0,
        "eval.conditions": "sharp",
        "eval.policies": "keep,cluster:0.5",
        "tokens.policy": "keep",
    }
    if data:
        options |= {
            "data.dir": data,
            "data.image_size": 224,
            "model.name": "vit_small_patch16_224",
            "model.depth": 12,
            "model.dtype": "bfloat16",
            "train.epochs": None,
            "train.batch_size": 8 if smoke else 256,
        }
    config = f"configs/vit_mask.py{':folder' * bool(data)}"
    settings = [f"--config.{key}={value}" for key, value in options.items()]
    return [f"--config={config}", f"--workdir={folder / 'run'}", *settings]


def run(section: Section, seconds: float) -> tuple[str, str]:
    """Runs a section; returns how it ended, and its output."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # nosec B603
            [sys.executable, "-m", *section.command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **section.environment},
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
            status = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            status = f"cut off after {seconds:.0f} s"
        # The session's other processes as well, which may hang where the first did not.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.seek(0)
        return status, log.read().decode(errors="replace")


def machine() -> dict[str, str]:
    """The card, its driver, the CPU and the versions that times depend on."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True)  # nosec B603
        card = found.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        card = "no NVIDIA GPU"
    found = {"card, driver": card, "CPU": f"{cpu_cores()} cores of {cpu_name()}"}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def report(found: dict) -> str:
    """What was measured, in Markdown."""
    lines = ["# GPU check", "", ", ".join(f"{k} {v}" for k, v in found["machine"].items()), ""]
    for section in found["sections"]:
        lines += [f"- {section['name']}: {section['status']}, {section['seconds']:.0f} s"]
    rows: list[Row] = found["rows"]
    for suite in dict.fromkeys(row["suite"] for row in rows):
        own = [row for row in rows if row["suite"] == suite]
        pace = f"matrix products {own[-1]['tflops']:.0f} TFLOP/s, copies {own[-1]['gb_per_s']:.0f}"
        lines += ["", f"## {suite}", "", f"{pace} GB/s", "", format_rows(own)]
    if found["training"]:
        lines += ["", "## training", "", "```", *map(json.dumps, found["training"]), "```"]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    """Runs section after section."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}.")
    began, out = time.monotonic(), Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu_check.log").write_text("")
    found = {"machine": machine(), "sections": [], "rows": [], "training": []}
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = sections(folder, smoke=SMOKE.value, data=DATA.value)
        if ONLY.value:
            names = [section.name for section in chosen]
            if unknown := set(ONLY.value) - set(names):
                raise app.UsageError(f"--only takes {', '.join(names)}: got {', '.join(unknown)}.")
            chosen = [section for section in chosen if section.name in ONLY.value]
        for section in chosen:
            start = time.monotonic()
            left = SECONDS.value - (start - began)
            limit = left if SMOKE.value else min(section.limit, left)
            status, output = run(section, limit) if left > 0 else ("not run: no time is left", "")
            if status != "done":
                failed.append(section.name)
                print(output[-TAIL:], flush=True)
            took = time.monotonic() - start
            print(f"{section.name}: {status}, {took:.0f} s", flush=True)
            with (out / "gpu_check.log").open("a") as log:
                log.write(f"== {section.name}\n{output}\n")
            ended = {"name": section.name, "status": status, "seconds": took}
            found["sections"].append(ended)
            with contextlib.suppress(FileNotFoundError):
                text = (folder / f"{section.name}.json").read_text()
                found["rows"] += map(json.loads, text.splitlines())
            found["training"] = read_lines(folder / "run" / METRICS)
            (out / "gpu_check.json").write_text(json.dumps(found, indent=1))
            (out / "gpu_check.md").write_text(report(found))
    print(report(found))
    sys.exit(f"not done: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)

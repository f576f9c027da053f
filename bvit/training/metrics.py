"""Where the numbers of a run go: lines of JSON for programs, TensorBoard for people."""

import json
import math
from pathlib import Path
from typing import IO, Any

import numpy as np
from absl import logging
from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams as hparams_summary

# A line for each logged step of the training; one for each evaluation.
METRICS_FILE, EVALUATIONS_FILE = "metrics.jsonl", "evaluations.jsonl"


class MetricsWriter:
    """Writes scalars and pictures of one run; a resumed run goes on where its checkpoint is."""

    def __init__(self, folder: Path | None, *, start_step: int = 0) -> None:
        """Opens the files, dropping what was logged after the step that the run starts from.

        Args:
          folder: the run directory; None writes nothing (the processes other than the first).
          start_step: updates already done; a killed run may have logged some that were lost.
        """
        self._files: dict[str, IO[str]] = {}
        self._events: SummaryWriter | None = None
        if folder is None:
            return
        for name in (METRICS_FILE, EVALUATIONS_FILE):
            self._files[name] = _open_after(folder / name, start_step)
        try:
            self._events = SummaryWriter(
                str(folder / "tensorboard"),
                # TensorBoard then hides what earlier files say of the steps that come again.
                purge_step=start_step + 1 if start_step else None,
                filename_suffix=f".{start_step:09d}",
            )
        except OSError as error:
            logging.warning("No TensorBoard curves: %s. metrics.jsonl has the numbers.", error)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of metrics.jsonl, and a point on each of the curves train/….

        Floats keep their full precision; one that is not finite is null in the file.
        """
        self._write(METRICS_FILE, step, values)
        self._draw(step, {f"train/{name}": value for name, value in values.items()})

    def accuracies(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of evaluations.jsonl, and a point on each curve condition/policy."""
        self._write(EVALUATIONS_FILE, step, values)
        self._draw(step, values)

    def _write(self, name: str, step: int, values: dict[str, float]) -> None:
        if self._files:
            # JSON has no NaN and no infinity.
            written = {k: v if math.isfinite(v) else None for k, v in values.items()}
            self._files[name].write(json.dumps({"step": step, **written}) + "\n")

    def _draw(self, step: int, values: dict[str, float]) -> None:
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows a picture, uint8 [h, w, 3], in TensorBoard."""
        if self._events:
            self._events.add_image(name, image, step, dataformats="HWC")

    def hparams(self, settings: dict[str, Any], results: dict[str, float]) -> None:
        """Fills TensorBoard's hparams tab with a run's settings and final results."""
        if not self._events:
            return
        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in settings.items()
        }
        for summary in hparams_summary(plain, results):
            self._events.file_writer.add_summary(summary)
        for name, value in results.items():
            self._events.add_scalar(name, value)

    def close(self) -> None:
        """Flushes everything to disk."""
        for file in self._files.values():
            file.close()
        if self._events:
            self._events.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last one cut short by a kill is left out."""
    return _read(folder / METRICS_FILE)


def _open_after(path: Path, step: int) -> IO[str]:
    """Opens a file to add lines to, without those of later steps."""
    kept = [line for line in _read(path) if line["step"] <= step]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
    partial.replace(path)
    return path.open("a", buffering=1)  # a line is on disk once it is written


def _read(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines

"""Where the numbers of a run go: lines of JSON for programs, TensorBoard for people."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from absl import logging
from tensorboardX import SummaryWriter
from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import register_writer_factory

from bvit.outputs import whole
from bvit.run import EVALUATIONS, METRICS, read_lines

# Metrics of the speed; all others are of the training itself.
SPEEDS = ("images_per_s", "data_wait")


class _EventFile:
    """A file of TensorBoard's curves; if it can't be written, it warns once and writes no more.

    An error would end tensorboardX's writing thread, and training would wait for it forever.
    """

    SCHEME = "bvit"

    def __init__(self, path: str) -> None:
        self._file: IO[bytes] | None = open(path, "wb")  # noqa: SIM115 (closed below)

    def write(self, data: bytes) -> None:
        self._try(lambda file: file.write(data))

    def flush(self) -> None:
        self._try(lambda file: file.flush())

    def close(self) -> None:
        self._try(lambda file: file.close())

    def _try(self, act: Callable[[IO[bytes]], object]) -> None:
        if self._file:
            try:
                act(self._file)
            except OSError as error:
                self._file = None
                logging.warning("No more TensorBoard curves: %s; see %s.", error, METRICS)


class _EventFiles:
    """Opens files for tensorboardX, where a path begins with the scheme."""

    @staticmethod
    def open(path: str) -> _EventFile:
        return _EventFile(path.removeprefix(f"{_EventFile.SCHEME}:"))

    @staticmethod
    def directory_check(path: str) -> None:
        Path(path.removeprefix(f"{_EventFile.SCHEME}:")).mkdir(parents=True, exist_ok=True)


register_writer_factory(_EventFile.SCHEME, _EventFiles)


class MetricsWriter:
    """Writes scalars and images of one run; a resumed run goes on from its checkpoint.

    Attributes:
      evaluated: the last step whose accuracies are written; -1 if there is none.
    """

    def __init__(self, folder: Path | None, *, start_step: int = 0) -> None:
        """Opens the files, dropping what was logged after the step that the run starts from.

        Args:
          folder: the run directory; None writes nothing (the processes other than the first).
          start_step: updates already done; a killed run may have logged later ones.
        """
        self._files: dict[str, IO[str]] = {}
        self._events: SummaryWriter | None = None
        self.evaluated = -1
        if folder is None:
            return
        for name in (METRICS, EVALUATIONS):
            self._files[name] = _open_after(folder / name, start_step)
        evaluations = read_lines(folder / EVALUATIONS)
        self.evaluated = max((line["step"] for line in evaluations), default=-1)
        try:
            self._events = SummaryWriter(
                # TensorBoard names the run after this folder, so it is none below.
                f"{_EventFile.SCHEME}:{folder}",
                # TensorBoard then hides later steps of earlier files.
                purge_step=start_step + 1 if start_step else None,
                filename_suffix=f".{start_step:09d}",
            )
        except OSError as error:
            logging.warning("No TensorBoard curves: %s. metrics.jsonl has the numbers.", error)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of metrics.jsonl, and a point on each curve train/… or train_speed/….

        Floats keep their full precision; one that is not finite is null in the file.
        """
        self._write(METRICS, step, values)
        groups = {name: "train_speed" if name in SPEEDS else "train" for name in values}
        self._draw(step, {f"{groups[name]}/{name}": value for name, value in values.items()})

    def validation(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of metrics.jsonl, and a point on each curve valid/… or valid_accuracy/….

        Args:
          step: updates done.
          values: "valid_loss", "valid_accuracy", and "valid_accuracy/POLICY" of several policies.
        """
        self._write(METRICS, step, values)
        curves = {n if "/" in n else n.replace("_", "/"): value for n, value in values.items()}
        self._draw(step, curves)

    def accuracies(self, step: int, values: dict[str, float]) -> None:
        """Writes a line of evaluations.jsonl, and a point on each curve test_CONDITION/POLICY.

        Writes nothing if a run that was killed has written them already.

        Args:
          step: updates done.
          values: condition/policy → accuracy. The curves of one condition are a group, and so are
            those that differ only in its number, as test_gaussian/1.5/keep.
        """
        if step <= self.evaluated:
            return
        self._write(EVALUATIONS, step, values)
        self.evaluated = step
        curves = {}
        for name, value in values.items():
            condition, _, policy = name.rpartition("/")
            curves[f"{_curve(condition)}/{policy}"] = value
        self._draw(step, curves)

    def _write(self, name: str, step: int, values: dict[str, float]) -> None:
        if self._files:
            # JSON has no NaN and no infinity.
            written = {k: v if math.isfinite(v) else None for k, v in values.items()}
            self._files[name].write(json.dumps({"step": step, **written}) + "\n")

    def _draw(self, step: int, values: dict[str, float]) -> None:
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def config(self, settings: dict[str, Any]) -> None:
        """Shows the settings as a table under TEXT in TensorBoard."""
        if self._events:
            lines = [f"| {key} | `{value!r}` |" for key, value in settings.items()]
            self._events.add_text("config", "\n".join(["| setting | value |", "| - | - |", *lines]))

    def compare_policies(self, conditions: Sequence[str]) -> None:
        """Adds a chart for each condition with the test accuracy of every policy in it."""
        if self._events and conditions:
            charts = {name: ["Multiline", [f"{_curve(name)}/.*"]] for name in conditions}
            self._events.add_custom_scalars({"Test accuracy of the policies": charts})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows an image, uint8 [h, w, 3], in TensorBoard."""
        if self._events:
            self._events.add_image(name, image, step, dataformats="HWC")

    def hparams(self, name: str, settings: dict[str, Any]) -> None:
        """Puts a finished run into TensorBoard's HPARAMS tab.

        No list of settings or metrics to compare is written: TensorBoard then collects them from
        all runs, and shows the settings in which the runs differ first.

        Args:
          name: of the run in the table.
          settings: without the seed: TensorBoard averages the last values of the curves over runs
            of the same name and settings.
        """
        if not self._events:
            return
        start, end = HParamsPluginData(), HParamsPluginData()
        for key, value in settings.items():
            place = start.session_start_info.hparams[key]
            if isinstance(value, bool):
                place.bool_value = value
            elif isinstance(value, int | float):
                place.number_value = value
            else:
                place.string_value = str(value)
        text = json.dumps(settings, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:4]
        start.session_start_info.group_name = f"{name} ({digest})"
        end.session_end_info.status = Status.Value("STATUS_SUCCESS")
        for tag, data in (("session_start_info", start), ("session_end_info", end)):
            value = Summary.Value(tag=f"_hparams_/{tag}")
            value.metadata.plugin_data.plugin_name = "hparams"
            value.metadata.plugin_data.content = data.SerializeToString()
            self._events.file_writer.add_summary(Summary(value=[value]))

    def close(self) -> None:
        """Flushes everything to disk."""
        for file in self._files.values():
            file.close()
        if self._events:
            self._events.close()


def _curve(condition: str) -> str:
    """The group of the curves of a condition in TensorBoard."""
    return f"test_{condition.replace(':', '/')}"


def _open_after(path: Path, step: int) -> IO[str]:
    """Opens a file to add lines to, without those of later steps."""
    kept = [line for line in read_lines(path) if line["step"] <= step]
    with whole(path) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
    return path.open("a", buffering=1)  # a line is on disk once it is written

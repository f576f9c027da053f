"""A run directory: the one place that knows what it holds, and that reads and writes it.

config.json        the settings             checkpoints/       a folder for each step, with seals
best/              the best on validation   events.out.*       the curves and figures in TensorBoard
metrics.jsonl      a line per logged step   evaluations.jsonl  a line per evaluation
results.json       the final table          answers.npz        the true class's rank for each image
classes.json       names of the classes     figures/           plots and images
"""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from bvit import config as config_lib
from bvit import distributed, sharding
from bvit.evaluation import answers
from bvit.evaluation.answers import Answers
from bvit.evaluation.evaluator import EvalResult
from bvit.evaluation.rows import upgrade
from bvit.lock import RunLock
from bvit.models import pretrained
from bvit.outputs import PARTIAL, whole
from bvit.trained import Trained, model_options

METRICS, EVALUATIONS, ANSWERS = "metrics.jsonl", "evaluations.jsonl", "answers.npz"
LOCK = ".lock"
# Which checkpoint of a run is loaded.
BEST, NEWEST = CHECKPOINTS = ("best", "newest")
# What `Run.begin` leaves if it ends half-way.
BEGUN = {LOCK, "figures"}
LENGTH_HINT = (
    "A run can go on for longer where the learning rates of its steps stay the same: with "
    "optimizer.schedule=constant, and the same number of steps of warm-up. "
)
# Differences between configs that an error lists.
MOST_SHOWN = 10


class Run(Trained):
    """A run directory. What it holds is read when it is first asked for.

    Attributes:
      path: the directory.
      name: the last part of the path.
      checkpoints: folder of the newest checkpoints.
      best: folder of the checkpoint that validated best; only runs with `data.valid` have it.
      figures: folder of the plots.
      results_file: the final table; it exists once the run is finished.
      step: the step that `variables` are from; None before `load`.
      variables: the trained ones (averaged, where the run kept an average); None before `load`.
    """

    def __init__(self, path: Path) -> None:
        """Names a run directory; reads nothing yet."""
        self.path, self.name = path, path.name
        self.checkpoints, self.best = path / "checkpoints", path / "best"
        self.figures = path / "figures"
        self.results_file = path / "results.json"
        self._lock: RunLock | None = None

    @classmethod
    def begin(
        cls,
        path: Path,
        config: Mapping[str, Any],
        *,
        goes_on: Callable[[ConfigDict], bool] = lambda saved: False,
    ) -> "Run":
        """Opens the directory of a new or an interrupted run, to work in it until `close`.

        In a job of several processes, the first one does this for all.

        Args:
          path: an existing run of the same config, or a new or empty folder.
          config: as plain values.
          goes_on: whether this run may continue one with the saved config that it is given, which
            differs in `config.LENGTH` alone; by default, none.

        Raises:
          ValueError: the folder holds a run of another config, or something that is no run, or
            another process is working in it, or it can't be written to.
        """
        run = cls(path)
        if distributed.is_main():
            try:
                _check_ours(path, config, goes_on)
                path.mkdir(parents=True, exist_ok=True)
                run._lock = RunLock(path / LOCK)
                run.figures.mkdir(exist_ok=True)
                write_json(path / "config.json", config)
            except OSError as error:
                raise ValueError(
                    f"the run directory {path} can't be written to ({error.strerror}): make room "
                    "there, or choose another --workdir."
                ) from error
        return run

    def close(self) -> None:
        """Lets other processes work in the directory."""
        if self._lock:
            self._lock.release()

    @functools.cached_property
    def config(self) -> ConfigDict:
        """The settings, over today's defaults; locked.

        Raises:
          ValueError: the folder is no run.
        """
        return config_lib.load(self._config_file())

    def _config_file(self) -> Path:
        path = self.path / "config.json"
        if not path.exists():
            raise ValueError(f"{self.path} is no run directory: it has no config.json.")
        return path

    @functools.cached_property
    def results(self) -> dict[str, Any]:
        """The contents of results.json.

        Raises:
          ValueError: the folder is no run, the run is not finished, or the file is damaged.
        """
        if not self.path.is_dir():
            raise ValueError(f"{self.path} is no run directory.")
        if not self.results_file.exists():
            self._config_file()  # raises if this is no run
            lines = self.metrics
            at = f"it has logged step {lines[-1]['step']}" if lines else "it has logged no step yet"
            raise ValueError(
                f"{self.path} is not finished ({at}): run its command again until it is."
            )
        results = config_lib.read_json(self.results_file)
        try:
            return results | {"rows": upgrade(results["rows"])}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.results_file} is damaged ({error!r}).") from error

    def is_finished(self, config: Mapping[str, Any]) -> bool:
        """Whether the results are there, and of this config: a run may since be made longer."""
        if not self.results_file.exists():
            return False
        return not config_lib.differences(self.results["config"], config)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The config of a finished run with dotted keys, over today's defaults."""
        return config_lib.complete(self.results["config"])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_lines(self.path / METRICS)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of evaluations.jsonl."""
        return read_lines(self.path / EVALUATIONS)

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits.

        Raises:
          ValueError: the folder is no run, or the run has not written them, or they are damaged.
        """
        path = self._config_file().with_name("classes.json")
        if not path.exists():
            raise ValueError(
                f"{self.path} has no classes.json: write the names of the classes into that file, "
                "a JSON list in the order of the labels."
            )
        names = config_lib.read_json(path)
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError(f"{path} is damaged (it is no list of names).")
        return tuple(names)

    @property
    def answers(self) -> Answers:
        """The answers to each test image, kept so that runs can be compared image by image.

        Raises:
          ValueError: the run kept none, or the file is damaged.
        """
        path = self.path / ANSWERS
        if not path.exists():
            raise ValueError(
                f"{self.path} holds no {path.name}, like runs older than that file: evaluate "
                "it again into another --workdir, with its own settings (its seed too), "
                f"--config.init_from={self.path} --config.init_head=True --config.train.steps=0."
            )
        return answers.read(path)

    def write_class_names(self, names: Sequence[str]) -> None:
        """Writes classes.json."""
        write_json(self.path / "classes.json", names)

    def write_answers(self, outcomes: Sequence[EvalResult]) -> None:
        """Writes answers.npz, from at least one outcome of `evaluate`."""
        answers.write(self.path / ANSWERS, outcomes)

    def write_results(self, results: dict[str, Any]) -> None:
        """Writes results.json; the run is then finished."""
        write_json(self.results_file, results)

    def load(self, mesh: Mesh | None = None, *, checkpoint: str = BEST) -> "Run":
        """Loads the model to use it.

        The run may have been trained on any devices. Neither its data nor its optimizer is built.

        Args:
          mesh: where the variables are placed, by the rules of `bvit.sharding`; by default, on the
            first device.
          checkpoint: "best", the one that validated best, or in a run without validation the newest
            undamaged one; or "newest".

        Returns:
          The run itself, with `step` and `variables`.

        Raises:
          ValueError: the folder is no run, has no checkpoint yet, or only damaged ones.
        """
        mesh = mesh or sharding.make_mesh(devices=jax.local_devices()[:1])
        self.step, self.variables = self.restore(mesh, checkpoint=checkpoint)
        return self

    def restore(self, mesh: Mesh | None, *, checkpoint: str = BEST) -> tuple[int, PyTree]:
        """The step and the variables that `load` loads; without a mesh, as NumPy arrays."""
        c = self.config
        if c.train.steps == 0:  # a run that only evaluated its initial weights
            variables = initial_variables(c, self.class_names)
            if mesh:
                variables = jax.device_put(variables, sharding.state_shardings(variables, mesh))
            return 0, variables
        images = jnp.zeros((1, c.data.image_size, c.data.image_size, 3), jnp.float32)
        init = functools.partial(self.model.init, train=False)
        like = dict(jax.eval_shape(init, jax.random.key(0), images))
        if mesh:
            like = sharding.abstract(like, mesh)
        from bvit.checkpoint import Checkpoints  # takes a second, which published weights save

        newest = checkpoint == NEWEST
        for folder in (self.checkpoints,) if newest else (self.best, self.checkpoints):
            if folder.is_dir():
                with contextlib.closing(Checkpoints(folder)) as checkpoints:
                    if restored := checkpoints.restore_variables(like):
                        return restored
        raise ValueError(
            f"{self.path} has no checkpoint yet: run its command until it has saved one."
        )


def initial_variables(config: ConfigDict, class_names: Sequence[str]) -> PyTree | None:
    """The weights that a config starts from, fitted to its model, on the host; None without them.

    Raises:
      ValueError: they can't be read or do not fit, or come from a run with other classes while
        their head is wanted.
    """
    if not config.init_from:
        return None
    options = {
        "replace_head": not config.init_head,
        "seed": config.seed,
        "num_classes": len(class_names),
        **model_options(config),
    }
    folder = Path(config.init_from).expanduser()
    if not folder.is_dir():
        return pretrained.load(config.model.name, config.init_from, **options)
    run = Run(folder)
    if config.init_head and run.class_names != tuple(class_names):
        raise ValueError(
            f"init_head takes the head of {folder} for the same classes in the same order: it has "
            f"{len(run.class_names)} ({', '.join(run.class_names[:3])}, …), the data "
            f"{len(class_names)} ({', '.join(class_names[:3])}, …); set init_head=False for a new "
            "head, or choose the data that it was trained on."
        )
    _, variables = run.restore(None)
    weights = traverse_util.flatten_dict(variables, sep="/")
    return pretrained.convert(config.model.name, weights, **options)


def ancestors(init_from: str) -> list[dict[str, Any]]:
    """The configs of the run that `init_from` names, of the run that this started from, and so on.

    They are read when a run ends, for its results, because folders may be moved later.
    """
    configs, seen = [], set()
    saved = Path(init_from).expanduser() / "config.json"
    while init_from and saved.exists() and saved.resolve() not in seen:
        seen.add(saved.resolve())
        configs.append(config_lib.read(saved))
        init_from = configs[-1]["init_from"]
        saved = Path(init_from).expanduser() / "config.json"
    return configs


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    with whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file, [] without it; damaged ones, as a kill leaves, are left out."""
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


def _check_ours(
    path: Path, config: Mapping[str, Any], goes_on: Callable[[ConfigDict], bool]
) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"--workdir must be a run directory or a new folder: {path} is a file; choose another "
            "--workdir."
        )
    saved = path / "config.json"
    if not saved.exists():
        # A run that ended while it was begun has left what `begin` makes, and no more.
        found = [one.name for one in path.iterdir()] if path.exists() else []
        others = {name for name in found if not name.endswith(PARTIAL)}
        if not others <= BEGUN or (path / "figures").is_dir() and any((path / "figures").iterdir()):
            raise ValueError(
                f"--workdir must be a run directory or a new folder: {path} holds other files; "
                "choose another --workdir."
            )
        return
    changed = config_lib.differences(config_lib.read(saved), config)
    of_length = changed.keys() <= config_lib.LENGTH
    if changed and not (of_length and goes_on(config_lib.load(saved))):
        hint = LENGTH_HINT if of_length else ""
        listed = [f"{key} was {a!r}, now {b!r}" for key, (a, b) in changed.items()][:MOST_SHOWN]
        listed += [f"and {len(changed) - MOST_SHOWN} more"] if len(changed) > MOST_SHOWN else []
        raise ValueError(
            f"{path} holds a run of another config: {'; '.join(listed)}. {hint}"
            "Choose another --workdir, or delete that run to start again."
        )

"""The order of updates, checkpoints and evaluations, with stand-ins for what computes them."""

import dataclasses
import itertools
import json
import os
import signal
import types

import jaxtyping
import pytest

from bvit import config as config_lib
from bvit import sharding
from bvit.interrupt import Interrupted, SignalWatch
from bvit.training import loop
from bvit.training.metrics import MetricsWriter
from bvit.training.profile import StepTrace

STEPS = 6


@dataclasses.dataclass
class State:
    step: int

    @property
    def eval_variables(self):
        return self.step


class Batches(itertools.count):
    skipped = 0

    def close(self):
        pass


class Run:
    """A run whose evaluations are stopped by a signal at some steps, each once."""

    costs = None

    def __init__(self, folder, monkeypatch, stopped_at):
        self.folder, self.saved, self.stopped_at = folder, 0, set(stopped_at)
        c = config_lib.default_config()
        c.eval.every_steps, c.checkpoint.every_steps, c.log.every_steps = 2, 5, 1
        self.experiment = types.SimpleNamespace(
            config=c,
            total_steps=STEPS,
            train_policies=[None],
            schedule=lambda step: 0.0,
            mesh=sharding.make_mesh(),
        )
        monkeypatch.setattr(loop, "_compile_step", lambda *_: update)
        monkeypatch.setattr(loop.sharding, "put_rows", lambda batch, mesh: batch)
        monkeypatch.setattr(loop, "make_rows", lambda outcomes, costs: outcomes)
        monkeypatch.setattr(loop.results, "curves", lambda rows: rows)
        monkeypatch.setattr(loop.experiment_lib, "train_batches", lambda _, at: Batches(at))

    def __call__(self, step):
        if step in self.stopped_at:
            self.stopped_at.remove(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return {"sharp/keep": step / STEPS}

    def save(self, step, state):
        self.saved = step

    def wait(self):
        pass

    def go_on(self):
        writer = MetricsWriter(self.folder, start_step=self.saved)
        trace = StepTrace((), self.folder)
        jaxtyping.config.update("jaxtyping_disable", True)  # stand-ins have other types
        try:
            with SignalWatch() as signals:
                # It stands for the checkpoints and for the evaluator too.
                loop.train(self.experiment, State(self.saved), self, writer, trace, self, signals)
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)
            writer.close()

    def evaluations(self):
        lines = (self.folder / "evaluations.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines]


def update(state, batch):
    return State(state.step + 1), {"loss": 1.0, "accuracy": 0.0, "grad_norm": 1.0, "finite": 1.0}


def test_a_training_is_evaluated_between_its_steps_but_not_at_its_end(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch, stopped_at=[])
    run.go_on()
    assert run.evaluations() == [2, 4] and run.saved == STEPS


def test_an_evaluation_that_a_signal_stopped_is_done_when_the_run_goes_on(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch, stopped_at=[2, 4])
    for saved in (2, 4):
        with pytest.raises(Interrupted):
            run.go_on()
        assert run.saved == saved
    run.go_on()
    assert run.evaluations() == [2, 4] and run.saved == STEPS

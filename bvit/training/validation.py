"""Validation while training: which checkpoint is the best so far, and whether to go on."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from bvit.checkpoint import Checkpoints
from bvit.evaluation.evaluator import EvalResult, Evaluator
from bvit.training import console
from bvit.training.metrics import MetricsWriter
from bvit.training.state import TrainState

LOSS, ACCURACY = "valid_loss", "valid_accuracy"
Interruptible = Callable[[], contextlib.AbstractContextManager[None]]


class Validation:
    """Validates a training, keeps its best checkpoint, and says when it no longer gets better.

    The best has the highest accuracy, the mean over the policies that are trained; of equal ones,
    the lowest loss; of equal ones again, the first.

    Attributes:
      steps: those that were validated.
      after_last: whether the last step is validated too.
    """

    after_last = True

    def __init__(
        self,
        evaluator: Evaluator,
        checkpoints: Checkpoints,
        writer: MetricsWriter,
        *,
        before: Sequence[dict[str, Any]] = (),
        patience: int = 0,
    ) -> None:
        """Goes on from what was found before an interruption.

        Args:
          evaluator: of the validation images, under what the run trains on.
          checkpoints: where the best one is kept.
          writer: where the losses and accuracies go.
          before: the lines of `metrics.jsonl` up to the step that training goes on from.
          patience: how many validations in a row may be no better before training stops; 0 = any
            number.
        """
        self._evaluator, self._checkpoints, self._writer = evaluator, checkpoints, writer
        self._patience, self._without_better = patience, 0
        self._best = (-math.inf, -math.inf)
        self.steps: list[int] = []
        for line in before:
            if ACCURACY in line:
                self._count(line["step"], line)

    @property
    def is_over(self) -> bool:
        """Whether training should stop."""
        return 0 < self._patience <= self._without_better

    def __call__(
        self, step: int, state: TrainState, interruptible: Interruptible = contextlib.nullcontext
    ) -> None:
        """Validates a state, logs what was found, and keeps the state if it is the best so far.

        Args:
          step: updates done.
          state: what is validated.
          interruptible: a context for the evaluation, in which signals may end it.
        """
        with interruptible():
            outcomes = self._evaluator(state.eval_variables)
        values = _summary(outcomes)
        is_best = self._count(step, values)
        if is_best:
            params = state.eval_variables["params"]
            parts = {"params": params, "model_state": state.model_state, "ema_params": None}
            self._checkpoints.save(step, parts)
        self._writer.validation(step, values)
        console.say(
            f"Step {step:,}: validation loss {values[LOSS]:.4f}, accuracy "
            f"{100 * values[ACCURACY]:.2f} %" + (", the best so far" if is_best else "")
        )
        if self.is_over:
            console.say(
                f"Training stops: the last {self._without_better} validations were no better "
                "(train.patience)."
            )

    def best(self, state: TrainState) -> TrainState:
        """The best state as one to evaluate; `state` is the last one."""
        self._checkpoints.wait()
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            state.eval_variables,
        )
        restored = self._checkpoints.restore_variables(like)
        if restored is None:
            return state
        step, variables = restored
        console.say(f"The results are those of step {step:,}, the best on the validation images.")
        params = variables.pop("params")
        return state.replace(
            step=np.int32(step), params=params, model_state=variables, ema_params=None
        )

    def _count(self, step: int, values: dict[str, Any]) -> bool:
        """Counts a validation; returns whether it is the best so far."""
        self.steps.append(step)
        loss = values[LOSS]
        # What is not finite is null in the file.
        loss = math.inf if loss is None or math.isnan(loss) else loss
        score = (values[ACCURACY], -loss)
        is_best = score > self._best
        self._best = max(self._best, score)
        self._without_better = 0 if is_best else self._without_better + 1
        return is_best


def _summary(outcomes: Sequence[EvalResult]) -> dict[str, float]:
    """Mean loss and accuracy over the policies, and the accuracy of each if there are several."""
    accuracies = {one.policy.label: float(one.correct().mean()) for one in outcomes}
    values = {
        LOSS: float(np.mean([one.loss.mean() for one in outcomes])),
        ACCURACY: float(np.mean(list(accuracies.values()))),
    }
    if len(accuracies) > 1:
        values |= {f"{ACCURACY}/{label}": value for label, value in accuracies.items()}
    return values

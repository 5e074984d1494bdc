"""The curves of a run, out of the trainer's log."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from finelab.errors import LabError


class Curve(NamedTuple):
    """What was logged, in the order that `show.loss_curve` takes.

    Losses in nats per trained token; `tokens_per_s` between each log and the one before, NaN where the
    trainer did not count its tokens. The first four lists have one item for each log, the last two one for
    each evaluation.
    """

    steps: list[int]
    losses: list[float]
    learning_rates: list[float]
    tokens_per_s: list[float]
    validation_steps: list[int]
    validation_losses: list[float]


def curve(log_history: list[dict[str, Any]]) -> Curve:
    """The curves in a trainer's `state.log_history`, earlier sittings included."""
    return Growing().read(log_history)


class Growing:
    """The curves of a log that grows: each entry is read once, as a long run would wait for its own log."""

    def __init__(self) -> None:
        self.curve = Curve([], [], [], [], [], [])
        self._read = self._tokens = 0
        self._seconds = self._evaluating = 0.0

    def read(self, log_history: list[dict[str, Any]]) -> Curve:
        """The curves, with what was logged since the last call."""
        for entry in log_history[self._read :]:
            self._evaluating += entry.get("eval_runtime", 0.0)
            if "eval_loss" in entry:
                self.curve.validation_steps.append(int(entry["step"]))
                self.curve.validation_losses.append(float(entry["eval_loss"]))
            if "loss" in entry:
                self.curve.steps.append(int(entry["step"]))
                self.curve.losses.append(float(entry["loss"]))
                self.curve.learning_rates.append(float(entry["learning_rate"]))
                self.curve.tokens_per_s.append(self._rate(entry))
        self._read = len(log_history)
        return self.curve

    def _rate(self, entry: dict[str, Any]) -> float:
        """Tokens per second since the loss before; the time of evaluations in between is left out."""
        seen, runtime = entry.get("num_input_tokens_seen", 0), entry.get("train_runtime", math.nan)
        if runtime < self._seconds:  # the trainer's clock begins again at each sitting
            self._seconds = 0.0
        took = max(runtime - self._seconds - self._evaluating, 1e-4)  # as it is rounded
        rate = float((seen - self._tokens) / took)
        self._tokens, self._seconds, self._evaluating = seen, runtime, 0.0
        return rate


def first_and_last(losses: list[float], window: int = 5) -> tuple[float, float]:
    """The mean of the first and of the last `window` losses: one step's loss is mostly noise.

    LabError without any.
    """
    if not losses:
        raise LabError(
            "training logged no loss, so nobody knows how it went: do the stage again with --from train and "
            "a lower training.logging_steps."
        )
    first, last = losses[:window], losses[-window:]
    return sum(first) / len(first), sum(last) / len(last)

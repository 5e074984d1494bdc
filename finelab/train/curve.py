"""The curves of a run, out of the trainer's log."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


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
    logged = [entry for entry in log_history if "loss" in entry]
    validation = [entry for entry in log_history if "eval_loss" in entry]
    return Curve(
        [int(entry["step"]) for entry in logged],
        [float(entry["loss"]) for entry in logged],
        [float(entry["learning_rate"]) for entry in logged],
        _tokens_per_s(log_history),
        [int(entry["step"]) for entry in validation],
        [float(entry["eval_loss"]) for entry in validation],
    )


def first_and_last(losses: list[float], window: int = 5) -> tuple[float, float]:
    """The mean of the first and of the last `window` losses: one step's loss is mostly noise."""
    first, last = losses[:window], losses[-window:]
    return sum(first) / len(first), sum(last) / len(last)


def _tokens_per_s(log_history: list[dict[str, Any]]) -> list[float]:
    """One rate for each logged loss; the time of evaluations in between is left out."""
    rates: list[float] = []
    tokens, seconds, evaluating = 0, 0.0, 0.0
    for entry in log_history:
        evaluating += entry.get("eval_runtime", 0.0)
        if "loss" not in entry:
            continue
        seen, runtime = entry.get("num_input_tokens_seen", 0), entry.get("train_runtime", math.nan)
        if runtime < seconds:  # the trainer's clock begins again at each sitting
            seconds = 0.0
        rates.append((seen - tokens) / max(runtime - seconds - evaluating, 1e-4))  # as it is rounded
        tokens, seconds, evaluating = seen, runtime, 0.0
    return rates

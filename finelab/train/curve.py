"""The loss curve out of the trainer's log."""

from __future__ import annotations

from typing import Any


def curve(log_history: list[dict[str, Any]]) -> tuple[list[int], list[float], list[float]]:
    """Steps, losses and learning rates of a trainer's `state.log_history`."""
    logged = [entry for entry in log_history if "loss" in entry]
    return (
        [int(entry["step"]) for entry in logged],
        [float(entry["loss"]) for entry in logged],
        [float(entry["learning_rate"]) for entry in logged],
    )


def first_and_last(losses: list[float], window: int = 5) -> tuple[float, float]:
    """The mean of the first and of the last `window` losses: one step's loss is mostly noise."""
    first, last = losses[:window], losses[-window:]
    return sum(first) / len(first), sum(last) / len(last)

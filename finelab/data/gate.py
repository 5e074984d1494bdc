"""The gate: named thresholds that stop a run before hours are spent on data that cannot work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from finelab import recipe
from finelab.errors import LabError


@dataclass(frozen=True)
class Check:
    """One threshold: what was measured, what is allowed, and what to do when it is not."""

    name: str
    measured: float
    allowed: str
    passed: bool
    advice: str

    def __str__(self) -> str:
        mark = "ok  " if self.passed else "STOP"
        return f"{mark}  {self.name:36}  {self.measured:>8.4g}  ({self.allowed})"


def checks(report: dict[str, Any], data: recipe.Data) -> list[Check]:
    """Every threshold of the recipe, and every fault that must not occur, against the report."""
    limits = [
        _at_most(
            "dropped_share",
            report["dropped_share"],
            data.max_dropped_share,
            "look at the reasons above and mend the file",
        ),
        _at_most(
            "truncated_share",
            report["truncated_share"],
            data.max_truncated_share,
            "raise model.max_seq_length, or drop long rows with data.truncation=drop",
        ),
        _at_least(
            "trained_share",
            report["tokens_trained"] / report["tokens_total"],
            data.min_trained_share,
            "the answers are tiny beside the questions: are question and answer columns swapped?",
        ),
        _at_most(
            "leaked_share",
            report["leaked_share"],
            data.max_leaked_share,
            "held-out rows nearly repeat training rows, and flatter the verdict: leave repeats out with "
            "data.duplicates=near, or accept them with data.max_leaked_share=1",
        ),
    ]
    faults = [
        Check(name, count, "none allowed", count == 0, "this is a fault of the lab: please report it")
        for name, count in report["faults"].items()
    ]
    return limits + faults


def require(found: Iterable[Check]) -> None:
    """Go on when every check passed; LabError with each one that did not, and what to do."""
    failed = [check for check in found if not check.passed]
    if failed:
        lines = "\n".join(f"{check}\n      {check.advice}" for check in failed)
        raise LabError(f"the data does not pass the gate:\n{lines}")


def _at_most(name: str, measured: float, limit: float, advice: str) -> Check:
    return Check(name, measured, f"data.max_{name} = {limit}", measured <= limit, advice)


def _at_least(name: str, measured: float, limit: float, advice: str) -> Check:
    return Check(name, measured, f"data.min_{name} = {limit}", measured >= limit, advice)

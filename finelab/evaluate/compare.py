"""Base against tuned on the same rows: a difference, its interval, and a word that may be "worse"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IMPROVED, NO_CHANGE, WORSE = "improved", "no measurable change", "worse"


@dataclass(frozen=True)
class Comparison:
    """Mean loss in nats per trained token; `interval` is the difference's 95 % interval."""

    rows: int
    base: float
    tuned: float
    interval: tuple[float, float]

    @property
    def difference(self) -> float:
        """Tuned minus base: below zero is better."""
        return self.tuned - self.base

    @property
    def verdict(self) -> str:
        """Improved or worse only when the interval excludes zero."""
        low, high = self.interval
        if high < 0:
            return IMPROVED
        return WORSE if low > 0 else NO_CHANGE

    def evidence(self) -> dict[str, object]:
        """The evidence's keys for this comparison."""
        return {
            "rows": self.rows,
            "heldout_nll_base": round(self.base, 5),
            "heldout_nll_tuned": round(self.tuned, 5),
            "difference": round(self.difference, 5),
            "interval": [round(bound, 5) for bound in self.interval],
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.base:.3f} -> {self.tuned:.3f} nats per token, difference {self.difference:+.3f} "
            f"(95 % interval {low:+.3f} to {high:+.3f}, {self.rows} rows): {self.verdict}"
        )


def compare(
    base: NDArray[np.float64], tuned: NDArray[np.float64], resamples: int = 10_000, seed: int = 3407
) -> Comparison:
    """Compare two (rows, 2) arrays of nats and tokens by a paired bootstrap over conversations.

    Whole conversations are drawn, since tokens of one answer are not independent (percentile
    bootstrap, Efron and Tibshirani 1993, chapter 13).
    """
    tokens = base[:, 1]
    per_row = tuned[:, 0] - base[:, 0]
    draws = np.random.default_rng(seed).integers(0, len(tokens), size=(resamples, len(tokens)))
    differences = per_row[draws].sum(axis=1) / tokens[draws].sum(axis=1)
    low, high = np.percentile(differences, [2.5, 97.5])
    total = tokens.sum()
    return Comparison(
        rows=len(tokens),
        base=float(base[:, 0].sum() / total),
        tuned=float(tuned[:, 0].sum() / total),
        interval=(float(low), float(high)),
    )


def by_kind(
    kinds: Sequence[str], base: NDArray[np.float64], tuned: NDArray[np.float64]
) -> dict[str, Comparison]:
    """A comparison for each kind of held-out row that occurs, in the order "row", "family"."""
    array = np.array(kinds)
    present = [kind for kind in ("row", "family") if (array == kind).any()]
    return {kind: compare(base[array == kind], tuned[array == kind]) for kind in present}


def evidence(results: dict[str, Comparison]) -> dict[str, object]:
    """The evidence's `evaluation`: the rows' comparison, and the families' below it."""
    found = results["row"].evidence()
    if "family" in results:
        found["families"] = results["family"].evidence()
    return found

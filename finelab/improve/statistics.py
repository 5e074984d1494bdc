"""Is a setting better than the first one, or is it noise?

A sweep is a randomised complete block design: the seeds are the blocks, every setting meets every seed
(Montgomery, Design and Analysis of Experiments, chapter 4). The residual mean square, what is left of the
losses after each setting's and each seed's mean, is the noise of one trial; a difference of two means
over S seeds has the variance 2 MS / S, with (K - 1)(S - 1) degrees of freedom. With two settings this is the
paired t test. The variance over held-out rows is added, and the level is shared by Bonferroni. It assumes
the same noise in all settings: one that diverged would widen every interval, so those are stopped early.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Difference:
    """A setting's mean loss minus the first one's, with an interval; they hold together at 95 %."""

    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `within noise` when the interval holds zero."""
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "within noise"


def differences(
    nats: NDArray[np.float64], sizes: NDArray[np.float64], level: float = 0.95
) -> list[Difference]:
    """Each later setting against the first.

    `nats` has the shape (settings, seeds, rows), two settings and two seeds or more; `sizes` (rows,) are
    what the nats are divided by, tokens or bytes.
    """
    from scipy.stats import t

    settings, seeds, _ = nats.shape
    freedom = (settings - 1) * (seeds - 1)
    losses = nats.sum(axis=2) / sizes.sum()
    quantile = t.ppf(1 - (1 - level) / 2 / (settings - 1), freedom)
    found = []
    for other in range(1, settings):
        difference = float(losses[other].mean() - losses[0].mean())
        rows = row_variance((nats[other] - nats[0]).mean(axis=0), sizes)
        half = float(quantile * np.sqrt(2 * residual_mean_square(losses) / seeds + rows))
        found.append(Difference(difference, difference - half, difference + half))
    return found


def residual_mean_square(losses: NDArray[np.float64]) -> float:
    """The variance of one trial's loss (settings, seeds) around its setting's and its seed's means."""
    residual = losses - losses.mean(axis=1, keepdims=True) - losses.mean(axis=0) + losses.mean()
    settings, seeds = losses.shape
    return float((residual**2).sum() / ((settings - 1) * (seeds - 1)))


def row_variance(nats: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """The variance of sum(nats) / sum(sizes) over the choice of rows (Cochran's ratio estimate)."""
    ratio = nats.sum() / sizes.sum()
    rows = len(sizes)
    return float(((nats - ratio * sizes) ** 2).sum() / sizes.sum() ** 2 * rows / max(rows - 1, 1))

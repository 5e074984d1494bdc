"""Is a setting better than the first one, or is it noise?

A sweep is a randomised complete block design: the seeds are the blocks, every setting meets every seed
(Montgomery, Design and Analysis of Experiments, chapter 4). A setting is held against the first one seed by
seed, as in the paired t test, with S - 1 degrees of freedom for S seeds. The noise of all settings is not put
together, which would give (K - 1)(S - 1) degrees and narrower intervals: with six settings and three seeds,
one of them five times as noisy, 13 % of sweeps in which nothing differs called a change, 19 % when it was the
first; this way 5 % and 3 %. The price is power: a real difference of five times the noise is found in 31 %
of such sweeps in place of 99 %, with five seeds in 97 %, and of two settings in 84 %. The choice of rows adds
its own part, and the level is shared by Bonferroni.
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

    settings, seeds, rows = nats.shape
    quantiles = t.ppf(1 - (1 - level) / 2 / (settings - 1), [seeds - 1, max(rows - 1, 1)])
    losses = nats.sum(axis=2) / sizes.sum()
    found = []
    for other in range(1, settings):
        by_seed = losses[other] - losses[0]
        variances = by_seed.var(ddof=1) / seeds, row_variance((nats[other] - nats[0]).mean(axis=0), sizes)
        half = float(np.hypot(*(quantiles * np.sqrt(variances))))
        difference = float(by_seed.mean())
        found.append(Difference(difference, difference - half, difference + half))
    return found


def row_variance(nats: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    """The variance of sum(nats) / sum(sizes) over the choice of rows (Cochran's ratio estimate)."""
    ratio = nats.sum() / sizes.sum()
    rows = len(sizes)
    return float(((nats - ratio * sizes) ** 2).sum() / sizes.sum() ** 2 * rows / max(rows - 1, 1))

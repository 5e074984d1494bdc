"""Base against tuned on the same rows: a difference, its interval, and a word that may be "worse"."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finelab.data import MIN_ROWS, question_key
from finelab.errors import LabError
from finelab.show.numbers import signed

IMPROVED, NO_CHANGE, WORSE, TOO_FEW = "improved", "no measurable change", "worse", "too few rows to tell"
DRAWN_AT_ONCE = 2_000_000  # row numbers of the bootstrap that are held in memory
GROUPS = 40  # with numbers of their own, where their names come from the data
NATS = "nats per token"


@dataclass(frozen=True)
class Comparison:
    """A mean loss before and after, in `unit`; `interval` is the difference's, at `level`.

    `questions` are fewer than `rows` where several rows answer the same one; `effective` is as how many of
    equal length they weigh: a few long answers may hold most of the tokens.
    """

    rows: int
    base: float
    tuned: float
    interval: tuple[float, float]
    questions: int
    effective: float
    level: float = 0.95
    unit: str = NATS

    @property
    def difference(self) -> float:
        """Tuned minus base: below zero is better."""
        return self.tuned - self.base

    @property
    def verdict(self) -> str:
        """Improved or worse only when the interval excludes zero, and there are rows enough for one."""
        low, high = self.interval
        if self.effective < MIN_ROWS:
            return TOO_FEW
        if high < 0:
            return IMPROVED
        return WORSE if low > 0 else NO_CHANGE

    def evidence(self, prefix: str = "") -> dict[str, object]:
        """The evidence's keys for this comparison; `prefix` stands before `base` and `tuned`."""
        return {
            "rows": self.rows,
            "questions": self.questions,
            f"{prefix}base": round(self.base, 5),
            f"{prefix}tuned": round(self.tuned, 5),
            "difference": round(self.difference, 5),
            "interval": [round(bound, 5) for bound in self.interval],
            "verdict": self.verdict,
        }

    @property
    def measured(self) -> str:
        """The numbers, without the verdict."""
        rows = f"{self.rows} rows" + f" of {self.questions} questions" * (self.questions < self.rows)
        if self.effective < MIN_ROWS <= self.questions:
            rows += f", which weigh as {self.effective:.1f} of equal length"
        difference, low, high = signed(self.difference, *self.interval)
        return (
            f"{self.base:.3f} -> {self.tuned:.3f} {self.unit}, difference {difference} "
            f"({100 * self.level:.3g} % interval {low} to {high}, {rows})"
        )

    def __str__(self) -> str:
        return f"{self.measured}: {self.verdict}"


def compare(
    base: NDArray[np.float64],
    tuned: NDArray[np.float64],
    resamples: int = 10_000,
    seed: int = 3407,
    level: float = 0.95,
    unit: str = NATS,
    questions: Iterable[str] | None = None,
) -> Comparison:
    """Compare two (rows, 2) arrays of nats and tokens by a paired bootstrap over conversations.

    Whole conversations are drawn, since tokens of one answer are not independent, and those with the same
    of `questions` together: drawn by row, 20 questions with 5 answers each called 20 to 37 % of simulated A/A
    comparisons a change, by how alike the answers to a question were. The interval is the expanded percentile
    interval (Hesterberg 2015, doi:10.1080/00031305.2015.1089789), as the plain one is too narrow for few
    rows; it called 5.5 % of A/A comparisons of 10 rows a change (benchmarks/results/calibration.json).
    LabError for a loss that is no finite number.
    """
    _require_finite(base, tuned)
    rows = int(np.count_nonzero(base[:, 1]))
    if questions is not None:
        base, tuned = (together(each, list(questions)) for each in (base, tuned))
    tokens = base[:, 1]
    differences = _resampled(tuned[:, 0] - base[:, 0], tokens, resamples, seed)
    drawn = int(np.count_nonzero(tokens))
    tail = _expanded_tail(drawn, level)
    low, high = np.quantile(differences, [tail, 1 - tail])
    total = tokens.sum()
    return Comparison(
        rows=rows,
        base=float(base[:, 0].sum() / total),
        tuned=float(tuned[:, 0].sum() / total),
        interval=(float(low), float(high)),
        questions=drawn,
        effective=float(total**2 / (tokens**2).sum()),
        level=level,
        unit=unit,
    )


def together(values: NDArray[np.float64], questions: Iterable[str]) -> NDArray[np.float64]:
    """The sums over the rows (the first axis) of each question, in the order in which they first occur."""
    place: dict[str, int] = {}
    places = [place.setdefault(question, len(place)) for question in questions]
    sums = np.zeros((len(place), *values.shape[1:]))
    np.add.at(sums, places, values)
    return sums


def _require_finite(*losses: NDArray[np.float64]) -> None:
    for each in losses:
        for row in np.flatnonzero(~np.isfinite(each).all(axis=1)):
            raise LabError(
                f"the loss of row {row} is {each[row, 0]}: the model's arithmetic broke. Load it in bfloat16 "
                "or float32; if that does not help, training diverged: use a smaller learning_rate."
            )


def compare_shares(base: NDArray[np.bool_], tuned: NDArray[np.bool_], unit: str) -> Comparison:
    """Compare the shares of true in two arrays of the same rows.

    The interval is Bonett and Price's adjusted Wald interval for paired proportions (2012, Journal of
    Educational and Behavioral Statistics 37). The bootstrap's has no width where no row differs, and calls
    four changed rows of 19 a change.
    """
    low, high = paired_interval(int(np.sum(tuned & ~base)), int(np.sum(base & ~tuned)), len(base))
    rows = len(base)
    return Comparison(rows, float(base.mean()), float(tuned.mean()), (low, high), rows, rows, unit=unit)


def paired_interval(up: int, down: int, rows: int) -> tuple[float, float]:
    """The 95 % interval of (up - down) / rows, where `up` of the rows became true and `down` became false."""
    up_share, down_share = (up + 1) / (rows + 2), (down + 1) / (rows + 2)
    middle = up_share - down_share
    error = math.sqrt((up_share + down_share - middle**2) / (rows + 2))
    width = NormalDist().inv_cdf(0.975) * error
    return middle - width, middle + width


def _expanded_tail(rows: int, level: float) -> float:
    """The share of resamples outside the interval on each side: smaller than (1 - level) / 2 for few rows."""
    from scipy.special import stdtrit

    if rows < 2:
        return 0.0
    width = math.sqrt(rows / (rows - 1)) * stdtrit(rows - 1, (1 + level) / 2)
    return NormalDist().cdf(-width)


def _resampled(
    values: NDArray[np.float64], weights: NDArray[np.float64], resamples: int, seed: int, size: int = 0
) -> NDArray[np.float64]:
    """The sum of the values over the sum of the weights in each resample, of as many rows or of `size`."""
    rng, rows = np.random.default_rng(seed), len(values)
    found, left = [], resamples
    while left:
        count = min(left, max(1, DRAWN_AT_ONCE // rows))
        draws = rng.integers(0, rows, size=(count, size or rows))
        found.append(values[draws].sum(axis=1) / np.maximum(weights[draws].sum(axis=1), 1e-9))
        left -= count
    return np.concatenate(found)


def batch_losses(totals: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """The loss per token of `rows` conversations drawn at random, 10,000 times: the model stands still."""
    return _resampled(totals[:, 0], totals[:, 1], 10_000, seed=3407, size=rows)


def by_group(
    groups: Sequence[str],
    base: NDArray[np.float64],
    tuned: NDArray[np.float64],
    order: Iterable[str] | None = None,
    questions: Sequence[str] | None = None,
    **options: Any,
) -> dict[str, Comparison]:
    """A comparison for each group of rows that occurs, in the order given, else in the alphabet's.

    `options` are those of `compare`. Without an order the `GROUPS` largest are compared, and how many are
    left out is printed.
    """
    array = np.array(groups)
    asked = np.arange(len(array)) if questions is None else np.array(questions)
    wanted = _largest(groups) if order is None else order
    chosen = {group: array == group for group in wanted}
    return {
        group: compare(base[rows], tuned[rows], questions=asked[rows], **options)
        for group, rows in chosen.items()
        if rows.any()
    }


def _largest(groups: Sequence[str]) -> list[str]:
    sizes = Counter(groups)
    if len(sizes) > GROUPS:
        print(f"{len(sizes) - GROUPS} of {len(sizes)} groups are left out, those with the fewest rows.")
    return sorted(name for name, _ in sizes.most_common(GROUPS))


def by_kind(rows: Any, base: NDArray[np.float64], tuned: NDArray[np.float64]) -> dict[str, Comparison]:
    """A comparison for each kind of held-out `rows` that occurs, in the order "row", "family".

    Rows that answer the same question are drawn together.
    """
    return by_group(rows["heldout"], base, tuned, ("row", "family"), questions_of(rows))


def gain_kept(adapter: Comparison, merged: Comparison) -> str:
    """How much of an adapter's gain its merge keeps, in words; both are compared with the same base."""
    if adapter.verdict == TOO_FEW:
        return "too few held-out rows to tell what the merge keeps of the adapter's gain"
    if adapter.verdict != IMPROVED:
        return "on this base the adapter has no measurable gain that its merge could lose"
    share = merged.difference / adapter.difference
    return f"the merge keeps {share:.1%} of the adapter's gain on the same base ({adapter.difference:+.3f})"


def questions_of(rows: Any) -> list[str]:
    """A hash of each row's first question."""
    return [question_key(messages) for messages in rows["messages"]]


def by_length(
    base: NDArray[np.float64], tuned: NDArray[np.float64], questions: Sequence[str]
) -> dict[str, Comparison]:
    """A comparison for each range of trained tokens in a row: below 32, 32 to 63, 64 to 127, and so on."""
    steps = np.maximum(np.log2(np.maximum(base[:, 1], 1)).astype(int), 4)
    names = {step: _range(int(step)) for step in sorted(set(steps.tolist()))}
    return by_group([names[step] for step in steps.tolist()], base, tuned, names.values(), questions)


def bits_per_byte(
    sizes: Sequence[int],
    base: NDArray[np.float64],
    tuned: NDArray[np.float64],
    questions: Sequence[str],
) -> Comparison:
    """The comparison per byte of answer text, which models with other tokenizers can be held against."""

    def bits(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([values[:, 0] / math.log(2), np.asarray(sizes, dtype=float)], axis=1)

    return compare(bits(base), bits(tuned), unit="bits per byte", questions=questions)


def _range(step: int) -> str:
    return "below 32 tokens" if step == 4 else f"{2**step} to {2 ** (step + 1) - 1} tokens"

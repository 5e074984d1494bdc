"""How fast a card trains that one does not have: from a speed measured on it, or from its peak.

The cards, their list prices and the measured speeds stand in `cards.toml`, each with its source.
"""

from __future__ import annotations

import datetime
import difflib
import functools
import re
import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelab.errors import LabError
from finelab.machine import Hardware
from finelab.train.memory import SHAPES, Setting, flops_per_token

TABLES = Path(__file__).parent / "cards.toml"
SAME_CARD_BAND = 0.10  # left out, a model on a card is predicted from the other one within 7 %
PEAK_BAND = 0.25  # left out, a card is off by -20, -6 and +27 % from the others' share of their peaks


@dataclass(frozen=True)
class Card:
    """A card as `cards.toml` has it; `key` is what `--gpu` takes."""

    key: str
    name: str
    memory_gib: float
    capability: tuple[int, int]
    peak_fp16_tflops: float
    source: str
    usd_per_hour: float | None = None

    @property
    def hardware(self) -> Hardware:
        """The card as `machine.decide` takes it; the computer around it does not matter there."""
        return Hardware(
            device="cuda",
            name=self.name,
            system="Linux",
            cores=1,
            memory_bytes=0,
            gpu_memory_bytes=int(self.memory_gib * 2**30),
            capability=self.capability,
        )


@dataclass(frozen=True)
class Point:
    """A speed that was measured: optimizer steps of `rows_per_step` rows, and the seconds they took."""

    card: str
    model: str
    rows_per_step: int
    per_device_train_batch_size: int
    steps: int
    seconds: float
    padded_tokens_per_row: float
    source: str

    @property
    def tokens_per_s(self) -> float:
        """Padded tokens per second."""
        return self.steps * self.rows_per_step * self.padded_tokens_per_row / self.seconds

    @property
    def flops_per_s(self) -> float:
        """What the card did per second."""
        return self.tokens_per_s * self.flops_per_token

    @property
    def flops_per_token(self) -> int:
        """Of its model, with the settings that every point was measured with."""
        shape = SHAPES[self.model]
        return flops_per_token(shape, Setting(16, tuple(shape.projections), 2, 2048, 4, 2, "unsloth", "cuda"))


@dataclass(frozen=True)
class CardRate:
    """The speed to plan with; `at_best` when no card or model that was measured comes near."""

    flops_per_s: float
    band_share: float
    basis: str
    at_best: bool


@dataclass(frozen=True)
class Prices:
    """Where and when the cards' list prices were read."""

    date: datetime.date
    provider: str
    source: str
    note: str


@functools.cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(TABLES.read_text(encoding="utf-8"))


def cards() -> dict[str, Card]:
    """Every card, by its key."""
    return {
        key: Card(key=key, **values | {"capability": tuple(values["capability"])})
        for key, values in _tables()["cards"].items()
    }


def points() -> list[Point]:
    """The measured speeds."""
    return [Point(**values) for values in _tables()["measured"]]


def prices() -> Prices:
    """Of what day the list prices are, and whose."""
    return Prices(**_tables()["prices"])


def finetome() -> dict[str, Any]:
    """Rows, `mu` and `sigma` of FineTome's token lengths, and the share of tokens that is trained."""
    return dict(_tables()["finetome"])


def card_called(name: str) -> Card:
    """The card that `--gpu` names; LabError with the nearest names for one that is not there."""
    known = cards()
    asked = _spelt(name)
    for key, card in known.items():
        if asked in (key, _spelt(card.name)):
            return card
    near = difflib.get_close_matches(asked, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}."
    raise LabError(f"--gpu {name}: there is no such card; {hint} `--gpu list` shows them all.")


def _spelt(name: str) -> str:
    """A card's name as keys are spelt, without what its maker puts before it."""
    words = re.split(r"[\s_-]+", name.strip().lower())
    return "-".join(word for word in words if word not in ("nvidia", "geforce", "quadro", "tesla", "gpu"))


def card_rate(card: Card, model_flops: float, measured: Sequence[Point] | None = None) -> CardRate:
    """The speed of a card for a model of `model_flops` per token.

    From the measured model on this card that is nearest in FLOPs, else from the card's peak and the mean
    share of their peaks that the measured cards reach.
    """
    known = points() if measured is None else measured
    peaks = {key: each.peak_fp16_tflops * 1e12 for key, each in cards().items()}
    too_fast = card.peak_fp16_tflops * 1e12 > 2 * max(peaks[point.card] for point in known)
    too_small = model_flops < min(point.flops_per_token for point in known) / 2
    if here := [point for point in known if point.card == card.key]:
        nearest = min(here, key=lambda point: abs(point.flops_per_token - model_flops))
        flops, band, basis = nearest.flops_per_s, SAME_CARD_BAND, f"{nearest.model} measured on this card"
    else:
        share = statistics.mean(point.flops_per_s / peaks[point.card] for point in known)
        flops, band = share * peaks[card.key], PEAK_BAND
        basis = f"{share:.0%} of its {card.peak_fp16_tflops:g} TFLOP/s, the mean of the cards measured"
    return CardRate(flops, band, basis, too_fast or too_small)


def leave_one_out() -> list[dict[str, Any]]:
    """Each measured speed predicted from the others: card, model, both rates in tokens/s, the error."""
    rows = []
    for point in points():
        others = [each for each in points() if each != point]
        rate = card_rate(cards()[point.card], point.flops_per_token, others)
        predicted = rate.flops_per_s / point.flops_per_token
        rows.append(
            {
                "card": point.card,
                "model": point.model,
                "measured_tokens_per_s": round(point.tokens_per_s),
                "predicted_tokens_per_s": round(predicted),
                "error": round(point.tokens_per_s / predicted - 1, 3),
                "from": rate.basis,
            }
        )
    return rows

"""The search for the fastest batches: settings are tried one after the other, and the best is kept.

Pure: what a setting gives comes from the function that it is made with, which is `trial.trial` on a machine
and a formula in the tests. One thing is changed at a time, from the recipe's setting on: the micro-batch,
length grouping, packing, checkpointing, autocast. What counts are trained tokens per second; the loss must
agree with that of the recipe's setting.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from finelab.errors import LabError
from finelab.machine import Profile
from finelab.show import Live
from finelab.train.batches import batching

MARGIN = 1.03  # by so much a setting has to be faster, twice, to replace another
LOSS_TOLERANCE = 0.01  # nats per trained token; bf16 alone moves the loss by up to 0.006
TOKENS_TOLERANCE = 0.05  # by which packed rows may change the tokens of an optimizer step
LEAST_S, MOST_S, SHARE = 25.0, 300.0, 0.03  # a tuning may take 3 % of its run, within these bounds


@dataclass(frozen=True)
class Setting:
    """What is tuned, by the names of `SFTConfig`; where rows are packed, they are what is counted."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    train_sampling_strategy: str
    packing: bool
    gradient_checkpointing: bool
    bf16: bool

    def __str__(self) -> str:
        extras = {
            "packed": self.packing,
            "grouped": self.train_sampling_strategy == "group_by_length",
            "checkpointing": self.gradient_checkpointing,
            "bf16": self.bf16,
        }
        batch = f"{self.per_device_train_batch_size} x {self.gradient_accumulation_steps}"
        return ", ".join([batch, *(name for name, holds in extras.items() if holds)])


@dataclass(frozen=True)
class Measured:
    """A trial's result; the loss is in nats per trained token, the peak that of the card or the process."""

    trained_tokens_per_s: float
    loss: float
    padding_share: float
    peak_memory_bytes: int
    seconds_per_token: float


@dataclass(frozen=True)
class Trial:
    """A line of the table: what was tried, how it compares with the recipe's setting, and the verdict."""

    setting: str
    tokens_per_step: int
    verdict: str
    trained_tokens_per_s: float | None = None
    ratio: float | None = None
    padding_share: float | None = None
    peak_memory_bytes: int | None = None
    idle_memory_bytes: int | None = None
    loss_difference: float | None = None


@dataclass(frozen=True)
class Tuned(Setting):
    """The chosen setting, and the trials that led to it: none where the recipe has `tune = false`."""

    trials: list[Trial] = field(default_factory=list)

    def arguments(self, profile: Profile) -> dict[str, Any]:
        """What `SFTConfig` takes."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(Setting)}
        return values | batching(profile, self.packing)

    def __str__(self) -> str:
        return table(self.trials) if self.trials else f"{super().__str__()}: as the recipe says"


@dataclass(frozen=True)
class Rows:
    """Mean tokens of the data's rows, as they are and packed, and the tokens of the whole run."""

    mean: float
    mean_packed: float
    run_tokens: float

    def mean_of(self, setting: Setting) -> float:
        """The mean tokens of a row of this setting."""
        return self.mean_packed if setting.packing else self.mean

    def tokens_per_step(self, setting: Setting) -> int:
        """The mean tokens of an optimizer step."""
        rows = setting.per_device_train_batch_size * setting.gradient_accumulation_steps
        return round(rows * self.mean_of(setting))


class Search:
    """Tries settings and keeps the best; `measure` gives None where the memory is not enough."""

    def __init__(
        self,
        measure: Callable[[Setting], Measured | None],
        reference: Setting,
        data: Rows,
        capacity_bytes: int,
    ) -> None:
        self.measure, self.reference, self.data = measure, reference, data
        self.capacity_bytes = capacity_bytes
        self.best: Setting | None = None
        self.found: dict[Setting, Measured | None] = {}
        self.verdicts: dict[Setting, str] = {}
        self.loss: float | None = None
        self.live = Live(every_s=0)
        self.began, self.limit_s = time.monotonic(), LEAST_S

    def run(self, can_leave_autocast: bool) -> Tuned:
        """The best setting; LabError when none fits into the memory."""
        self._try(self.reference)
        self._climb(self.reference)
        if self.best is None:
            self._climb(self._least())
        self._group(self._now)
        self._pack()
        if self._now.gradient_checkpointing and self.reference.gradient_checkpointing:
            self._try(dataclasses.replace(self._now, gradient_checkpointing=False))
        if can_leave_autocast:
            self._try(dataclasses.replace(self._now, bf16=False))
        self.verdicts[self._now] = "chosen"
        trials = [self._line(setting, verdict) for setting, verdict in self.verdicts.items()]
        return Tuned(**dataclasses.asdict(self._now), trials=trials)

    @property
    def _now(self) -> Setting:
        return self.best or self.reference

    def _climb(self, start: Setting) -> None:
        """Larger micro-batches until one is slower than the best; if none was faster, smaller ones."""
        rows = start.per_device_train_batch_size * start.gradient_accumulation_steps
        size = start.per_device_train_batch_size
        sizes = [each for each in range(1, rows + 1) if rows % each == 0]
        larger = [_cut(start, each, rows) for each in sizes if each > size]
        smaller = [_cut(start, each, rows) for each in reversed(sizes) if each < size]
        if self.found[start] is None or not self._while_faster(larger):
            self._while_faster(smaller)

    def _while_faster(self, settings: Sequence[Setting]) -> bool:
        """Try one after the other until one is worse; whether any was faster. Until one fits, go on.

        One within the noise does not end it: each doubling may add less than the noise, and all of them more.
        """
        won = False
        for setting in settings:
            if self._try(setting):
                won = True
            elif self.best and self.verdicts[setting] != "within noise":
                break
        return won

    def _least(self) -> Setting:
        """What needs the least memory: one row at a time, with checkpointing."""
        rows = self.reference.per_device_train_batch_size * self.reference.gradient_accumulation_steps
        least = _cut(dataclasses.replace(self.reference, gradient_checkpointing=True), 1, rows)
        if not self._try(least):
            raise LabError(
                f"one row at a time with checkpointing does not fit into {self.capacity_bytes / 1e9:.1f} GB, "
                "or into what other programs leave of it: close them; `python lab.py plan` names the nearest "
                "setting that fits."
            )
        return least

    def _group(self, setting: Setting) -> None:
        found, grouped = self.found[setting], setting.train_sampling_strategy == "group_by_length"
        if setting.train_sampling_strategy == "sequential" or found is None:
            return
        other = dataclasses.replace(
            setting, train_sampling_strategy="random" if grouped else "group_by_length"
        )
        if grouped or found.padding_share > 0:
            self._try(other)
        else:
            self.verdicts[other] = "not tried: no padding to save"

    def _pack(self) -> None:
        """The other kind of rows, as many as hold the tokens of an optimizer step."""
        wanted = self.data.tokens_per_step(self.reference)
        other = dataclasses.replace(self._now, packing=not self._now.packing)
        rows = max(1, round(wanted / self.data.mean_of(other)))
        other = _cut(other, 1, rows)
        if abs(self.data.tokens_per_step(other) / wanted - 1) > TOKENS_TOLERANCE:
            self.verdicts[other] = "not tried: another effective batch"
        elif self._try(other):
            self._climb(other)

    def _try(self, setting: Setting) -> bool:
        """Measure a setting; whether it is now the best."""
        if self.best and time.monotonic() - self.began > self.limit_s:
            self.verdicts[setting] = f"not tried: {self.limit_s:.0f} s were over"
            return False
        self.verdicts[setting] = self._verdict(setting, self._measured(setting))
        won = self.verdicts[setting] in ("the first", "faster")
        if won:
            self.best = setting
        return won

    def _verdict(self, setting: Setting, found: Measured | None) -> str:
        if found is None:
            return "out of memory"
        if self.loss is None:
            if not math.isfinite(found.loss):
                raise LabError(
                    f"the loss before training is {found.loss} with the setting {setting}: check the model's "
                    "weights, or let another model answer in its place."
                )
            self.loss = found.loss
            run_s = found.seconds_per_token * self.data.run_tokens
            self.limit_s = min(max(SHARE * run_s, LEAST_S), MOST_S)
        if not abs(found.loss - self.loss) <= LOSS_TOLERANCE:
            return "another loss"
        if self.best is None:
            return "the first"
        if self._beats(setting, self.best):
            self._measured(self.best)
            self._measured(setting)
        if self._beats(setting, self.best):
            return "faster"
        return "slower" if self._rate(setting) < self._rate(self.best) else "within noise"

    def _beats(self, setting: Setting, other: Setting) -> bool:
        return self._rate(setting) > MARGIN * self._rate(other)

    def _rate(self, setting: Setting) -> float:
        found = self.found[setting]
        return found.trained_tokens_per_s if found else 0.0

    def _measured(self, setting: Setting) -> Measured | None:
        found = self.found[setting] = self.measure(setting)
        said = f"{found.trained_tokens_per_s:,.0f} trained tokens/s" if found else "out of memory"
        self.live.show(f"tuning: {setting}: {said}")
        return found

    def _line(self, setting: Setting, verdict: str) -> Trial:
        found, line = (
            self.found.get(setting),
            Trial(str(setting), self.data.tokens_per_step(setting), verdict),
        )
        if found is None:
            return line
        first = self._rate(self.reference)
        return dataclasses.replace(
            line,
            trained_tokens_per_s=round(found.trained_tokens_per_s, 1),
            ratio=round(found.trained_tokens_per_s / first, 3) if first else None,
            padding_share=round(found.padding_share, 4),
            peak_memory_bytes=found.peak_memory_bytes,
            idle_memory_bytes=self.capacity_bytes - found.peak_memory_bytes,
            loss_difference=round(found.loss - (self.loss or 0.0), 5),
        )


def _cut(setting: Setting, size: int, rows: int) -> Setting:
    """The setting with `rows` rows in an optimizer step, `size` at a time."""
    return dataclasses.replace(
        setting, per_device_train_batch_size=size, gradient_accumulation_steps=rows // size
    )


def table(trials: Sequence[Trial]) -> str:
    """A line for each trial; memory in GB, the loss difference in nats per trained token."""
    head = ("setting", "tokens/step", "trained/s", "ratio", "padding", "peak", "idle", "loss", "verdict")
    lines = [head, *map(_cells, trials)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, len(head) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(trial: Trial) -> tuple[str, ...]:
    numbers = (
        (trial.trained_tokens_per_s, "{:,.0f}"),
        (trial.ratio, "{:.2f}"),
        (trial.padding_share, "{:.0%}"),
        (trial.peak_memory_bytes and trial.peak_memory_bytes / 1e9, "{:.2f}"),
        (trial.idle_memory_bytes and trial.idle_memory_bytes / 1e9, "{:.2f}"),
        (trial.loss_difference, "{:+.4f}"),
    )
    shown = ["" if value is None else form.format(value) for value, form in numbers]
    return (trial.setting, f"{trial.tokens_per_step:,}", *shown, trial.verdict)

"""The fastest batches that this machine has, at the recipe's effective batch: measured, recorded, kept.

One thing is changed at a time, from the recipe's setting on, and the best is kept: the micro-batch, length
grouping, packing, checkpointing, autocast. Every trial computes forward and backward of the same rows, whose
lengths represent the data's, with a trainer made as notebook 03 makes it. What counts are trained tokens per
second; the loss on the rows must agree with that of the recipe's setting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from finelab.data.xray import packed_rows
from finelab.errors import LabError
from finelab.machine import Profile, out_of_memory, release_memory
from finelab.recipe import SAMPLING, Recipe
from finelab.run import Run
from finelab.show import Live
from finelab.train import memory
from finelab.train.batches import (
    batching,
    collator,
    no_progress_bars,
    positions,
    token_counts,
    training_rows,
)
from finelab.train.probe import prepared, step, unchanged

MARGIN = 1.03  # by so much a setting has to be faster, twice, to replace another
LOSS_TOLERANCE = 0.01  # nats per trained token; bf16 alone moves the loss by up to 0.006
TOKENS_TOLERANCE = 0.15  # by which packed rows may change the tokens of an optimizer step
LEAST_S, MOST_S, SHARE = 25.0, 300.0, 0.03  # a tuning may take 3 % of its run, within these bounds
STEPS = 2  # optimizer steps whose rows make a trial


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


def tune(run: Run, profile: Profile, model: Any, tokenizer: Any, rows: Any) -> Tuned:
    """The setting to train with: measured once for a machine and its data, then read from the run's evidence.

    A training that has begun keeps its setting wherever it goes on. Model and random states are afterwards
    what they were. LabError when nothing fits into the memory, and when a training that has begun has no
    readable record of its setting.
    """
    tuned = _tuned(run, profile, model, tokenizer, rows)
    if hasattr(model, "_unsloth_gradient_checkpointing") and not tuned.gradient_checkpointing:
        # On a card Unsloth's `train` does not ask the trainer, but what the adapter was made with.
        model._unsloth_gradient_checkpointing = False
    return tuned


def _tuned(run: Run, profile: Profile, model: Any, tokenizer: Any, rows: Any) -> Tuned:
    reference = setting_of(run.recipe, profile)
    if not run.recipe.training.tune:
        return Tuned(**dataclasses.asdict(reference))
    begun = any(run.checkpoints.glob("checkpoint-*"))
    if earlier := recorded(run, profile, begun):
        return earlier
    if begun:
        raise LabError(
            f"evidence.json of run {run.name!r} has no readable record of the tuning that its training began "
            "with; restore the file, or start a new run with --run NAME."
        )
    if run.evidence().get("tuning"):
        print("The record of an earlier tuning is not of this machine and data; it is measured again.")
    lengths, _ = token_counts(rows)
    data = rows_of(lengths, run.recipe, reference)
    chosen = sample(lengths, round(STEPS * data.tokens_per_step(reference) / data.mean))
    picked = rows.select(chosen)
    capacity = profile.hardware.gpu_memory_bytes or profile.hardware.memory_bytes

    shape = memory.shape_from_config(model.config.to_dict())

    def measure(setting: Setting) -> Measured | None:
        if profile.device == "cpu" and needed_bytes(setting, run.recipe, profile, shape, lengths) > capacity:
            return None
        return trial(setting, run, profile, model, tokenizer, picked)

    if profile.device == "cuda":
        measure(reference)  # compiles the kernels, so that no trial and not the time limit contains it
    can_leave_autocast = profile.device == "cpu" and profile.bf16 and not profile.fast_cpu_step
    tuned = Search(measure, reference, data, capacity).run(can_leave_autocast)
    keep(run, profile, tuned)
    return tuned


def needed_bytes(
    setting: Setting, recipe: Recipe, profile: Profile, shape: memory.ModelShape, lengths: Sequence[int]
) -> int:
    """The estimate for the largest micro-batch: without a card Linux ends a process whose memory is over."""
    rows = setting.per_device_train_batch_size
    longest = sorted([recipe.model.max_seq_length] * rows if setting.packing else lengths)[-rows:]
    wanted = memory.setting_of(recipe, profile, len(longest), math.ceil(sum(longest) / len(longest)))
    wanted = dataclasses.replace(wanted, use_gradient_checkpointing=setting.gradient_checkpointing)
    return sum(memory.memory(shape, wanted).values())


def untimed(run: Run, profile: Profile) -> Tuned:
    """The setting of an earlier sitting, else the recipe's own, recorded so that a later one keeps it."""
    own = Tuned(**dataclasses.asdict(setting_of(run.recipe, profile)))
    if not run.recipe.training.tune:
        return own
    tuned = recorded(run, profile, begun=any(run.checkpoints.glob("checkpoint-*"))) or own
    keep(run, profile, tuned)
    return tuned


def keep(run: Run, profile: Profile, tuned: Tuned) -> None:
    """Keep a setting in the run's evidence, with what it was measured on."""
    run.record("tuning", dataclasses.asdict(tuned) | {"measured_on": _place(run, profile)})


def recorded(run: Run, profile: Profile, begun: bool) -> Tuned | None:
    """The setting in the run's evidence, if it is readable and, unless training has begun, of this place.

    In another dtype than it was measured in it takes this machine's autocast, which the checkpoint's
    fingerprint then names as a change.
    """
    kept, here = run.evidence().get("tuning", {}), _place(run, profile)
    tuned, place = read(kept), kept.get("measured_on", here)
    if tuned is None or not (begun or place == here):
        return None
    same_dtype = place["dtype"] == here["dtype"]
    return tuned if same_dtype else dataclasses.replace(tuned, bf16=bool(profile.bf16))


def _place(run: Run, profile: Profile) -> dict[str, Any]:
    """What a tuning's numbers hold for."""
    data = run.evidence().get("data", {}).get("sha256")
    return {"machine": profile.hardware.name, "dtype": profile.dtype, "data": data}


def setting_of(recipe: Recipe, profile: Profile) -> Setting:
    """The recipe's own setting on this machine."""
    training = recipe.training
    return Setting(
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        train_sampling_strategy=training.train_sampling_strategy,
        packing=training.packing,
        gradient_checkpointing=bool(profile.use_gradient_checkpointing),
        bf16=bool(profile.bf16),
    )


def read(record: Any) -> Tuned | None:
    """The tuning that a run's evidence holds; None where it is missing, damaged, or of an older form."""
    try:
        values = {each.name: record[each.name] for each in dataclasses.fields(Tuned)}
        tuned = Tuned(**values | {"trials": [Trial(**each) for each in values["trials"]]})
    except (KeyError, TypeError):
        return None
    counts = tuned.per_device_train_batch_size, tuned.gradient_accumulation_steps
    flags = tuned.packing, tuned.gradient_checkpointing, tuned.bf16
    sound = (
        all(type(count) is int and count >= 1 for count in counts)
        and all(type(flag) is bool for flag in flags)
        and tuned.train_sampling_strategy in SAMPLING
    )
    return tuned if sound else None


def rows_of(lengths: Sequence[int], recipe: Recipe, reference: Setting) -> Rows:
    """The data's rows as the search needs to know them."""
    total, training = sum(lengths), recipe.training
    found = Rows(
        mean=total / len(lengths),
        mean_packed=total / packed_rows(lengths, recipe.model.max_seq_length),
        run_tokens=float(total * training.num_train_epochs),
    )
    if training.max_steps > 0:
        steps_tokens = float(training.max_steps * found.tokens_per_step(reference))
        return dataclasses.replace(found, run_tokens=steps_tokens)
    return found


def sample(lengths: Sequence[int], count: int) -> list[int]:
    """The numbers of `count` rows whose lengths are spread as all lengths are, the shortest first.

    Of two or more the last is the longest of all, which decides whether a micro-batch fits into the memory.
    """
    ordered = sorted(range(len(lengths)), key=lambda i: lengths[i])
    count = min(max(count, 1), len(lengths))
    chosen = [ordered[int((i + 0.5) / count * len(ordered))] for i in range(count)]
    return [*chosen[:-1], ordered[-1]] if count > 1 else chosen


# The search


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
        best = self.best or self._least()
        self._group(best)
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
                f"one row at a time with checkpointing does not fit into {self.capacity_bytes / 1e9:.1f} GB; "
                "`python lab.py plan` names the nearest setting that does."
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
                    'weights, or try FINELAB_MACHINE="dtype=float32".'
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


# A trial


def trial(
    setting: Setting, run: Run, profile: Profile, model: Any, tokenizer: Any, rows: Any
) -> Measured | None:
    """Forward and backward of these rows with a setting, and everything put back; None when out of memory."""
    try:
        with unchanged(model):
            return measured(trainer_of(setting, run, profile, model, tokenizer, rows), setting)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return None
    finally:
        release_memory()  # so that the next trial's peak is its own


def trainer_of(setting: Setting, run: Run, profile: Profile, model: Any, tokenizer: Any, rows: Any) -> Any:
    """The trainer that notebook 03 makes of this setting, over the rows of the trial."""
    from trl import SFTConfig, SFTTrainer

    max_length = run.recipe.model.max_seq_length
    with no_progress_bars():
        return SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=training_rows(rows, profile, setting.packing, max_length),
            data_collator=collator(tokenizer, profile),
            args=SFTConfig(
                output_dir=str(run.checkpoints),
                max_length=max_length,
                fp16=profile.fp16,
                seed=run.recipe.training.seed,
                use_cpu=profile.device == "cpu",
                report_to="none",
                disable_tqdm=True,
                **Tuned(**dataclasses.asdict(setting)).arguments(profile),
            ),
        )


def measured(trainer: Any, setting: Setting) -> Measured:
    """Time the trainer's rows, cut into micro-batches, after one that is not timed."""
    loader = trainer.get_train_dataloader()
    lengths = [len(row) for row in trainer.train_dataset["input_ids"]]
    batches = micro_batches(lengths, setting, trainer.args.seed)
    with prepared(trainer) as model, _peak_memory() as peak:
        step(trainer, model, loader, [first_batch(lengths, batches, trainer.args.device.type)])
        began = time.perf_counter()
        done = step(trainer, model, loader, batches)
        seconds = time.perf_counter() - began
    return Measured(
        trained_tokens_per_s=done.trained_tokens / seconds,
        loss=done.loss,
        padding_share=1 - sum(lengths) / sum(batch.positions for batch in done.batches),
        peak_memory_bytes=peak(),
        seconds_per_token=seconds / sum(lengths),
    )


def micro_batches(lengths: Sequence[int], setting: Setting, seed: int) -> list[list[int]]:
    """The rows in the order of the setting's sampler: at random, or the longest together."""
    order = list(range(len(lengths)))
    if setting.train_sampling_strategy == "group_by_length":
        order.sort(key=lambda i: -lengths[i])
    else:
        random.Random(seed).shuffle(order)
    size = setting.per_device_train_batch_size
    return [order[start : start + size] for start in range(0, len(order), size)]


def first_batch(lengths: Sequence[int], batches: Sequence[list[int]], device: str) -> list[int]:
    """The rows that are computed before the timed ones: the smallest micro-batch.

    On a card the largest that training can meet, the longest row as often as a micro-batch has rows: one that
    does not fit has to fail here, and not hours later.
    """
    if device == "cuda":
        return [max(range(len(lengths)), key=lambda i: lengths[i])] * max(map(len, batches))
    return min(batches, key=lambda rows: positions([lengths[i] for i in rows], flat=True))


@contextlib.contextmanager
def _peak_memory() -> Iterator[Callable[[], int]]:
    """Yield what gives the peak of the block: reserved by torch on CUDA, else resident in this process.

    The process's own record of its peak (`machine.peak_memory_bytes`) never falls, so it is sampled.
    """
    import psutil
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield lambda: int(torch.cuda.max_memory_reserved())
        return
    process, ended = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]

    def sample_until_ended() -> None:
        while not ended.wait(0.02):
            seen.append(process.memory_info().rss)

    thread = threading.Thread(target=sample_until_ended, daemon=True)
    thread.start()
    try:
        yield lambda: int(max(seen))
    finally:
        ended.set()
        thread.join()

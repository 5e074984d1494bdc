"""What a training run will take, before anything long: steps, tokens, time, memory, disk, cost.

The batches are those the trainer will form, from the real token lengths; the time comes from a probe of some
of them, or from a card's measured speed; memory and disk from `memory.py`.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finelab import machine, resources
from finelab.errors import LabError
from finelab.machine import Profile
from finelab.recipe import Recipe
from finelab.resources import out_of_memory
from finelab.run import TRAINING_LOCK, Run, alone
from finelab.show.live import SHARE, in_notebook
from finelab.train import cards, ledger
from finelab.train.batches import Batch, flattens, row_squares, token_counts
from finelab.train.memory import (
    ModelShape,
    Setting,
    counted,
    disk,
    flops_per_token,
    memory,
    merge_memory,
    nearest_fit,
    publish_memory,
    setting_of,
    shape_from_config,
    shape_memory,
    shape_of,
)
from finelab.train.probe import Probe, probe, timed_look, timed_save
from finelab.train.workload import Workload, schedule_of, workload, workload_of

DRIFT = 0.15  # the least half-width of a probe's band: of 16 runs here each took 6 % less to 13 % more
CPU_ADAM_S = 5e-9  # clipping and AdamW take so long for each trained parameter; 3.5 to 5.6 measured
SAVE_S = 0.15  # a checkpoint's small files, each forced to the disk, and its manifest
LEDGER_BAND = 0.15  # of a time from earlier runs, whose rows may have been of other lengths
SAVE_TOTAL_LIMIT = 2  # as notebook 03 saves; with early stopping the best one too


# Time


@dataclass(frozen=True)
class Rate:
    """The seconds of a micro-batch, and half the width of the band around their sum, as a share.

    The run takes `beside_share` of their sum and `beside_s` besides.
    """

    overhead_s: float
    per_token_s: float
    per_square_s: float
    band_share: float
    basis: str
    beside_share: float = 0.0
    beside_s: float = 0.0

    def seconds(self, batches: Sequence[Batch]) -> float:
        """The seconds that a run of these micro-batches takes."""
        positions = sum(batch.positions for batch in batches)
        squares = sum(batch.squares for batch in batches)
        per_batch = self.overhead_s * len(batches)
        computing = per_batch + self.per_token_s * positions + self.per_square_s * squares
        return computing * (1 + self.beside_share) + self.beside_s


def fit_rate(timings: Sequence[tuple[Batch, float]]) -> Rate:
    """Fit seconds = overhead + a x positions + b x squared lengths to micro-batches and their seconds.

    Least squares of the relative errors, no term below zero. The band is two standard errors of the mean
    residual, but at least DRIFT.
    """
    seconds = np.array([each for _, each in timings])
    _, positions, squares = np.array([batch for batch, _ in timings], dtype=float).T
    terms = np.stack([np.ones_like(seconds), positions, squares], axis=1) / seconds[:, None]
    best, residuals = np.zeros(3), np.ones_like(seconds)
    for chosen in ([1], [0, 1], [1, 2], [0, 1, 2]):
        if len(chosen) > len({batch for batch, _ in timings}):
            continue
        found = np.zeros(3)
        found[chosen] = np.linalg.lstsq(terms[:, chosen], np.ones_like(seconds), rcond=None)[0]
        error = 1 - terms @ found
        if (found >= 0).all() and (error**2).sum() < (residuals**2).sum():
            best, residuals = found, error
    free = max(len(timings) - np.count_nonzero(best), 1)
    band = 2 * math.sqrt((residuals**2).sum() / free / len(timings))
    overhead, per_token, per_square = best.tolist()
    basis = f"a probe of {len(timings)} micro-batches"
    return Rate(overhead, per_token, per_square, max(DRIFT, band), basis)


def rate_on_card(card: cards.Card, shape: ModelShape, setting: Setting) -> tuple[Rate, bool]:
    """The rate of a card that is not here, and whether it is one at best."""
    flops = flops_per_token(shape, setting)
    found = cards.card_rate(card, flops)
    return Rate(0, flops / found.flops_per_s, 0, found.band_share, found.basis), found.at_best


# The plan


@dataclass(frozen=True)
class Plan:
    """What a run will take, as plain numbers; `evidence.json` keeps them under `plan`.

    `predicted` has the ledger's keys, without `seconds` and `tokens_per_s` where no speed is known. `memory`
    is the estimate by part; what counts is `memory_needed_bytes`, which a probe and earlier runs mend.
    """

    predicted: dict[str, float]
    seconds_band: list[float]
    tokens: int
    memory: dict[str, int]
    memory_needed_bytes: int
    memory_capacity_bytes: int
    fits: str
    disk: dict[str, int]
    merge_memory_bytes: int
    publish_memory_bytes: int
    cloud: list[dict[str, Any]]
    correction: dict[str, float]
    basis: list[str]
    actual: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)

    def rows(self, now: datetime.datetime) -> list[tuple[str, str]]:
        """The table: a label and a text for each line."""
        predicted, padded = self.predicted, self.predicted["padded_tokens"]
        lines = [
            ("steps", f"{predicted['steps']:,}"),
            ("trained tokens", f"{predicted['trained_tokens']:,} of {self.tokens:,}"),
            ("padded tokens", f"{padded:,}, {1 - self.tokens / padded:.0%} of them padding"),
            *self._time(now),
            ("memory", f"{gigabytes(self.memory_needed_bytes)} of {gigabytes(self.memory_capacity_bytes)}"),
            *((f"  {part}", gigabytes(size)) for part, size in self.memory.items()),
            ("fits", self.fits),
            ("disk", gigabytes(sum(self.disk.values()))),
            *((f"  {part}", gigabytes(size)) for part, size in self.disk.items()),
            ("RAM to merge", f"{gigabytes(self.merge_memory_bytes)}, streamed"),
            *self._publishing(),
        ]
        for offer in self.cloud:
            least = "at least " if offer["at_best"] else ""
            cost = f"{least}{duration(offer['seconds'])}, {least}${offer['usd']:.2f}"
            lines.append((f"on {offer['card']}", cost))
        return lines + [("" if i else "from", text) for i, text in enumerate(self.basis)]

    def _publishing(self) -> list[tuple[str, str]]:
        """Whether the card can hold what notebook 04 loads, which is in 16 bit also after a run in 4 bit."""
        if not self.publish_memory_bytes:
            return []
        text = f"at least {gigabytes(self.publish_memory_bytes)} of the card's memory, as it loads 16 bit"
        if self.publish_memory_bytes > self.memory_capacity_bytes:
            in_float32 = gigabytes(2 * self.disk["merged model"])
            text += (
                "; too much: run notebook 04 without the card, with CUDA_VISIBLE_DEVICES=-1 and "
                f"--run NAME --stages publish, which takes about {in_float32} of main memory, in float32"
            )
        return [("to publish", text)]

    def _time(self, now: datetime.datetime) -> list[tuple[str, str]]:
        if "seconds" not in self.predicted:
            return [("time", "not known before notebook 03 has timed some micro-batches here")]
        seconds = self.predicted["seconds"]
        low, high = self.seconds_band
        ends = [f"{now + datetime.timedelta(seconds=each):%a %d %b %H:%M}" for each in (seconds, low, high)]
        return [
            ("time", f"{duration(seconds)} ({duration(low)} to {duration(high)})"),
            ("finished", f"{ends[0]} ({ends[1]} to {ends[2]}), if started now"),
        ]

    def __str__(self) -> str:
        lines = self.rows(datetime.datetime.now())
        width = max(len(label) for label, _ in lines)
        return "\n".join(f"{label:{width}}  {text}" for label, text in lines)


def make_plan(
    recipe: Recipe,
    profile: Profile,
    shape: ModelShape,
    work: Workload,
    rate: Rate | None,
    probed: Probe | None = None,
    earlier: ledger.Correction = ledger.NONE,
    basis: Sequence[str] = (),
    within_reach: int | None = None,
) -> Plan:
    """Put the plan together, its memory from a probe if there is one, else from the estimate by part.

    It has to fit into the bytes `within_reach`, left out: into all that the machine has.
    """
    setting = setting_of(recipe, profile, *work.largest)
    parts, cloud = memory(shape, setting), _cloud(recipe, shape, work)
    peak = round(_peak(shape, setting, parts, work, probed) * earlier.peak_memory_bytes)
    needed, capacity = peak, within_reach or profile.hardware.memory_bytes
    if profile.device == "cuda":
        needed, capacity = peak + parts["context"], profile.hardware.gpu_memory_bytes
    seconds = rate.seconds(work.batches) * earlier.seconds if rate else 0.0
    return Plan(
        predicted=_predicted(work, seconds, peak),
        seconds_band=[seconds * (1 + side * rate.band_share) for side in (-1, 1)] if rate else [],
        tokens=work.tokens,
        memory=parts,
        memory_needed_bytes=needed,
        memory_capacity_bytes=capacity,
        fits=_fits(recipe, shape, setting, work.longest, needed, capacity),
        disk=disk(shape, setting, SAVE_TOTAL_LIMIT + (recipe.training.early_stopping_patience > 0)),
        merge_memory_bytes=merge_memory(shape, recipe.lora.target_modules),
        publish_memory_bytes=publish_memory(shape, setting) if profile.device == "cuda" else 0,
        cloud=cloud,
        correction={"seconds": earlier.seconds, "peak_memory_bytes": earlier.peak_memory_bytes},
        basis=[*basis, *_basis(rate, earlier, cloud)],
    )


def _predicted(work: Workload, seconds: float, peak: int) -> dict[str, float]:
    timed = {"seconds": round(seconds, 2), "tokens_per_s": round(work.tokens / seconds, 2)} if seconds else {}
    return {
        "steps": work.steps,
        "padded_tokens": work.padded_tokens,
        "trained_tokens": work.trained_tokens,
        **timed,
        "peak_memory_bytes": peak,
    }


def _peak(
    shape: ModelShape, setting: Setting, parts: dict[str, int], work: Workload, probed: Probe | None
) -> int:
    """What `resources.peak_memory_bytes` will say; a probe has seen neither Adam's moments nor all shapes."""
    seen, known = 1, counted(parts, setting.device)
    if probed:
        seen, known = probed.shapes, probed.peak_memory_bytes + parts["optimizer"]
    return known + shape_memory(shape, setting, work.shapes - seen, work.mean_positions)


def _basis(rate: Rate | None, earlier: ledger.Correction, cloud: Sequence[Any]) -> list[str]:
    lines = [f"time: {rate.basis}"] if rate else []
    listed = cards.prices()
    where = "on a card: these batches; `lab.py plan --gpu` counts the padding of those that were measured"
    priced = [where, f"cost: list prices of {listed.provider}, {listed.date}"] if cloud else []
    return [*lines, *earlier.lines(), *priced]


def _fits(
    recipe: Recipe, shape: ModelShape, setting: Setting, longest: int, needed: int, capacity: int
) -> str:
    if needed <= capacity:
        return f"yes, {gigabytes(capacity - needed)} to spare"
    name = recipe.model.model_name
    # The estimate by part is held against the room that is left by its own error.
    room = round(capacity * sum(memory(shape, setting).values()) / needed)
    # A smaller micro-batch may be all rows of the greatest length, also where there is no padding.
    start = dataclasses.replace(setting, length=longest, attended=0)
    fit = nearest_fit(name, shape, start, recipe.training.gradient_accumulation_steps, room)
    nearest = f"the nearest that does: {', '.join(fit.changes)}" if fit else "and no setting does"
    return f"NO, by {gigabytes(needed - capacity)}; {nearest}"


def _cloud(recipe: Recipe, shape: ModelShape, work: Workload) -> list[dict[str, Any]]:
    """Seconds and list price on each card that has one and enough memory, from one cent on."""
    offers = []
    for card in cards.cards().values():
        if not card.usd_per_hour:
            continue
        setting = setting_of(recipe, machine.decide(card.hardware, recipe), *work.largest)
        rate, at_best = rate_on_card(card, shape, setting)
        seconds = rate.seconds(work.batches)
        usd = seconds / 3600 * card.usd_per_hour
        if usd >= 0.01 and sum(memory(shape, setting).values()) <= card.hardware.gpu_memory_bytes:
            offers.append(
                {"card": card.name, "seconds": round(seconds), "usd": round(usd, 2), "at_best": at_best}
            )
    return offers


def plan_training(run: Run, profile: Profile, trainer: Any) -> Plan:
    """Probe the trainer and plan its run, or give back the plan under which this training began.

    LabError when the batches do not fit, or another process trains the run.
    """
    with alone(run, TRAINING_LOCK):  # another training would halve the pace, and be given this plan
        return _planned(run, profile, trainer)


def _planned(run: Run, profile: Profile, trainer: Any) -> Plan:
    kept, names = run.evidence().get("plan", {}), {field.name for field in dataclasses.fields(Plan)}
    recipe, profile = _as_trained(run.recipe, profile, trainer.args)
    schedule = schedule_of(recipe, flattens(trainer))
    lengths, trained = token_counts(trainer.train_dataset)
    squares = row_squares(trainer.train_dataset, lengths)
    shape = shape_from_config(trainer.model.config.to_dict())
    work = workload(lengths, trained, schedule, squares)
    if run.training_has_begun and kept.keys() == names and kept["predicted"]["steps"] == work.steps:
        print("Made before training began, for the whole run:")
        return Plan(**kept)
    try:
        measured = probe(trainer, schedule.epoch(lengths), lengths)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        estimate = make_plan(recipe, profile, shape, work, None)
        raise LabError(
            "there is not enough memory for these batches. The estimate, which knows no other program that "
            f"holds some:\n{estimate}"
        ) from error
    plan = make_plan(
        recipe,
        profile,
        shape,
        work,
        _whole_rate(fit_rate(measured.timings), run, profile, trainer, work.steps),
        probed=measured,
        earlier=ledger.correction(ledger.machine_key(recipe, profile)),
        within_reach=resources.memory_within_reach() if profile.device == "cpu" else None,
    )
    run.record("plan", dataclasses.asdict(plan))
    return plan


def _whole_rate(rate: Rate, run: Run, profile: Profile, trainer: Any, steps: int) -> Rate:
    """The probe's rate with what no probe of micro-batches sees: optimizer steps, saves, looks, pictures."""
    trained = sum(each.numel() for each in trainer.model.parameters() if each.requires_grad)
    args, saves = trainer.args, 0
    looks = args.eval_steps if args.eval_strategy == "steps" else 0
    if args.save_strategy == "steps":
        # with early stopping each look saves, as it may be the best
        saves = stops(steps, args.save_steps, looks * args.load_best_model_at_end)
    size_bytes = 12 * trained  # the adapter and Adam's moments in float32
    beside_s = saves * (timed_save(run.checkpoints, size_bytes) + SAVE_S)
    if profile.device == "cpu":
        beside_s += steps * trained * CPU_ADAM_S
    if looks:
        beside_s += (stops(steps, looks) + args.eval_on_start) * timed_look(trainer)
    return dataclasses.replace(rate, beside_share=SHARE * in_notebook(), beside_s=beside_s)


def stops(steps: int, *every: int) -> int:
    """After how many of the steps something is done: each so many, and the last."""
    return len({step for each in every if each for step in range(each, steps + 1, each)} | {steps})


def _as_trained(recipe: Recipe, profile: Profile, args: Any) -> tuple[Recipe, Profile]:
    """Recipe and profile with what the trainer was given in their place: the tuner may have changed it."""
    training = dataclasses.replace(
        recipe.training,
        per_device_train_batch_size=args.train_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        num_train_epochs=args.num_train_epochs,
        max_steps=args.max_steps,
        seed=args.seed,
        train_sampling_strategy=str(args.train_sampling_strategy),
    )
    kept = profile.use_gradient_checkpointing or True
    checkpointing = machine.Decision(args.gradient_checkpointing and kept, "as the trainer was given it")
    decisions = profile.decisions | {"use_gradient_checkpointing": checkpointing}
    return dataclasses.replace(recipe, training=training), Profile(profile.hardware, decisions)


def plan_on_card(
    recipe: Recipe, card: cards.Card, counts: tuple[list[int], list[int]], basis: Sequence[str] = ()
) -> Plan:
    """Plan a recipe on a card that is not here; `counts` are lengths and trained tokens of the rows.

    With padding, as the measured cards were: Unsloth leaves it out today where it can, so it is the most.
    """
    return plan_on_cards(recipe, [card], counts, basis)[0]


def plan_on_cards(
    recipe: Recipe,
    several: Sequence[cards.Card],
    counts: tuple[list[int], list[int]],
    basis: Sequence[str] = (),
) -> list[Plan]:
    """The plan on each of several cards, whose batches are the same and are formed once."""
    shape, work = shape_of(recipe.model.model_name), workload_of(recipe, counts, padding_free=False)
    limit = ["nothing like it was measured: the time is the least, not the likely one"]
    plans = []
    for card in several:
        profile = machine.decide(card.hardware, recipe)
        rate, at_best = rate_on_card(card, shape, setting_of(recipe, profile, *work.largest))
        said = [*basis, *(limit if at_best else [])]
        plans.append(make_plan(recipe, profile, shape, work, rate, basis=said))
    return plans


def plan_here(
    recipe: Recipe, profile: Profile, counts: tuple[list[int], list[int]], basis: Sequence[str] = ()
) -> Plan:
    """Plan a recipe on this machine without a probe: the time from its earlier runs, if there are any."""
    earlier, rate = ledger.correction(ledger.machine_key(recipe, profile)), None
    if earlier.seconds_per_token:
        rate = Rate(0, earlier.seconds_per_token, 0, LEDGER_BAND, earlier.source)
    work = workload_of(recipe, counts, padding_free=True)
    return make_plan(recipe, profile, shape_of(recipe.model.model_name), work, rate, basis=basis)


def duration(seconds: float) -> str:
    """Seconds as a reader takes them: 45 s, 3.2 min, 8.6 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def gigabytes(size: float) -> str:
    """Bytes as a reader takes them: 1.50 GB."""
    return f"{size / 1e9:.2f} GB"

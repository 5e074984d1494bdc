"""The batches that a trainer will form, counted from the rows' lengths before it begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

from finelab.data.xray import packed_rows
from finelab.errors import LabError
from finelab.recipe import SAMPLING, Recipe
from finelab.train import cards
from finelab.train.batches import Batch, batch_of


@dataclass(frozen=True)
class Schedule:
    """What decides the batches, by the names of `TrainingArguments`."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    num_train_epochs: float
    max_steps: int
    seed: int
    train_sampling_strategy: str = "random"
    padding_free: bool = False

    def epoch(self, lengths: Sequence[int], epoch: int = 0) -> list[list[int]]:
        """The row numbers of each micro-batch of an epoch."""
        return epoch_batches(
            lengths,
            self.per_device_train_batch_size,
            self.seed,
            self.train_sampling_strategy,
            self.gradient_accumulation_steps,
            epoch,
        )


@dataclass(frozen=True)
class Workload:
    """Everything a run computes; `longest` is its longest row in tokens."""

    steps: int
    batches: list[Batch]
    longest: int
    tokens: int
    trained_tokens: int

    @cached_property
    def padded_tokens(self) -> int:
        """Positions computed; where there is padding, a row is as long as the longest of its micro-batch."""
        return sum(batch.positions for batch in self.batches)

    @cached_property
    def largest(self) -> tuple[int, int, int]:
        """The micro-batch with the most positions, which decides the memory.

        Its rows, their mean length, and the mean over its tokens of their documents' lengths.
        """
        batch = max(self.batches, key=lambda batch: batch.positions)
        return batch.rows, math.ceil(batch.positions / batch.rows), math.ceil(batch.squares / batch.positions)

    @cached_property
    def shapes(self) -> int:
        """How many unlike micro-batches there are."""
        return len({batch[:2] for batch in self.batches})

    @cached_property
    def mean_positions(self) -> float:
        """Positions of a micro-batch."""
        return self.padded_tokens / len(self.batches)


def schedule_of(recipe: Recipe, padding_free: bool) -> Schedule:
    """The schedule that notebook 03 makes of a recipe."""
    training = recipe.training
    return Schedule(
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        seed=training.seed,
        train_sampling_strategy=training.train_sampling_strategy,
        padding_free=padding_free,
    )


def share_of(micro_batch: int, accumulation: int, size: int) -> tuple[int, int] | None:
    """Micro-batch and accumulation of each of `size` processes that share the optimizer step of one.

    Accumulation is divided first; where that does not go, the micro-batch shrinks too. None when the rows of
    a step cannot be divided.
    """
    rows, rest = divmod(micro_batch * accumulation, size)
    if rest:
        return None
    micro = next(each for each in range(min(micro_batch, rows), 0, -1) if rows % each == 0)
    return micro, rows // micro


def epoch_batches(
    lengths: Sequence[int],
    per_device_train_batch_size: int,
    seed: int,
    strategy: str = "random",
    gradient_accumulation_steps: int = 1,
    epoch: int = 0,
) -> list[list[int]]:
    """The row numbers of each micro-batch of an epoch, as transformers' Trainer draws them.

    Exact for one device; the session seeds the sampler of `group_by_length` anew for each epoch.
    """
    size = per_device_train_batch_size
    order = _order(lengths, size * gradient_accumulation_steps, seed, strategy, epoch)
    return [order[start : start + size] for start in range(0, len(order), size)]


def _order(lengths: Sequence[int], group: int, seed: int, strategy: str, epoch: int) -> list[int]:
    import torch

    if strategy == "sequential":
        return list(range(len(lengths)))
    generator = torch.Generator().manual_seed(seed + epoch)
    if strategy == "random":  # accelerate's SeedableRandomSampler
        return torch.randperm(len(lengths), generator=generator).tolist()  # type: ignore[no-any-return]
    if strategy != "group_by_length":
        raise LabError(f"no sampling strategy {strategy!r}; there are: {', '.join(SAMPLING)}.")
    from transformers.trainer_pt_utils import get_length_grouped_indices

    return list(get_length_grouped_indices(list(lengths), group, generator=generator))


def packed_lengths(lengths: Sequence[int], max_length: int) -> list[int]:
    """The rows that packing makes of these, all equally full: TRL's number of rows, and every token."""
    rows = packed_rows(lengths, max_length)
    full, more = divmod(sum(lengths), rows)
    return [full + 1] * more + [full] * (rows - more)


def workload(
    lengths: Sequence[int],
    trained: Sequence[int],
    schedule: Schedule,
    squares: Sequence[int] | None = None,
) -> Workload:
    """What a whole run computes; `trained` counts each row's tokens with a label.

    `squares` is the sum of the squared lengths of each row's documents, where rows are packed.
    """
    squares = squares or [length**2 for length in lengths]
    accumulation = schedule.gradient_accumulation_steps
    micro_batches = math.ceil(len(lengths) / schedule.per_device_train_batch_size)
    per_epoch = math.ceil(micro_batches / accumulation)  # the last group may be short
    steps = schedule.max_steps
    if steps <= 0:
        steps = math.ceil(schedule.num_train_epochs * per_epoch)
    batches: list[list[int]] = []
    for epoch in range(math.ceil(steps / per_epoch)):
        left = steps - epoch * per_epoch
        batches += schedule.epoch(lengths, epoch)[: left * accumulation]
    met = [i for rows in batches for i in rows]
    return Workload(
        steps=steps,
        batches=[
            batch_of([lengths[i] for i in rows], [squares[i] for i in rows], schedule.padding_free)
            for rows in batches
        ],
        longest=max(lengths[i] for i in met),
        tokens=sum(lengths[i] for i in met),
        trained_tokens=sum(trained[i] for i in met),
    )


def workload_of(recipe: Recipe, counts: tuple[list[int], list[int]], padding_free: bool) -> Workload:
    """The workload of rows that are not made yet; packed ones are all alike."""
    lengths, trained = counts
    squares = [length**2 for length in lengths]
    if recipe.training.packing:
        share, attended = sum(trained) / sum(lengths), sum(squares) / sum(lengths)
        lengths = packed_lengths(lengths, recipe.model.max_seq_length)
        trained = [round(share * length) for length in lengths]
        squares = [round(attended * length) for length in lengths]
    return workload(lengths, trained, schedule_of(recipe, padding_free), squares)


def assumed_counts(rows: int, max_seq_length: int) -> tuple[list[int], list[int]]:
    """Row lengths and trained tokens of a data set like FineTome, without the data: an assumption."""
    known = cards.finetome()
    normal = NormalDist(known["mu"], known["sigma"])
    drawn = [math.exp(normal.inv_cdf((i + 0.5) / rows)) for i in range(rows)]
    lengths = [min(round(length), max_seq_length) for length in drawn]
    return lengths, [round(length * known["trained_share"]) for length in lengths]

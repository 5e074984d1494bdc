"""Several processes, one run: which one is this, what do all agree on, who takes which rows, who writes.

`torchrun` or `accelerate launch` starts the processes, accelerate wraps the model (DDP or FSDP2), and
transformers weighs each token of a global batch alike. What is left for the lab stands here. Everything works
for one process as well, and then asks nobody.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from finelab.data.xray import IGNORE
from finelab.errors import LabError
from finelab.files import fsync, rename
from finelab.recipe import Recipe
from finelab.run import Run
from finelab.train.batches import token_counts
from finelab.train.search import Tuned
from finelab.train.workload import epoch_batches, share_of

T = TypeVar("T")
FILLER_TOKENS = 2  # a row needs a token that is predicted; its label is ignored


@dataclass(frozen=True)
class World:
    """This process and how many there are; rank 0 writes what is written once."""

    rank: int
    size: int

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0


class Follower(Run):
    """A run as every rank but the first sees it: it is read, and nothing is recorded."""

    def record(self, stage: str, values: Any) -> None:
        """Nothing: rank 0 records."""


def world() -> World:
    """This process among those that were joined."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return World(0, 1)
    return World(dist.get_rank(), dist.get_world_size())


def describe() -> str:
    """How many processes there are, and what they talk by."""
    import torch.distributed as dist

    size = world().size
    if size == 1:
        return "1"
    return f"{size}, {dist.get_backend()}, {'FSDP2' if sharded() else 'DDP'}"


def join(device: str) -> World:
    """Meet the other processes of this launch, by gloo on a CPU and NCCL on CUDA.

    LabError when the launcher did not start what it was asked for.
    """
    import torch
    from accelerate import PartialState

    cards = torch.cuda.device_count()
    if fault := launch_fault(os.environ, device, cards):
        raise LabError(fault)
    PartialState(cpu=device == "cpu")
    joined, asked = world(), int(os.environ.get("WORLD_SIZE", 1))
    if joined.size != asked:
        raise LabError(f"{asked} processes were started, but they train as {joined.size}; use torchrun.")
    if joined.size > 1 and device == "cpu":
        # accelerate then calls the CPU "cpu:0", which torch.load does not know when it resumes
        torch.serialization.register_package(
            0, lambda storage: None, lambda storage, place: storage if place == "cpu:0" else None
        )
    return joined


def launch_fault(environment: Mapping[str, str], device: str, cards: int) -> str | None:
    """What is wrong with how this process was started, from its environment variables, if anything."""
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment
    if by_accelerate and "MASTER_PORT" in environment and "RANK" not in environment:
        return (
            "accelerate launch was asked for several processes and on a CPU started one, without a word: "
            "give it --multi_gpu too, or start `torchrun --nproc_per_node N -m finelab.train NAME`."
        )
    if sharded(environment):
        return _sharding_fault(environment, device)
    local = int(environment.get("LOCAL_WORLD_SIZE", 1))
    if device == "cuda" and local > cards:
        return f"{local} processes were started here, and there are {cards} CUDA cards: start one for each."
    return None


def sharded(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether accelerate was told to shard the model (FSDP)."""
    return environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _sharding_fault(environment: Mapping[str, str], device: str) -> str | None:
    if device != "cuda":
        return (
            "FSDP needs CUDA cards: on a CPU accelerate trains with DDP instead, without a word; leave "
            "--use_fsdp out."
        )
    if environment.get("FSDP_VERSION") != "2":
        return "the lab shards with FSDP2 only: give accelerate launch --fsdp_version 2."
    if environment.get("FSDP_STATE_DICT_TYPE") != "FULL_STATE_DICT":
        return (
            "a checkpoint in shards cannot be checked as a whole, nor resumed by another number of "
            "processes: give accelerate launch --fsdp_state_dict_type FULL_STATE_DICT."
        )
    return None


# Agreement


def gather(value: T) -> list[T]:
    """Each rank's value, in the order of ranks; all ranks call it at the same point."""
    import torch.distributed as dist

    size = world().size
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value)
    return values


def agreed(value: T | None) -> T | None:
    """The first rank's value that is not None: what one rank wants, all do."""
    return next((each for each in gather(value) if each is not None), None)


def first(action: Callable[[], T]) -> T:
    """Do it in rank 0, then in the others, which find what it left; each has its own result."""
    if not world().first:
        gather(None)
        return action()
    result = action()
    gather(None)
    return result


def interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """One from each part in turn: the inverse of `rows[rank::size]`, also where the last turn is short."""
    longest = max(map(len, parts))
    return [part[i] for i in range(longest) for part in parts if i < len(part)]


# Rows


def setting_of_rank(tuned: Tuned, size: int) -> Tuned:
    """Each rank's part of the setting; LabError when the rows of a step cannot be divided."""
    micro, accumulation = tuned.per_device_train_batch_size, tuned.gradient_accumulation_steps
    shared = share_of(micro, accumulation, size)
    if shared is None:
        raise LabError(
            f"the {micro * accumulation} rows of an optimizer step cannot be shared by {size} processes: "
            f"start as many as divide {micro * accumulation}, or change gradient_accumulation_steps."
        )
    micro, accumulation = shared
    return dataclasses.replace(
        tuned, per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation
    )


def share(trainer: Any) -> None:
    """Let the ranks take turns with the micro-batches that one process would take, in the same order.

    accelerate would begin an epoch's rows again where they do not suffice for all ranks, and group by length
    within a rank's rows. Here the order is that of one process, and at an epoch's end a rank that has no row
    left takes a filler without labels: it adds nothing to the loss, and nobody waits for it. So at the end of
    a look at the validation rows, of which accelerate would count the first ones twice.
    """
    from datasets import concatenate_datasets

    ranks, args = world(), trainer.args
    if ranks.size == 1:
        return
    rows = trainer.train_dataset
    lengths, _ = token_counts(rows)
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * ranks.size

    def order(epoch: int) -> list[int]:
        steps = epoch_batches(lengths, step, args.seed, args.train_sampling_strategy, epoch=epoch)
        return [row for rows in steps for row in rows]

    trainer.train_dataset = concatenate_datasets([rows, filler(rows)])
    taken = Order(order, len(rows), args.per_device_train_batch_size * ranks.size)
    trainer._get_train_sampler = lambda *_: taken
    if (looked := trainer.eval_dataset) is not None:
        missing = -len(looked) % (args.per_device_eval_batch_size * ranks.size)
        trainer.eval_dataset = concatenate_datasets([looked, *(filler(looked) for _ in range(missing))])


def shared_rows(trainer: Any) -> Any:
    """The rows that the ranks share: the trainer's, without the filler that `share` put behind them."""
    rows = trainer.train_dataset
    return rows.select(range(len(rows) - 1)) if world().size > 1 else rows


class Order:
    """A sampler: an epoch's row numbers, then the filler's until their count is a multiple of `turn`."""

    def __init__(self, order: Callable[[int], list[int]], rows: int, turn: int) -> None:
        self.order, self.rows, self.turn, self.epoch = order, rows, turn, 0

    def __iter__(self) -> Iterator[int]:
        yield from self.order(self.epoch)
        yield from [self.rows] * (len(self) - self.rows)

    def __len__(self) -> int:
        return -(-self.rows // self.turn) * self.turn


def filler(rows: Any) -> Any:
    """A `datasets.Dataset` of one short row of the same columns, without labels."""
    row = {name: (values * FILLER_TOKENS)[:FILLER_TOKENS] for name, values in rows[0].items()}
    row["labels"] = [IGNORE] * FILLER_TOKENS
    if "seq_lengths" in row:
        row["seq_lengths"] = [FILLER_TOKENS]
    return type(rows).from_dict({name: [values] for name, values in row.items()}, features=rows.features)


# Checkpoints


def change_of_size(sealed_by: int, recipe: Recipe) -> str | None:
    """Why a checkpoint of `sealed_by` processes cannot go on with as many as there are now, if so.

    The data order follows from seed, epoch and step, and a checkpoint holds the whole optimizer, so nothing
    else depends on the number of processes than what they draw and what they measure.
    """
    size = world().size
    if sealed_by == size:
        return None
    if recipe.lora.lora_dropout:
        reason = f"lora_dropout = {recipe.lora.lora_dropout:g} draws other random numbers in each process"
    elif recipe.training.early_stopping_patience:
        reason = "early stopping compares validation losses, whose last digits depend on how rows are shared"
    else:
        return None
    return f"processes: {sealed_by} -> {size} ({reason})"


def keep_random_states(checkpoint: Path) -> None:
    """Give the checkpoint of several ranks the file that one process would look for: rank 0's state."""
    if world().size > 1:
        shutil.copyfile(checkpoint / "rng_state_0.pth", checkpoint / "rng_state.pth")


def lend_random_states(checkpoint: Path) -> None:
    """Give each rank that has no state of its own in the checkpoint rank 0's.

    Without dropout no rank draws from it, so it is what its own would be.
    """
    size = world().size
    for rank in range(size if size > 1 else 0):
        own = checkpoint / f"rng_state_{rank}.pth"
        if not own.exists():
            part = checkpoint / f".{own.name}"
            shutil.copyfile(checkpoint / "rng_state.pth", part)
            fsync(part)
            rename(part, own)


def put_together(trainer: Any) -> dict[str, Any] | None:
    """The weights of a model that is in shards, by all ranks for rank 0; None where it is whole."""
    return trainer.accelerator.get_state_dict(trainer.model) if sharded() else None

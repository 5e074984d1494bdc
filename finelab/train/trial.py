"""A trial of a setting: forward and backward of some rows in a trainer as notebook 03 makes it."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from finelab.machine import Profile
from finelab.resources import helpers_memory, out_of_memory, release_memory
from finelab.run import Run
from finelab.train.batches import collator, no_progress_bars, positions, training_rows
from finelab.train.probe import prepared, step, unchanged
from finelab.train.search import Measured, Setting, Tuned


def sample(lengths: Sequence[int], count: int) -> list[int]:
    """The numbers of `count` rows whose lengths are spread as all lengths are, the shortest first.

    Of two or more the last is the longest of all, which decides whether a micro-batch fits into the memory.
    """
    ordered = sorted(range(len(lengths)), key=lambda i: lengths[i])
    count = min(max(count, 1), len(lengths))
    chosen = [ordered[int((i + 0.5) / count * len(ordered))] for i in range(count)]
    return [*chosen[:-1], ordered[-1]] if count > 1 else chosen


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
    """The rows that are computed before the timed ones: the largest micro-batch, which takes all the memory.

    Taken while timed it would count against large ones: a gigabyte's first touch took 1.2 to 1.8 s (two
    virtual cores), in training it is once. On a card it is the largest that training can meet, the longest
    row as often as a micro-batch has rows: one that does not fit has to fail here, and not hours later.
    """
    if device == "cuda":
        return [max(range(len(lengths)), key=lambda i: lengths[i])] * max(map(len, batches))
    return max(batches, key=lambda rows: positions([lengths[i] for i in rows], flat=True))


@contextlib.contextmanager
def _peak_memory() -> Iterator[Callable[[], int]]:
    """Yield what gives the peak of the block: reserved by torch on CUDA, else resident here and in helpers.

    The process's own record of its peak (`resources.peak_memory_bytes`) never falls, so it is sampled.
    """
    import psutil
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield lambda: int(torch.cuda.max_memory_reserved())
        return
    process, ended, seen = psutil.Process(), threading.Event(), []

    def look() -> None:
        seen.append(process.memory_info().rss + helpers_memory())

    def look_until_ended() -> None:
        while not ended.wait(0.02):
            look()

    look()
    thread = threading.Thread(target=look_until_ended, daemon=True)
    thread.start()
    try:
        yield lambda: int(max(seen))
    finally:
        ended.set()
        thread.join()

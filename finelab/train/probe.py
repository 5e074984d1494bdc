"""Real training steps that leave no trace: what they take is measured, and everything is put back."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finelab import resources
from finelab.files import writing
from finelab.train.batches import Batch, collated, flattens, positions
from finelab.train.look import mean_over_tokens

WARM_UP = (1, 0, 0.5)  # by size: the largest batch, which shows the memory, the smallest, a middle one
GOLDEN = 0.618034  # its multiples, less their whole part, lie evenly between 0 and 1 however many there are
FEWEST, MOST = 6, 20  # micro-batches that are timed
LOOKED = 4  # batches of validation rows that are timed
UNSLOTH_MARKER = "_unsloth_pretrain_marker"  # Unsloth's `train` resets its compiler where a step came before
COUNTERS = ("_metrics", "_total_train_tokens")  # what TRL's trainer counts, and reports in its next log


@dataclass(frozen=True)
class Probe:
    """Each timed micro-batch with its seconds, and the peak memory after `shapes` unlike ones."""

    timings: list[tuple[Batch, float]]
    peak_memory_bytes: int
    shapes: int


def probe(
    trainer: Any, batches: Sequence[Sequence[int]], lengths: Sequence[int], limit_s: float = 20.0
) -> Probe:
    """Time forward and backward of some of these batches (row numbers), through the trainer's own step.

    Weights, gradients, random states and the trainer's counters are afterwards what they were. It ends after
    `limit_s` seconds, but not before FEWEST batches; all of different sizes, as the fit needs. On a shared
    machine spells of 6 to 20 s were up to a fifth slower than the rest: a shorter probe may miss them all.
    """
    from tqdm import tqdm

    flat = flattens(trainer)
    ordered = sorted(batches, key=lambda rows: positions([lengths[i] for i in rows], flat))
    shares = [*WARM_UP, *(i * GOLDEN % 1 for i in range(1, MOST + 1))]
    picks = [ordered[round(share * (len(ordered) - 1))] for share in shares]
    loader = trainer.get_train_dataloader()
    timings: list[tuple[Batch, float]] = []
    began = time.monotonic()
    with prepared(trainer) as model, tqdm(desc="timing", total=len(picks), unit="batch", delay=2) as shown:
        for rows in picks:
            timings.append(_timed(trainer, model, loader, rows))
            shown.update()
            if len(timings) >= len(WARM_UP) + FEWEST and time.monotonic() - began > limit_s:
                shown.total = len(timings)
                break
    shapes = {batch[:2] for batch, _ in timings}
    return Probe(timings[len(WARM_UP) :], resources.peak_memory_bytes(), len(shapes))


def _timed(trainer: Any, model: Any, loader: Any, rows: Sequence[int]) -> tuple[Batch, float]:
    """One micro-batch, its collation included."""
    began = time.perf_counter()
    done = step(trainer, model, loader, [rows])
    return done.batches[0], time.perf_counter() - began


def timed_save(folder: Path, size_bytes: int) -> float:
    """Seconds to write, force to the disk and hash so many bytes there, as sealing a checkpoint does."""
    block, began = os.urandom(1 << 20), time.perf_counter()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(math.ceil(size_bytes / len(block))):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            hashlib.file_digest(file, "sha256")
    return time.perf_counter() - began


def timed_look(trainer: Any) -> float:
    """Seconds of a look at all of the trainer's `eval_dataset`, from LOOKED of its batches."""
    with prepared(trainer) as model, mean_over_tokens(trainer):
        model.eval()
        batches = list(trainer.get_eval_dataloader())
        picks = batches[:: math.ceil(len(batches) / LOOKED)]
        trainer.prediction_step(model, picks[0], prediction_loss_only=True)  # the first one warms up
        began = time.perf_counter()
        for batch in picks:
            float(trainer.prediction_step(model, batch, prediction_loss_only=True)[0])
        seconds = time.perf_counter() - began
    total, timed = (sum(batch["input_ids"].numel() for batch in each) for each in (batches, picks))
    return float(seconds * total / timed)


@dataclass(frozen=True)
class Step:
    """What an optimizer step computed: its micro-batches, its trained tokens, and their mean loss in nats."""

    batches: list[Batch]
    trained_tokens: int
    loss: float


def step(trainer: Any, model: Any, loader: Any, batches: Sequence[Sequence[int]]) -> Step:
    """Forward and backward of these micro-batches (row numbers), as one optimizer step without its end."""
    made = [loader.collate_fn([loader.dataset[i] for i in rows]) for rows in batches]
    sizes = [collated(batch, len(rows)) for batch, rows in zip(made, batches, strict=True)]
    inputs, labelled = trainer.get_batch_samples(iter(made), len(made), trainer.args.device)
    # float waits until a card has finished
    loss = sum(float(trainer.training_step(model, each, labelled)) for each in inputs)
    return Step(sizes, int(labelled), loss)


@contextlib.contextmanager
def prepared(trainer: Any) -> Iterator[Any]:
    """Yield the model wrapped as `train` wraps it, and put back whatever a training step changes."""
    counters = {name: copy.deepcopy(vars(trainer)[name]) for name in COUNTERS if name in vars(trainer)}
    with unchanged(trainer.model):
        _switch_checkpointing(trainer.model, trainer.args.gradient_checkpointing)
        try:
            yield trainer.accelerator.prepare_model(trainer.model)
        finally:
            trainer.accelerator.free_memory()
            vars(trainer).update(counters)


def _switch_checkpointing(model: Any, wanted: bool) -> None:
    """As `train` does: on a card Unsloth makes its trainer with checkpointing off, whatever was asked for."""
    if bool(model.is_gradient_checkpointing) == wanted:
        return
    if wanted:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


@contextlib.contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Put back what trainers and their steps change on a model, and every random state.

    That is the gradients, which are empty within, and each module's attributes and hooks: accelerate's
    autocast, TRL's output head, the mode, checkpointing.
    """
    import torch

    modules = [(module, dict(vars(module))) for module in model.modules()]
    # Dictionaries are filled again and not replaced: a hook's handle knows the one it was put into.
    contents = [
        (each, dict(each))
        for _, kept in modules
        for name, each in kept.items()
        if isinstance(each, dict) and name != UNSLOTH_MARKER
    ]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cards_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for module, kept in modules:
            vars(module).clear()
            vars(module).update(kept)
        for each, kept in contents:
            each.clear()
            each.update(kept)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cards_states:
            torch.cuda.set_rng_state_all(cards_states)

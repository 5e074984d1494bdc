"""The fastest batches that this machine has, at the recipe's effective batch: measured, recorded, kept.

`search` decides what is tried and what is kept, `trial` measures it; here the choice is made once for a
machine and its data, and read from the run's evidence ever after.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from finelab.data.xray import packed_rows
from finelab.errors import LabError
from finelab.machine import Profile
from finelab.recipe import SAMPLING, Recipe
from finelab.resources import memory_within_reach, release_memory
from finelab.run import TRAINING_LOCK, Run, alone
from finelab.train import memory
from finelab.train.batches import token_counts
from finelab.train.search import Measured, Rows, Search, Setting, Trial, Tuned
from finelab.train.trial import sample, trial

STEPS = 2  # optimizer steps whose rows make a trial


def tune(run: Run, profile: Profile, model: Any, tokenizer: Any, rows: Any) -> Tuned:
    """The setting to train with: measured once for a machine and its data, then read from the run's evidence.

    A training that has begun keeps its setting wherever it goes on. Model and random states are afterwards
    what they were. LabError when nothing fits into the memory, when a training that has begun has no
    readable record of its setting, and when another process trains the run.
    """
    with alone(run, TRAINING_LOCK):  # another training would be timed along, and take this setting
        return obeyed(_tuned(run, profile, model, tokenizer, rows), model)


def obeyed(tuned: Tuned, model: Any) -> Tuned:
    """The setting; on a card Unsloth's `train` does not ask the trainer for checkpointing, but the model."""
    if hasattr(model, "_unsloth_gradient_checkpointing") and not tuned.gradient_checkpointing:
        model._unsloth_gradient_checkpointing = False
    return tuned


def _tuned(run: Run, profile: Profile, model: Any, tokenizer: Any, rows: Any) -> Tuned:
    reference = setting_of(run.recipe, profile)
    if not run.recipe.training.tune:
        return Tuned(**dataclasses.asdict(reference))
    if earlier := recorded(run, profile, run.training_has_begun):
        return earlier
    if run.training_has_begun:
        raise LabError(
            f"evidence.json of run {run.name!r} has no readable record of the tuning that its training began "
            "with; restore the file, or go on with --set training.tune=false if it began without one."
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
        if profile.device == "cpu":
            needed = needed_bytes(setting, run.recipe, profile, shape, lengths)
            if needed > memory_within_reach():
                return None
        return trial(setting, run, profile, model, tokenizer, picked)

    release_memory()  # so that the first trial's peak is its own
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
    tuned = recorded(run, profile, begun=run.training_has_begun) or own
    keep(run, profile, tuned)
    return tuned


def keep(run: Run, profile: Profile, tuned: Tuned) -> None:
    """Keep a setting in the run's evidence, with what it was measured on."""
    run.record("tuning", dataclasses.asdict(tuned) | {"measured_on": _place(run, profile)})


def recorded(run: Run, profile: Profile, begun: bool) -> Tuned | None:
    """The setting in the run's evidence, if it is readable and, unless training has begun, of this place.

    In another dtype than it was measured in it takes this machine's autocast, which the checkpoint's
    fingerprint then names as a change. LabError when training has begun and the recipe now asks for another
    batch: the setting would hide that.
    """
    kept, here = run.evidence().get("tuning", {}), _place(run, profile)
    tuned, place = read(kept), kept.get("measured_on", here)
    if tuned is None or not (begun or place == here):
        return None
    for name, now in _asked(run.recipe).items():
        if (then := place.get(name, now)) != now:
            raise LabError(
                f"run {run.name!r}: its training began with {name} = {then}, and recipe.toml now says {now}; "
                "put that back, or make a new run with --run NAME and --set."
            )
    same_dtype = place["dtype"] == here["dtype"]
    return tuned if same_dtype else dataclasses.replace(tuned, bf16=bool(profile.bf16))


def _place(run: Run, profile: Profile) -> dict[str, Any]:
    """What a tuning's numbers hold for."""
    data = run.evidence().get("data", {}).get("sha256")
    return {"machine": profile.hardware.name, "dtype": profile.dtype, "data": data, **_asked(run.recipe)}


def _asked(recipe: Recipe) -> dict[str, Any]:
    """What of the recipe the tuner keeps or starts from."""
    training = recipe.training
    return {
        "rows of an optimizer step": (
            training.per_device_train_batch_size * training.gradient_accumulation_steps
        ),
        "training.packing": training.packing,
        "training.train_sampling_strategy": training.train_sampling_strategy,
        "model.max_seq_length": recipe.model.max_seq_length,
    }


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

"""Checkpoints that can be trusted: one counts only when its manifest, written last, matches its files.

transformers writes a checkpoint file by file into its final folder and takes the highest number on
resume, whole or not; after a kill that is a crash, or a fresh optimizer without a word. Its Trainer cannot
be told to write elsewhere and rename (the same folder is where it looks for the best checkpoint and for old
ones to delete), so the manifest does what the rename would: without it, a folder does not count.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelab.errors import LabError
from finelab.files import fsync, rename, sha256, write_json, writing
from finelab.machine import versions
from finelab.recipe import without_effect
from finelab.resources import out_of_memory
from finelab.run import Run
from finelab.train import distributed
from finelab.train.batches import rows_sha256

MANIFEST = "finelab-manifest.json"
REQUIRED = (
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)
SHARDED = {"optimizer.pt": "optimizer.bin"}  # its name when it was put together from shards
SECTIONS = ("model", "data", "lora", "training")
ROWS_SHA256 = "rows_sha256"  # of the prepared rows; the sources' sha256 stays when the template changes
HELD_SHA256 = "data.train_dataset_sha256"  # of the rows that the trainer holds, which a changed cell may pick
ARGUMENTS = (  # of the trainer, which no recipe has and a changed cell may give
    *("max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "optim_target_modules"),
    *("lr_scheduler_kwargs", "label_smoothing_factor", "neftune_noise_alpha", "loss_type"),
    *("data_seed", "dataloader_drop_last"),
)
PRECISION = ("fp16", "bf16")  # the trainer's autocast
LATER = {  # an older lab's checkpoint does not have them
    *(f"data.{ROWS_SHA256}", HELD_SHA256),
    *(f"training.{name}" for name in ARGUMENTS),
    *(f"machine.{name}" for name in PRECISION),
    "machine.fast_cpu_step",
    "versions.bitsandbytes",
}
# of the machine's profile; gradients by hand are autograd's up to rounding only
DECISIONS = ("device", "dtype", "load_in_4bit", "fast_cpu_step")
PACKAGES = ("torch", "transformers", "trl", "peft", "unsloth", "accelerate", "bitsandbytes")
# torch hides the system's reason behind its own two words for a short write; a full disk is the usual one
SHORT_WRITE = re.compile(r"PytorchStreamWriter failed writing|unexpected pos \d+")
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: folder, step, the seconds of training behind it, and what it was sealed with.

    `peak_memory_bytes` is the most that a sitting up to it used; 0 where an older lab sealed it.
    """

    folder: Path
    step: int
    elapsed_s: float
    fingerprint: dict[str, Any]
    certificate: dict[str, Any]
    peak_memory_bytes: int = 0

    @property
    def processes(self) -> int:
        """How many processes wrote it."""
        return int(self.certificate.get("processes", 1))


def seal(
    folder: Path,
    elapsed_s: float,
    fingerprint: dict[str, Any],
    certificate: dict[str, Any],
    peak_memory_bytes: int,
) -> None:
    """Force a checkpoint's files to the disk, then write the manifest that makes it count."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    for path in files:
        fsync(path)
    content = {
        "elapsed_s": elapsed_s,
        "fingerprint": fingerprint,
        "certificate": certificate,
        "peak_memory_bytes": peak_memory_bytes,
        "sha256": {path.name: sha256(path) for path in files},
    }
    write_json(folder / MANIFEST, {**content, "content_sha256": _content_sha256(content)})
    for entries in (folder, folder.parent):
        _fsync_folder(entries)


def rotate(checkpoints: Path, limit: int, best: int | None) -> None:
    """Delete the oldest checkpoints beyond `limit`, but never the newest nor that of step `best`."""
    others = [folder for step, folder in _by_age(checkpoints) if step != best]
    kept = max(1, limit - (best is not None))
    for folder in others[:-kept]:
        shutil.rmtree(folder, ignore_errors=True)  # what another program holds open goes next time


def _by_age(checkpoints: Path) -> list[tuple[int, Path]]:
    """Step and folder of each checkpoint, the oldest first."""
    return sorted((int(m[1]), path) for path in checkpoints.glob("*") if (m := _NAME.fullmatch(path.name)))


def newest_whole(checkpoints: Path) -> Checkpoint | None:
    """The newest whole checkpoint; a newer broken one is set aside under another name and named."""
    for _, folder in reversed(_by_age(checkpoints)):
        read = inspect(folder)
        if isinstance(read, Checkpoint):
            return read
        aside = folder.with_name(f"broken-{folder.name}-{uuid.uuid4().hex[:6]}")
        rename(folder, aside)
        print(f"{folder.name} is not whole ({read}); set aside as {aside.name}.")
    return None


def inspect(folder: Path) -> Checkpoint | str:
    """The checkpoint in `folder` when it is whole, else what is wrong with it."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sealed = manifest.pop("content_sha256")
        if sealed != _content_sha256(manifest):
            return "its manifest was changed"
        hashes = manifest.pop("sha256")
        checkpoint = Checkpoint(folder, int(folder.name.rpartition("-")[2]), **manifest)
    except FileNotFoundError:
        return "it was interrupted while being written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    required = (SHARDED.get(name, name) if SHARDED.get(name) in hashes else name for name in REQUIRED)
    for name in (*required, *hashes):
        path = folder / name
        if name not in hashes or not path.exists():
            return f"{name} is missing"
        if sha256(path) != hashes[name]:
            return f"{name} was changed"
    return checkpoint


def fingerprint(run: Run, trainer: Any) -> dict[str, Any]:
    """All that decides the weights, flat: data, recipe, the trainer's own arguments, dtypes, versions.

    Of LoRA and training it is what the model and the trainer were really made with.
    """
    evidence = run.evidence()
    data = evidence.get("data", {})
    found: dict[str, Any] = {"data.sha256": data.get("sha256")}
    if ROWS_SHA256 in data:
        found[f"data.{ROWS_SHA256}"] = data[ROWS_SHA256]
    found[HELD_SHA256] = rows_sha256(distributed.shared_rows(trainer))
    unseen, model = without_effect(run.recipe), trainer.model
    # a changed cell counts, and what the tuner chose
    real = {"lora": model.peft_config[model.active_adapter], "training": trainer.args}
    for section in SECTIONS:
        for key, value in dataclasses.asdict(getattr(run.recipe, section)).items():
            if key not in unseen:
                found[f"{section}.{key}"] = getattr(real.get(section), key, value)
    found |= {f"training.{name}": getattr(trainer.args, name, None) for name in ARGUMENTS}
    found["lora.target_modules"] = _adapted(model, run.recipe.lora.target_modules)
    # on a CPU the rows are packed before the trainer has them, and its own argument stays off
    found["training.packing"] |= "seq_lengths" in trainer.train_dataset[0]
    # a step is what all ranks take: another number of them with as many rows is no change
    found["training.gradient_accumulation_steps"] *= distributed.world().size
    if distributed.sharded():
        found["training.sharded"] = True
    profile = evidence.get("machine", {}).get("profile", {})
    found |= {f"machine.{name}": profile.get(name) for name in DECISIONS}
    found |= {f"machine.{name}": getattr(trainer.args, name) for name in PRECISION}
    installed = versions() | {"accelerate": importlib.metadata.version("accelerate")}
    found |= {f"versions.{name}": installed.get(name) for name in PACKAGES}
    return dict(json.loads(json.dumps(found)))  # as a manifest gives it back: no tuple, no enum


def _adapted(model: Any, named: Sequence[str]) -> list[str]:
    """The modules with an adapter, in the recipe's order: PEFT keeps a set, for some models a pattern."""
    found = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "lora_A")}
    return [*(name for name in named if name in found), *sorted(found - set(named))]


def by_step(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint that has the rows of a step, and not how they are shared out: for other ranks."""
    micro, accumulation = "training.per_device_train_batch_size", "training.gradient_accumulation_steps"
    rows = fingerprint[micro] * fingerprint[accumulation]
    return {**fingerprint, micro: rows, accumulation: 1}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """In what two fingerprints differ, as `name: old -> new`; an older lab did not keep those in LATER."""
    names = [*old, *(name for name in new if name not in old and name not in LATER)]
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names if old.get(name) != new.get(name)
    ]


@contextmanager
def clear_errors(checkpoints: Path, batch_size: int) -> Iterator[None]:
    """Turn a full disk, a read-only folder and a lack of memory while training into a LabError."""
    with writing(checkpoints):
        try:
            yield
        except LabError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if out_of_memory(error):
                raise LabError(
                    f"not enough memory for batches of {batch_size}: close other programs, or set "
                    "training.per_device_train_batch_size lower, training.gradient_accumulation_steps higher "
                    "and training.tune to false under another run name; the checkpoints are kept."
                ) from error
            if number := re.search(r"\(os error (\d+)\)", text):  # safetensors' words for an OSError
                raise OSError(int(number[1]), text, None, int(number[1])) from error
            if SHORT_WRITE.search(text):
                raise OSError(errno.ENOSPC, text) from error
            raise


def _content_sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _fsync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, on systems that let a folder be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

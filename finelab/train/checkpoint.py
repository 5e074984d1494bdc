"""Checkpoints that can be trusted: one counts only when its manifest, written last, matches its files.

transformers writes a checkpoint file by file into its final folder and takes the highest number on
resume, whole or not; after a kill that is a crash, or a fresh optimizer without a word.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from finelab.files import fsync, sha256, write_json

MANIFEST = "finelab-manifest.json"
REQUIRED = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, its step, and the seconds of training that led to it."""

    folder: Path
    step: int
    elapsed_s: float


def seal(folder: Path, elapsed_s: float) -> None:
    """Force a checkpoint's files to the disk, then write the manifest that makes it count."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    for path in files:
        fsync(path)
    write_json(
        folder / MANIFEST,
        {"elapsed_s": elapsed_s, "sha256": {path.name: sha256(path) for path in files}},
    )


def newest_whole(checkpoints: Path) -> Checkpoint | None:
    """The newest whole checkpoint; a newer broken one is set aside under another name and named."""
    found = [(int(m[1]), path) for path in checkpoints.glob("*") if (m := _NAME.fullmatch(path.name))]
    for step, folder in sorted(found, reverse=True):
        elapsed_s, fault = _inspect(folder)
        if fault is None:
            return Checkpoint(folder, step, elapsed_s)
        aside = folder.with_name(f"broken-{folder.name}-{uuid.uuid4().hex[:6]}")
        folder.rename(aside)
        print(f"{folder.name} is not whole ({fault}); set aside as {aside.name}.")
    return None


def _inspect(folder: Path) -> tuple[float, str | None]:
    """The seconds in the manifest, and what is wrong with the checkpoint, if anything."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        hashes, elapsed_s = manifest["sha256"], float(manifest["elapsed_s"])
    except (OSError, ValueError, KeyError):
        return 0.0, "it was interrupted while being written"
    for name in (*REQUIRED, *hashes):
        path = folder / name
        if name not in hashes or not path.exists():
            return elapsed_s, f"{name} is missing"
        if sha256(path) != hashes[name]:
            return elapsed_s, f"{name} was changed"
    return elapsed_s, None

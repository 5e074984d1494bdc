"""The data stage's outputs in the run's folder, and reading them back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from finelab.data.pipeline import Prepared
from finelab.files import staged
from finelab.run import Run


def save(run: Run, prepared: Prepared) -> None:
    """Make the run's `data/` in one piece: both splits, dropped.jsonl and report.json."""
    folder = run.train_data.parent
    with staged(folder) as stage:
        for path in sorted(prepared.folder.rglob("*")):
            if path.is_file():
                _link(path, stage / path.relative_to(prepared.folder))
    run.record("data", prepared.report)


def load_split(run: Run, name: str) -> Any:
    """The split `train` or `heldout` as a `datasets.Dataset`; LabError before notebook 01_data ran."""
    from datasets import load_from_disk

    path = run.require(run.train_data.parent / name, "01_data")
    return load_from_disk(str(path))


def _link(source: Path, target: Path) -> None:
    """A second name for the file, which takes no disk; a copy where the two lie on different disks."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

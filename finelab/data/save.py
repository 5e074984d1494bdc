"""The data stage's outputs in the run's folder, and reading them back."""

from __future__ import annotations

import threading
from typing import Any

from finelab.data.pipeline import Prepared
from finelab.data.shards import link
from finelab.files import staged
from finelab.run import Run

# `datasets` loads under a lock of tqdm that it makes and deletes: two threads of a sweep would meet there
_LOADING = threading.Lock()


def save(run: Run, prepared: Prepared) -> None:
    """Make the run's `data/` in one piece: both splits, dropped.jsonl and report.json."""
    folder = run.train_data.parent
    with staged(folder) as stage:
        for path in sorted(prepared.folder.rglob("*")):
            if path.is_file():
                link(path, stage / path.relative_to(prepared.folder))
    run.record("data", prepared.report)


def load_split(run: Run, name: str) -> Any:
    """The split `train` or `heldout` as a `datasets.Dataset`; LabError before notebook 01_data ran."""
    from datasets import load_from_disk

    path = run.require(run.train_data.parent / name, "01_data")
    with _LOADING:
        return load_from_disk(str(path))

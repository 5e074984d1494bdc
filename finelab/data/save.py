"""The data stage's outputs in the run's folder, and reading them back."""

from __future__ import annotations

import threading
from typing import Any

from finelab.data.pipeline import Prepared
from finelab.data.shards import read_split
from finelab.data.split import VALIDATION
from finelab.files import link_all, staged
from finelab.run import Run

# `datasets` loads under a lock of tqdm that it makes and deletes: two threads of a sweep would meet there
_LOADING = threading.Lock()


def save(run: Run, prepared: Prepared) -> None:
    """Make the run's `data/` in one piece: both splits, dropped.jsonl and report.json."""
    folder = run.train_data.parent
    with staged(folder) as stage:
        link_all(prepared.folder, stage)
    run.record("data", prepared.report)


def load_split(run: Run, name: str) -> Any:
    """The split `train`, `heldout` or `validation` as a `datasets.Dataset`, of the run's data.

    Without data.validation_share the validation rows are the held-out ones. LabError before notebook 01_data
    ran.
    """
    if name == VALIDATION and not run.recipe.data.validation_share:
        name = "heldout"
    folder = run.require(run.train_data, "01_data").parent
    with _LOADING:
        return read_split(folder, name)

"""The data stage's outputs in the run's folder, and reading them back."""

from __future__ import annotations

import json
from typing import Any

from finelab.data.read import Source
from finelab.data.standardize import Standardized
from finelab.files import staged, write_json
from finelab.run import Run


def save_splits(
    run: Run,
    source: Source,
    standardized: Standardized,
    train: list[dict[str, Any]],
    heldout: list[dict[str, Any]],
    summary: dict[str, Any],
) -> None:
    """Write `data/` in one piece: both splits as `datasets` folders, dropped.jsonl and report.json."""
    from datasets import Dataset

    with staged(run.train_data.parent) as stage:
        Dataset.from_list(train).save_to_disk(str(stage / run.train_data.name))
        Dataset.from_list(heldout).save_to_disk(str(stage / run.heldout_data.name))
        dropped = [
            json.dumps({"file": source.name, "row": number, "reason": reason}, ensure_ascii=False)
            for number, reason in standardized.dropped
        ]
        (stage / "dropped.jsonl").write_text("".join(f"{line}\n" for line in dropped), "utf-8")
        write_json(stage / "report.json", summary)
    run.record("data", summary)


def load_split(run: Run, name: str) -> Any:
    """The split `train` or `heldout` as a `datasets.Dataset`; LabError before notebook 01_data ran."""
    from datasets import load_from_disk

    path = run.require(run.train_data.parent / name, "01_data")
    return load_from_disk(str(path))

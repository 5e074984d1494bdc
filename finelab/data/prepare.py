"""The data stage over every row: read, standardise, select, tokenise, split, measure.

Two passes in chunks over worker processes, with a memory-mapped file of conversations between them,
so memory stays flat however large the sources are. What comes out is kept in the cache folder under
a key of everything it depends on: an unchanged input is not processed twice.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from finelab.data import columns, xray
from finelab.data.dropped import DroppedRows
from finelab.data.pool import in_order
from finelab.data.read import Row, Source, open_source
from finelab.data.standardize import Standardized, control_pattern, control_tokens, standardize
from finelab.embedded.model import cache_folder
from finelab.files import staged, write_json
from finelab.recipe import Recipe

CHUNK = 500  # rows handed to a worker at once, some MB of text
KEPT = 8  # prepared data sets in the cache; runs hold on to their own


@dataclass(frozen=True)
class Prepared:
    """A prepared data set: `folder` holds `train/`, `heldout/`, `dropped.jsonl` and `report.json`."""

    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        """The numbers, as the evidence's `data` keeps them."""
        return json.loads((self.folder / "report.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    def split(self, name: str) -> Any:
        """The rows of `train` or `heldout` as a memory-mapped `datasets.Dataset`."""
        from datasets import load_from_disk

        return load_from_disk(str(self.folder / name))


def prepare(recipe: Recipe, tokenizer: Any, workers: int = 1) -> Prepared:
    """Tokens and labels for every row of the recipe's sources; LabError when too few rows can be used."""
    sources = [open_source(text) for text in recipe.data.sources]
    folder = cache_folder() / "data" / cache_key(recipe, sources, tokenizer)
    if folder.exists():
        print(f"nothing changed since these rows were prepared before: taken from {folder}")
    else:
        with staged(folder) as stage:
            Preparation(stage, recipe, tokenizer, workers).run(sources)
        forget_old(folder.parent)
    return Prepared(folder)


def cache_key(recipe: Recipe, sources: Sequence[Source], tokenizer: Any) -> str:
    """A hash of all that the prepared rows depend on: content, options, template, tokenizer, code."""
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    parts = [
        [(source.name, source.sha256) for source in sources],
        asdict(recipe.data),
        recipe.model.max_seq_length,
        recipe.training.per_device_train_batch_size,
        recipe.training.seed,
        tokenizer.chat_template,
        tokenizer.backend_tokenizer.to_str(),
        code,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

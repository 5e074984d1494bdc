"""The data stage over every row: read, standardise, select, tokenise, split, measure.

Two passes in chunks over worker processes, with a memory-mapped file of conversations between them,
so memory stays flat however large the sources are. What comes out is kept in the cache folder under
a key of everything it depends on: an unchanged input is not processed twice.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from finelab.data import duplicates, select, xray
from finelab.data.columns import CONVERSATION, SPLIT, conversation, to_batch, to_split
from finelab.data.conversation import Conversation
from finelab.data.dialects import Unusable
from finelab.data.dropped import DroppedRows
from finelab.data.pool import in_order
from finelab.data.read import Row, Source, open_source
from finelab.data.report import report
from finelab.data.split import TRAIN, check_sides, question_key, side
from finelab.data.standardize import Standardized, control_pattern, control_tokens, standardize
from finelab.data.tokens import ChatTokenizer
from finelab.embedded.model import cache_folder
from finelab.errors import LabError
from finelab.files import staged, write_json
from finelab.recipe import Data, Recipe

CHUNK = 500  # rows handed to a worker at once, some MB of text
KEPT = 8  # prepared data sets in the cache; runs hold on to their own


@dataclass(frozen=True)
class Prepared:
    """A prepared data set: `folder` holds `train/`, `heldout/`, `dropped.jsonl` and `report.json`."""

    folder: Path
    sources: list[Source]

    @property
    def report(self) -> dict[str, Any]:
        """The numbers, as the evidence's `data` keeps them."""
        text = (self.folder / "report.json").read_text(encoding="utf-8")
        return json.loads(text)  # type: ignore[no-any-return]

    def split(self, name: str) -> Any:
        """The rows of `train` or `heldout` as a memory-mapped `datasets.Dataset`."""
        from datasets import load_from_disk

        return load_from_disk(str(self.folder / name))

    def raw(self, row: dict[str, Any]) -> Any:
        """A split's row as it was read from its source."""
        source = next(each for each in self.sources if each.name == row["file"])
        return next(itertools.islice(source.rows(), row["row"] - 1, None)).value


def prepare(recipe: Recipe, tokenizer: Any, workers: int = 1) -> Prepared:
    """Tokens and labels for every row of the recipe's sources; LabError when too few rows can be used."""
    sources = [open_source(text) for text in recipe.data.sources]
    select.check_languages(recipe.data.languages)
    folder = cache_folder() / "data" / cache_key(recipe, sources, tokenizer)
    if folder.exists():
        print(f"nothing changed since these rows were prepared before: taken from {folder}")
    else:
        with staged(folder) as stage:
            _fill(stage, recipe, sources, tokenizer, workers)
        _forget_old(folder.parent)
    return Prepared(folder, sources)


def example(source: Source, control: re.Pattern[str]) -> Conversation:
    """The first conversation of a source that can be used; LabError with the reasons when none can."""
    read = 0
    with DroppedRows(Path(os.devnull)) as dropped:
        for name, rows in _chunks([source]):
            found = standardize(rows, control)
            if found.conversations:
                return found.conversations[0]
            read += found.rows_in
            for row in found.dropped:
                dropped.add(name, row.number, row.reason)
        dropped.check(read, 0)
    raise AssertionError("check() raises when no row is left")


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


def read_arrow(path: Path) -> pa.Table:
    """A table that stays on the disk until it is looked at."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def _fill(stage: Path, recipe: Recipe, sources: Sequence[Source], tokenizer: Any, workers: int) -> None:
    """Make a prepared data set in the folder `stage`."""
    from datasets import Dataset

    data = recipe.data
    chats = ChatTokenizer(tokenizer, data.date_string, recipe.model.max_seq_length, data.truncation)
    with DroppedRows(stage / "dropped.jsonl") as dropped:
        table, found = _read(stage / "conversations.arrow", sources, tokenizer, chats, workers, dropped)
        dropped.check(found.rows_in, data.max_dropped_share)
        unused = dropped.counts.total()
        chosen = _select(table, sources, data, dropped)
        deselected = dropped.counts.total() - unused
        sides = _tokenize(stage, table, chosen, chats, data, workers, dropped)
        del table
    (stage / "conversations.arrow").unlink()
    splits = {}
    for name in ("train", "heldout"):
        Dataset.from_file(str(stage / f"{name}.arrow")).save_to_disk(str(stage / name))
        splits[name] = read_arrow(stage / f"{name}.arrow")
    check_sides(sides, _sources(splits.values()), data.heldout_share, data.heldout_sources)
    numbers = report(recipe, sources, found, dropped, len(chosen), deselected, splits, tokenizer)
    write_json(stage / "report.json", numbers)
    splits.clear()
    for name in ("train", "heldout"):
        (stage / f"{name}.arrow").unlink()


def _read(
    path: Path,
    sources: Sequence[Source],
    tokenizer: Any,
    chats: ChatTokenizer,
    workers: int,
    dropped: DroppedRows,
) -> tuple[pa.Table, Standardized]:
    """First pass: every row of every source as a conversation, in a memory-mapped table."""
    from tqdm import tqdm

    control = control_pattern(control_tokens(tokenizer))
    function = partial(_standardize, control=control, tool_calls=chats.template.renders_tool_calls)
    found = Standardized()
    with pa.ipc.new_stream(str(path), CONVERSATION) as file, tqdm(desc="read", unit=" rows", delay=2) as bar:
        for name, batch, part in in_order(function, _chunks(sources), workers):
            for row in part.dropped:
                dropped.add(name, row.number, row.reason, row.value)
            part.dropped = []
            found.add(part)
            file.write_batch(batch)
            bar.update(part.rows_in)
    for source in sources:
        if source.broken:
            print(f"{source.name}: {source.broken}; the rows before it are used.")
    return read_arrow(path), found


def _chunks(sources: Sequence[Source]) -> Iterator[tuple[str, list[Row]]]:
    for source in sources:
        rows = source.rows()
        while chunk := list(itertools.islice(rows, CHUNK)):
            yield source.name, chunk


def _standardize(
    chunk: tuple[str, list[Row]], control: Any, tool_calls: bool
) -> tuple[str, pa.RecordBatch, Standardized]:
    """A worker's part of the first pass; the conversations travel as the batch."""
    name, rows = chunk
    part = standardize(rows, control, tool_calls)
    batch = to_batch(part.conversations, name)
    part.conversations = []
    return name, batch, part


def _select(table: pa.Table, sources: Sequence[Source], data: Data, dropped: DroppedRows) -> list[int]:
    """The indices of the rows that are used: no duplicates, wanted, and in the mix."""
    files, rows = table["file"].to_pylist(), table["row"].to_pylist()

    def keep(indices: Sequence[int], reasons: Sequence[str | None]) -> list[int]:
        for index, reason in zip(indices, reasons, strict=True):
            if reason:
                dropped.add(files[index], rows[index], reason)
        return [index for index, reason in zip(indices, reasons, strict=True) if not reason]

    chosen = list(range(len(table)))
    if data.duplicates != "keep":
        same = duplicates.exact_duplicates(table["id"].to_pylist())
        chosen = keep(chosen, [None if row is None else "duplicate of another row" for row in same])
    if data.duplicates == "near":
        texts = (duplicates.said(row["messages"]) for row in _each(table, chosen))
        near = duplicates.near_duplicates(texts, data.near_duplicate_threshold)
        chosen = keep(chosen, [None if row is None else "nearly a duplicate of another row" for row in near])
    if data.languages or data.min_score is not None:
        reasons = (
            select.unwanted(conversation(row), data.languages, data.min_score) for row in _each(table, chosen)
        )
        chosen = keep(chosen, list(reasons))
    ids = table["id"].to_pylist()
    groups = [[index for index in chosen if files[index] == source.name] for source in sources]
    picked = select.mix([[ids[index] for index in group] for group in groups], data.weights, data.limit)
    return [group[place] for group, places in zip(groups, picked, strict=True) for place in places]


def _each(table: pa.Table, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(indices), CHUNK):
        yield from table.take(indices[start : start + CHUNK]).to_pylist()


def _tokenize(
    stage: Path,
    table: pa.Table,
    chosen: Sequence[int],
    chats: ChatTokenizer,
    data: Data,
    workers: int,
    dropped: DroppedRows,
) -> Counter[str]:
    """Second pass: the chosen rows as tokens and labels, in one file for each side of the split."""
    from tqdm import tqdm

    function = partial(_tokenize_batch, chats=chats, data=data)
    starts = range(0, len(chosen), CHUNK)
    batches = (table.take(chosen[start : start + CHUNK]).combine_chunks().to_batches()[0] for start in starts)
    sides: Counter[str] = Counter()
    with (
        pa.ipc.new_stream(str(stage / "train.arrow"), SPLIT) as train,
        pa.ipc.new_stream(str(stage / "heldout.arrow"), SPLIT) as heldout,
        tqdm(desc="tokenise", total=len(chosen), unit=" rows", delay=2) as bar,
    ):
        for batch, lost in in_order(function, batches, workers):
            for file, row, reason in lost:
                dropped.add(file, row, reason)
            found = batch["heldout"].to_pylist()
            sides.update(found)
            to_train = np.array([name == TRAIN for name in found], dtype=bool)
            train.write_batch(batch.filter(pa.array(to_train)))
            heldout.write_batch(batch.filter(pa.array(~to_train)))
            bar.update(len(batch) + len(lost))
    if not sides:
        reasons = ", ".join(f"{count} x {why}" for why, count in dropped.counts.most_common(3))
        raise LabError(
            f"none of {len(chosen)} rows can be used with model.max_seq_length = {chats.max_seq_length} "
            f"({reasons}); raise it, or mend the rows."
        )
    return sides


def _tokenize_batch(
    batch: pa.RecordBatch, chats: ChatTokenizer, data: Data
) -> tuple[pa.RecordBatch, list[tuple[str, int, str]]]:
    """A worker's part of the second pass, and the rows of it that were left out."""
    made, kept, lost = [], [], []
    for index, row in enumerate(batch.to_pylist()):
        said = conversation(row)
        try:
            tokens = chats.row(said)
            if np.count_nonzero(tokens.labels != xray.IGNORE) < data.min_trained_tokens:
                raise Unusable("fewer tokens to learn than data.min_trained_tokens")
        except Unusable as reason:
            lost.append((row["file"], row["row"], str(reason)))
            continue
        key = question_key(said.messages)
        made.append((tokens, side(said.source, key, data.heldout_share, data.heldout_sources)))
        kept.append(index)
    return to_split(batch.take(kept), made), lost


def _sources(tables: Any) -> set[str]:
    return {source for table in tables for source in table["source"].unique().to_pylist()}


def _forget_old(folder: Path) -> None:
    """Keep the newest prepared data sets only."""
    made = sorted((path for path in folder.iterdir() if path.name[0] != "."), key=lambda p: p.stat().st_mtime)
    for path in made[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)

"""The data stage over every row: read, standardise, select, tokenise, split, measure.

Two passes in chunks over worker processes, with memory-mapped shards of conversations between them, so
memory stays flat however large the sources are, and what was stopped goes on behind the last whole shard.
What comes out is kept in the cache folder under a key of everything it depends on: an unchanged input is
not processed twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from numpy.typing import NDArray

from finelab.data import duplicates, select, shards, xray
from finelab.data.columns import CONVERSATION, READ, content_hashes, conversation, to_batch, to_split
from finelab.data.dialects import Unusable
from finelab.data.dropped import DroppedRows, most_common, none_usable
from finelab.data.read import Row, Source, open_source
from finelab.data.report import report
from finelab.data.split import TRAIN, VALIDATION, check_sides, question_key, side
from finelab.data.standardize import Standardized, control_pattern, control_tokens, standardize
from finelab.data.tokens import ChatTokenizer
from finelab.data.tokens import Row as TokenizedRow
from finelab.embedded.model import cache_folder
from finelab.errors import LabError
from finelab.files import rename, staged, write_json, writing
from finelab.recipe import Data, Recipe

KEPT = 8  # prepared data sets in the cache; runs hold on to their own
KEPT_UNFINISHED_S = 7 * 24 * 3600


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
        """The rows of `train`, `heldout` or `validation`, as `shards.read_split` gives them."""
        return shards.read_split(self.folder, name)

    def raw(self, row: dict[str, Any]) -> Any:
        """A split's row as it was read from its source."""
        source = next(each for each in self.sources if each.name == row["file"])
        return next(itertools.islice(source.rows(), row["row"] - 1, None)).value


def prepare(recipe: Recipe, tokenizer: Any, workers: int = 1) -> Prepared:
    """Tokens and labels for every row of the recipe's sources; LabError when too few rows can be used."""
    sources = [open_source(text) for text in recipe.data.sources]
    select.check_languages(recipe.data.languages)
    folder = cache_folder() / "data" / cache_key(recipe, sources, tokenizer)
    with _working(folder) as work:
        if folder.exists():
            os.utime(folder)  # the newest, which no other process forgets now
            print(f"nothing changed since these rows were prepared before: taken from {folder}")
            return Prepared(folder, sources)
        if work.exists():
            print("this was stopped on the way: it goes on behind the last shard that is whole")
        with staged(folder) as stage:
            _fill(stage, work, recipe, sources, tokenizer, workers)
        for left in folder.parent.glob(f"{work.name}*"):  # also the stage of one that was killed
            shutil.rmtree(left, ignore_errors=True)
        _forget_old(folder.parent)
    return Prepared(folder, sources)


def example(source: Source, chats: ChatTokenizer) -> TokenizedRow:
    """The first row of a source that can be trained on; LabError with the reasons when none can."""
    read = 0
    control = control_pattern(control_tokens(chats.template.tokenizer))
    with DroppedRows(Path(os.devnull)) as dropped:
        rows = source.rows()
        while chunk := list(itertools.islice(rows, shards.CHUNK)):
            found = standardize(chunk, control, chats.template.renders_tool_calls)
            for said in found.conversations:
                try:
                    return chats.row(said)
                except Unusable as reason:
                    dropped.add(source.name, said.number, str(reason))
            read += found.rows_in
            for row in found.dropped:
                dropped.add(source.name, row.number, row.reason)
    raise none_usable(read, dropped.counts, chats.max_seq_length)


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
        tokenizer.eos_token,
        tokenizer.backend_tokenizer.to_str(),
        code,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


@contextlib.contextmanager
def _working(folder: Path) -> Iterator[Path]:
    """The folder in which `folder` is prepared, for this process alone; it stays when the process is stopped.

    Rows that cannot be used leave nothing behind: they would be the same the next time. A full disk or a
    worker that died is no fault of the rows.
    """
    locks = cache_folder() / "locks"
    with writing(folder):
        locks.mkdir(parents=True, exist_ok=True)
        work = folder.with_name(f".{folder.name}")
        with FileLock(locks / f"{folder.name}.lock"):
            try:
                yield work
            except LabError as error:
                if not isinstance(error.__cause__, (BrokenProcessPool, OSError)):
                    shutil.rmtree(work, ignore_errors=True)
                raise


def _fill(
    stage: Path, work: Path, recipe: Recipe, sources: Sequence[Source], tokenizer: Any, workers: int
) -> None:
    """Make a prepared data set in the folder `stage`, in shards that stay in `work` until it is whole."""
    data = recipe.data
    chats = ChatTokenizer(tokenizer, data.date_string, recipe.model.max_seq_length, data.truncation)
    with DroppedRows(stage / "dropped.jsonl") as dropped:
        conversations, found = _read(work, sources, tokenizer, chats, data, workers, dropped)
        dropped.check(found.rows_in, data.max_dropped_share)
        unused = dropped.counts.total()
        used = _select(work, conversations, sources, data, dropped)
        before = dropped.counts.copy()
        made = shards.tokenize(work, conversations, used, partial(_tokenize, chats=chats, data=data), workers)
        for shard in made:
            dropped.add_file(shard / "dropped.jsonl")
    splits, chosen = shards.splits(stage, made, work.name[1:]), int(used.sum())
    _check(splits, chosen, chats, data, dropped.counts - before)
    leaks = _leaks(work, made, splits, data.near_duplicate_threshold)
    deselected = before.total() - unused
    numbers = report(recipe, sources, found, dropped, chosen, deselected, splits, leaks, tokenizer)
    write_json(stage / "report.json", numbers)


def _read(
    work: Path,
    sources: Sequence[Source],
    tokenizer: Any,
    chats: ChatTokenizer,
    data: Data,
    workers: int,
    dropped: DroppedRows,
) -> tuple[list[Path], Standardized]:
    """First pass: every row of every source as a conversation, in shards."""
    control = control_pattern(control_tokens(tokenizer))
    function = partial(_standardize, control=control, tool_calls=chats.template.renders_tool_calls, data=data)
    made = shards.read(work, sources, function, workers)
    for source in sources:
        if source.broken:
            print(f"{source.name}: {source.broken}; the rows before it are used.")
    return made, shards.found_in(made, dropped)


def _standardize(
    chunk: tuple[int, str, list[Row]], control: Any, tool_calls: bool, data: Data
) -> tuple[int, str, pa.RecordBatch, Standardized]:
    """A worker's part of the first pass; the conversations travel as the batch."""
    shard, name, rows = chunk
    part = standardize(rows, control, tool_calls)
    signatures = [duplicates.signature(duplicates.said(each.messages)) for each in part.conversations]
    unwanted = [select.unwanted(each, data.languages, data.min_score) for each in part.conversations]
    columns = [pa.array(signatures, READ.field("signature").type), pa.array(unwanted, pa.string())]
    batch = to_batch(part.conversations, name)
    part.conversations = []
    return shard, name, pa.RecordBatch.from_arrays([*batch.columns, *columns], schema=READ), part


def _select(
    work: Path, conversations: Sequence[Path], sources: Sequence[Source], data: Data, dropped: DroppedRows
) -> NDArray[np.bool_]:
    """For each row whether it is used: wanted, no duplicate of one that is, and in the mix."""
    table = pa.concat_tables(shards.read_arrow(shard / "rows.arrow") for shard in conversations)
    used = np.ones(len(table), dtype=bool)

    def leave_out(indices: NDArray[np.int64], reasons: Iterable[str]) -> None:
        used[indices] = False
        for index, reason in zip(indices, reasons, strict=False):
            dropped.add(table["file"][index].as_py(), table["row"][index].as_py(), reason)

    if data.languages or data.min_score is not None:
        unwanted = np.flatnonzero(table["unwanted"].is_valid().to_numpy())
        leave_out(unwanted, (table["unwanted"][index].as_py() for index in unwanted))
    if data.duplicates != "keep":
        first = duplicates.first_of_each(_hashes(table, used), int(used.sum()), work)
        leave_out(np.flatnonzero(used)[~first], itertools.repeat("duplicate of another row"))
    if data.duplicates == "near":
        near = _near_duplicates(work, table, used, data.near_duplicate_threshold)
        leave_out(near, itertools.repeat("nearly a duplicate of another row"))
    if not used.any():
        raise LabError(
            f"the filters of [data] leave out every row ({most_common(dropped.counts)}); loosen them, "
            "or mend the rows."
        )
    if data.weights or data.limit:
        used &= _in_the_mix(table, used, sources, data)
    return used


def _hashes(table: pa.Table, used: NDArray[np.bool_]) -> Iterator[NDArray[np.uint64]]:
    """The content hashes of the used rows, chunk by chunk."""
    start = 0
    for chunk in table["id"].chunks:
        yield content_hashes(chunk)[used[start : start + len(chunk)]]
        start += len(chunk)


def _near_duplicates(
    work: Path, table: pa.Table, used: NDArray[np.bool_], threshold: float
) -> NDArray[np.int64]:
    """The indices of the used rows that nearly repeat an earlier one."""
    column = (value.as_py() for chunk in table["signature"].chunks for value in chunk)
    matrix = duplicates.on_disk(itertools.compress(column, used), work)
    near = duplicates.near_duplicates(matrix, threshold, work)
    return np.flatnonzero(used)[[match is not None for match in near]]


def _in_the_mix(
    table: pa.Table, used: NDArray[np.bool_], sources: Sequence[Source], data: Data
) -> NDArray[np.bool_]:
    """For each row whether it is one of the used ones that `select.mix` picks."""
    hashes = np.concatenate([content_hashes(chunk)[:, 0] for chunk in table["id"].chunks])
    named = [pc.equal(table["file"], source.name).to_numpy() for source in sources]
    groups = [np.flatnonzero(used & mask) for mask in named]
    picked = select.mix([hashes[group] for group in groups], data.weights, data.limit)
    mixed = np.zeros_like(used)
    for group, places in zip(groups, picked, strict=True):
        mixed[group[places]] = True
    return mixed


def _tokenize(
    chunk: tuple[int, pa.RecordBatch], chats: ChatTokenizer, data: Data
) -> tuple[int, pa.RecordBatch, duplicates.Signatures, shards.Lost]:
    """A worker's part of the second pass: tokens and signatures, and the rows that were left out."""
    shard, batch = chunk
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
        where = side(said.source, key, data.heldout_share, data.heldout_sources, data.validation_share)
        made.append((tokens, where))
        kept.append(index)
    rows = batch.take(pa.array(kept, pa.int64()))
    signatures = duplicates.matrix(rows["signature"].to_pylist())
    return shard, to_split(rows.select(CONVERSATION.names), made), signatures, lost


def _check(
    splits: Mapping[str, pa.Table], chosen: int, chats: ChatTokenizer, data: Data, lost: Counter[str]
) -> None:
    """LabError when no row is left, or one side of the split has none; `lost` counts the reasons for it."""
    sides = Counter({TRAIN: len(splits["train"])}) + Counter(splits["heldout"]["heldout"].to_pylist())
    if not sides:
        raise none_usable(chosen, lost, chats.max_seq_length)
    named = {source for table in splits.values() for source in table["source"].unique().to_pylist()}
    messages = (rows for table in splits.values() for rows in table["messages"].to_pylist())
    questions = map(question_key, messages)
    check_sides(sides, named, questions, data.heldout_share, data.heldout_sources, data.validation_share)


def _leaks(
    work: Path, tokens: Sequence[Path], splits: Mapping[str, pa.Table], threshold: float
) -> duplicates.Leakage:
    """The held-out rows that nearly repeat a training row; validation rows are looked at by nobody."""
    matrix = duplicates.on_disk(shards.signatures(tokens), work)
    matches = duplicates.near_matches(matrix, len(splits["train"]), threshold, work)
    kinds = splits["heldout"]["heldout"].to_pylist()
    reported = [pair for pair in zip(matches, kinds, strict=True) if pair[1] != VALIDATION]
    return duplicates.leakage([match for match, _ in reported], [kind for _, kind in reported])


def _forget_old(folder: Path) -> None:
    """Keep the newest prepared data sets, and those of the last days that were stopped on the way."""
    written = {}
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process has just taken it away
            written[path] = path.stat().st_mtime
    made = sorted((path for path in written if path.name[0] != "."), key=written.__getitem__)
    long_ago = time.time() - KEPT_UNFINISHED_S
    stopped = [path for path, at in written.items() if path.name[0] == "." and at < long_ago]
    for path in made[:-KEPT]:
        hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")  # what has no dot is whole
        with contextlib.suppress(OSError):  # what another program holds open goes next time
            rename(path, hidden)
            stopped.append(hidden)
    for path in stopped:
        shutil.rmtree(path, ignore_errors=True)

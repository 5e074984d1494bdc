"""The data stage's two passes in shards on the disk: what is there is whole, and is not made again.

A shard is a run of rows of one source. The first pass makes `conversations/<shard>/`, the second
`tokens/<shard>/` from it, both a staged folder that is forced to the disk and renamed, so that a kill costs
one shard at most. `splits` puts the second pass's files into folders as `datasets` keeps them, uncopied.
"""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from finelab.data.columns import READ, SPLIT
from finelab.data.dropped import DroppedRows
from finelab.data.duplicates import Signatures
from finelab.data.pool import in_order
from finelab.data.read import Row, Source
from finelab.data.split import TRAIN, VALIDATION
from finelab.data.standardize import Example, Standardized
from finelab.files import link, staged, write_json

CHUNK = 500  # rows handed to a worker at once, some MB of text
SHARD = 20_000  # rows, some ten seconds of work
SIDES = ("train", "heldout")

Standardize = Callable[[tuple[int, str, list[Row]]], tuple[int, str, pa.RecordBatch, Standardized]]
Lost = list[tuple[str, int, str]]  # file, row, reason
Tokenize = Callable[[tuple[int, pa.RecordBatch]], tuple[int, pa.RecordBatch, Signatures, Lost]]


def read(work: Path, sources: Sequence[Source], function: Standardize, workers: int) -> list[Path]:
    """First pass: every row of every source as a conversation; gives the shards in order."""
    from tqdm import tqdm

    parts = in_order(function, _chunks(work, sources), workers)
    with tqdm(desc="read", unit=" rows", delay=2) as bar:
        for shard, results in itertools.groupby(parts, key=lambda part: part[0]):
            with staged(_folder(work, "conversations", shard)) as stage:
                _write_conversations(stage, results, bar)
    return _made(work, "conversations")


def found_in(shards: Iterable[Path], dropped: DroppedRows) -> Standardized:
    """What happened to the rows of the first pass."""
    found = Standardized()
    for shard in shards:
        dropped.add_file(shard / "dropped.jsonl")
        numbers = json.loads((shard / "found.json").read_text(encoding="utf-8"))
        examples = {kind: Example(**each) for kind, each in numbers["examples"].items()}
        part = Standardized(rows_in=numbers["rows_in"], examples=examples)
        part.repaired.update(numbers["repaired"])
        found.add(part)
    return found


def tokenize(
    work: Path, shards: Sequence[Path], used: NDArray[np.bool_], function: Tokenize, workers: int
) -> list[Path]:
    """Second pass: the rows of the first that are `used`, as tokens; gives the shards in order."""
    from tqdm import tqdm

    parts = in_order(function, _used_batches(work, shards, used), workers)
    with tqdm(desc="tokenise", total=int(used.sum()), unit=" rows", delay=2) as bar:
        for shard, results in itertools.groupby(parts, key=lambda part: part[0]):
            with staged(_folder(work, "tokens", shard)) as stage:
                _write_tokens(stage, results, bar)
    return _made(work, "tokens")


def splits(stage: Path, shards: Sequence[Path], fingerprint: str) -> dict[str, pa.Table]:
    """`train/` and `heldout/` in `stage`, as `datasets.load_from_disk` takes them, and their tables.

    `fingerprint` stands for the content: `datasets` keeps what is made of the rows under it.
    """
    return {
        side: _split(stage / side, [shard / f"{side}.arrow" for shard in shards], f"{fingerprint}-{side}")
        for side in SIDES
    }


def read_split(folder: Path, name: str) -> Any:
    """The rows of `train`, `heldout` or `validation` as a memory-mapped `datasets.Dataset`.

    Validation rows are kept among the held-out ones, and are in `validation` only.
    """
    from datasets import load_from_disk

    if name == "train":
        return load_from_disk(str(folder / name))
    rows = load_from_disk(str(folder / "heldout"))
    wanted = (np.array(rows["heldout"]) == VALIDATION) == (name == VALIDATION)
    return rows if wanted.all() else rows.select(np.flatnonzero(wanted))


def signatures(shards: Sequence[Path]) -> Iterator[bytes]:
    """The signatures of the training rows, then those of the held-out rows."""
    return ((shard / f"{side}.signatures").read_bytes() for side in SIDES for shard in shards)


def read_arrow(path: Path) -> pa.Table:
    """A table that stays on the disk until it is looked at."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def _folder(work: Path, what: str, shard: int) -> Path:
    return work / what / f"{shard:06}"


def _made(work: Path, what: str) -> list[Path]:
    """The whole shards; one that was being made when its process was killed has a dot before its name."""
    return sorted(path for path in (work / what).glob("*") if path.name[0] != ".")


def _chunks(work: Path, sources: Sequence[Source]) -> Iterator[tuple[int, str, list[Row]]]:
    """The rows of the shards that are not there, with the shard's number and the source's name."""
    numbers = itertools.count()
    for source in sources:
        for rows, number in zip(_runs(source.rows()), numbers, strict=False):
            if _folder(work, "conversations", number).exists():
                deque(rows, maxlen=0)
            while chunk := list(itertools.islice(rows, CHUNK)):
                yield number, source.name, chunk


def _runs(rows: Iterator[Row]) -> Iterator[Iterator[Row]]:
    """The rows in runs of `SHARD`, each to be used up before the next."""
    for first in rows:
        yield itertools.chain([first], itertools.islice(rows, SHARD - 1))


def _write_conversations(stage: Path, results: Iterable[Any], bar: Any) -> None:
    found = Standardized()
    with (
        pa.ipc.new_stream(str(stage / "rows.arrow"), READ) as file,
        DroppedRows(stage / "dropped.jsonl") as dropped,
    ):
        for _, name, batch, part in results:
            for row in part.dropped:
                dropped.add(name, row.number, row.reason, row.value)
            part.dropped = []
            found.add(part)
            file.write_batch(batch)
            bar.update(part.rows_in)
    examples = {kind: example._asdict() for kind, example in found.examples.items()}
    write_json(
        stage / "found.json", {"rows_in": found.rows_in, "repaired": found.repaired, "examples": examples}
    )


def _used_batches(
    work: Path, shards: Sequence[Path], used: NDArray[np.bool_]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The used rows of the shards that are not tokenised, with the shard's number."""
    start = 0
    for number, shard in enumerate(shards):
        there = _folder(work, "tokens", number).exists()
        for batch in read_arrow(shard / "rows.arrow").to_batches():
            mask = used[start : start + len(batch)]
            start += len(batch)
            if mask.any() and not there:
                yield number, batch.filter(pa.array(mask))


def _write_tokens(stage: Path, results: Iterable[Any], bar: Any) -> None:
    with (
        pa.ipc.new_stream(str(stage / "train.arrow"), SPLIT) as train,
        pa.ipc.new_stream(str(stage / "heldout.arrow"), SPLIT) as heldout,
        (stage / "train.signatures").open("wb") as train_signatures,
        (stage / "heldout.signatures").open("wb") as heldout_signatures,
        DroppedRows(stage / "dropped.jsonl") as dropped,
    ):
        for _, batch, signatures, lost in results:
            for file, row, reason in lost:
                dropped.add(file, row, reason)
            to_train = np.array([side == TRAIN for side in batch["heldout"].to_pylist()], dtype=bool)
            train.write_batch(batch.filter(pa.array(to_train)))
            heldout.write_batch(batch.filter(pa.array(~to_train)))
            train_signatures.write(signatures[to_train].tobytes())
            heldout_signatures.write(signatures[~to_train].tobytes())
            bar.update(len(batch) + len(lost))


def _split(folder: Path, paths: Sequence[Path], fingerprint: str) -> pa.Table:
    """The files' rows as a `datasets` folder: data-00000-of-00002.arrow and more, and what describes them."""
    from datasets import DatasetInfo, Features

    filled = [path for path in paths if len(read_arrow(path))]
    names = [f"data-{number:05}-of-{len(filled):05}.arrow" for number in range(len(filled))]
    for path, name in zip(filled, names, strict=True):
        link(path, folder / name)
    folder.mkdir(exist_ok=True)
    DatasetInfo(features=Features.from_arrow_schema(SPLIT)).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)
    return pa.concat_tables([SPLIT.empty_table(), *(read_arrow(folder / name) for name in names)])

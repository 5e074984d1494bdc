"""Reading rows from the embedded file, a local file (json, jsonl, parquet) or a Hub data set."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelab.errors import LabError
from finelab.files import sha256
from finelab.recipe import Data

EMBEDDED = Path(__file__).parent.parent / "embedded" / "conversations.jsonl"
SUFFIXES = (".json", ".jsonl", ".parquet")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Source:
    """Rows as they were read, in order; an unreadable row is its error text instead of a mapping.

    `broken` says where the file stopped being readable, if it did.
    """

    name: str
    revision: str
    sha256: str
    rows: list[dict[str, Any] | str]
    broken: str | None = None


def read_conversations(data: Data) -> Source:
    """Every row of the recipe's source; LabError when there is none."""
    if data.source == "embedded":
        source = _read_file(EMBEDDED, "embedded")
    elif _is_local(data.source):
        source = _read_file(Path(data.source), data.source)
    else:
        source = _read_hub(data)
    if source.broken:
        print(f"{source.name}: {source.broken}; the {len(source.rows)} rows before it are used.")
    if not source.rows:
        raise LabError(
            f"{source.name}: {source.broken or 'no rows in it'}; expected conversations, one a row."
        )
    return source


def _is_local(source: str) -> bool:
    path = Path(source)
    return path.suffix.lower() in SUFFIXES or path.exists() or source.count("/") != 1


def _read_file(path: Path, name: str) -> Source:
    suffix = path.suffix.lower()
    if not path.exists():
        raise LabError(f"data file {path} does not exist; give an existing {_kinds()} file.")
    if path.is_dir() or suffix not in SUFFIXES:
        raise LabError(f"{path} is not a {_kinds()} file.")
    try:
        if suffix == ".parquet":
            rows, broken = _parquet_rows(path), None
        elif suffix == ".jsonl":
            rows, broken = list(_jsonl_rows(_text(path))), None
        else:
            rows, broken = _json_rows(_text(path))
    except OSError as error:
        raise LabError(f"cannot read {path}: {error.strerror or error}.") from error
    return Source(name, "", sha256(path), rows, broken)


def _kinds() -> str:
    return ", ".join(SUFFIXES[:-1]) + " or " + SUFFIXES[-1]


def _text(path: Path) -> str:
    raw = path.read_bytes()
    encoding = "utf-16" if raw.startswith(_UTF16) else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise LabError(
            f"{path}: byte {error.start} is not {encoding.removesuffix('-sig').upper()} text; "
            "save the file as UTF-8."
        ) from error


def _jsonl_rows(text: str) -> Iterator[dict[str, Any] | str]:
    for line in text.split("\n"):
        if line.strip():
            try:
                yield json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                yield f"not valid JSON ({error})"


def _json_rows(text: str) -> tuple[list[dict[str, Any] | str], str | None]:
    """The elements of a JSON array, as far as it is whole; else the lines of JSON Lines in a .json."""
    start = _skip(text, 0, " \t\r\n")
    if not text.startswith("[", start):
        return list(_jsonl_rows(text)), None
    decoder = json.JSONDecoder()
    rows: list[dict[str, Any] | str] = []
    position = _skip(text, start + 1, " \t\r\n")
    while not text.startswith("]", position):
        try:
            row, end = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError):
            where = f"row {len(rows) + 1}, character {position:,} of {len(text):,}"
            return rows, f"the JSON array breaks off in {where}"
        rows.append(row)
        position = _skip(text, end, " \t\r\n,")
    return rows, None


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _parquet_rows(path: Path) -> list[dict[str, Any] | str]:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path).to_pylist()  # type: ignore[no-any-return]
    except pyarrow.ArrowException as error:
        raise LabError(f"{path}: not a whole parquet file ({error}).") from error


def _read_hub(data: Data) -> Source:
    from datasets import load_dataset

    try:
        dataset = load_dataset(data.source, split="train", revision=data.revision)
    except Exception as error:  # the client raises a dozen kinds; the cause is in the text
        raise LabError(
            f"cannot load the data set {data.source!r} from the Hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}); check the name and the "
            "network, or give a local file with --data."
        ) from error
    fingerprint = hashlib.sha256(dataset._fingerprint.encode()).hexdigest()
    return Source(data.source, data.revision or "main", fingerprint, dataset.to_list())

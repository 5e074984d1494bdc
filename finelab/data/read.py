"""Reading the rows of the embedded file, a local file or a Hub data set, as a stream of any length."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from finelab.data import hub
from finelab.data.files_json import json_values, jsonl_values
from finelab.data.files_table import csv_values, parquet_values, table_values
from finelab.data.files_text import BreaksOff, Parsed, Unreadable, utf8_chunks
from finelab.errors import LabError
from finelab.files import sha256
from finelab.recipe import HUB_ID

EMBEDDED = Path(__file__).parent.parent / "embedded" / "conversations.jsonl"
KINDS = ".json, .jsonl, .ndjson, .csv, .tsv (each also with .gz or .zst behind it) or .parquet"

_TEXT_KINDS = {
    ".json": json_values,
    ".jsonl": jsonl_values,
    ".ndjson": jsonl_values,
    ".csv": csv_values,
    ".tsv": csv_values,
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_HUB_NAME = re.compile(rf"({HUB_ID.pattern})(?::([^@]+))?(?:@(.+))?", re.ASCII)


class Row(NamedTuple):
    """One row of a source, counted from 1; with an `error`, `value` is None or the start of its text."""

    number: int
    value: Any
    error: str | None = None


@dataclass
class Source:
    """Where rows come from; `revision` is the commit of a Hub data set, empty for a file.

    `broken` says where the file stopped being readable; it is known once `rows()` ran to its end.
    """

    name: str
    revision: str
    sha256: str
    parse: Callable[[], Iterator[Parsed]] = field(repr=False)
    broken: str | None = field(default=None, init=False)

    def rows(self) -> Iterator[Row]:
        """Every row from the start, in bounded memory; LabError when not one can be read."""
        self.broken = first_error = None
        number = readable = 0
        try:
            for number, (value, error) in enumerate(self.parse(), start=1):
                readable += error is None
                first_error = first_error or error
                yield Row(number, value, error)
        except BreaksOff as error:
            self.broken = f"{error}, in row {number + 1:,}"
        except Unreadable as error:
            raise LabError(f"{self.name}: {error}.") from error
        except OSError as error:
            raise LabError(f"cannot read {self.name}: {error.strerror or error}.") from error
        if not readable:
            why = first_error or self.broken or "no rows in it"
            raise LabError(f"{self.name}: {why}; expected conversations, one a row.")


def open_source(text: str) -> Source:
    """The source called "embedded", a file's path, or "owner/name:part@revision" on the Hub.

    `part` is a configuration, a split or both, "configuration:split"; it and `revision` may be left out.
    Raises LabError when there is no such source, when it is empty, and when its kind is unknown.
    """
    if text == "embedded":
        return _open_file(EMBEDDED, text)
    try:
        named = None if _is_local(text) else _HUB_NAME.fullmatch(text)
        return _open_hub(*named.groups()) if named else _open_file(Path(text), text)
    except OSError as error:
        raise LabError(f"cannot read {text}: {error.strerror or error}.") from error


def _is_local(text: str) -> bool:
    return Path(text).exists() or names_a_file(text)


def names_a_file(text: str) -> bool:
    """Whether a source's name ends as a data file's does: then it is none of the Hub's."""
    return _parser(Path(text)) is not None


def _open_file(path: Path, name: str) -> Source:
    parse = _parser(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise LabError(f"data file {name!a}: its name is not UTF-8 text; rename it.") from None
    if not path.exists():
        raise LabError(
            f"data file {path.absolute()} does not exist; give a {KINDS} file, or owner/name on the Hub."
        )
    if not path.is_file():
        raise LabError(f"{path} is not a file; give a {KINDS} file.")
    if parse is None:
        raise LabError(f"{path} is of a kind that is not read; expected {KINDS}.")
    if path.stat().st_size == 0:
        raise LabError(f"{path} is empty; expected conversations, one a row.")
    return Source(name, "", sha256(path), parse)


def _parser(path: Path) -> Callable[[], Iterator[Parsed]] | None:
    *_, kind, last = ("", "", *(suffix.lower() for suffix in path.suffixes))
    if last == ".parquet":
        return partial(parquet_values, path)
    compression = _COMPRESSIONS.get(last)
    values = _TEXT_KINDS.get(kind if compression else last)
    return partial(_text_values, values, path, compression) if values else None


def _text_values(
    values: Callable[[Iterator[bytes]], Iterator[Parsed]], path: Path, compression: str | None
) -> Iterator[Parsed]:
    return values(utf8_chunks(path, compression))


def _open_hub(name: str, part: str | None, revision: str | None) -> Source:
    commit, dataset = hub.load(name, part, revision)
    content = hashlib.sha256(f"{commit} {dataset._fingerprint}".encode()).hexdigest()
    return Source(f"{name}:{part}" if part else name, commit, content, partial(table_values, dataset))

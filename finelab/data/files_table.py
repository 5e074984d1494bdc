"""Tables: csv with a header, parquet, and the Arrow table of a Hub data set."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from finelab.data.files_text import (
    LONGEST_ROW,
    NUL_HINT,
    TOO_LONG,
    UTF8_HINT,
    BreaksOff,
    Parsed,
    Unreadable,
    excerpt,
    lines,
)

OLD_MAC = "a carriage return alone stands in it; save the file with LF or CRLF at the ends of its lines"
_BATCH = 200  # rows; 1,000 take three times the memory and no less time
_NOT_HELD = (ValueError, OverflowError, RecursionError)  # what Python raises for a value in a column
_Convert = Callable[[Any], Any]


def csv_values(chunks: Iterator[bytes]) -> Iterator[Parsed]:
    """One mapping a row, its keys from the header; the header shows whether , ; or tab stands between."""
    csv.field_size_limit(LONGEST_ROW // 4)  # csv keeps four bytes a character
    texts = _csv_lines(chunks)
    head = []
    for text in texts:
        head.append(text)
        if text.strip():
            break
    delimiter = max(",;\t", key=head[-1].count) if head else ","
    reader = csv.reader(chain(head, texts), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    for fields, fault in _csv_rows(reader):
        raw = delimiter.join(fields)
        fault = fault or _fault(raw, fields, header or fields)
        if header is None:
            header = _names(fields, fault)
        elif fault:
            shown = raw.encode("utf-8", "surrogateescape")
            yield excerpt(shown) or None, f"line {reader.line_num:,}: {fault}"
        else:
            yield dict(zip(header, fields, strict=True)), None


def parquet_values(path: Path) -> Iterator[Parsed]:
    """One mapping a row, read by row group, so that the groups before a damaged one are whole."""
    from pyarrow import ArrowException, parquet

    faults = (ArrowException, OSError, ValueError)  # ValueError: a damaged name that is not UTF-8
    try:
        # by default a column of a row group is read whole: 320 MB of a 320 MB file, against 14 MB
        file = parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
        names = file.schema_arrow.names
    except faults as error:
        raise Unreadable(f"not a whole parquet file ({_on_a_line(error)})") from error
    _names(names, None)
    with file:
        try:
            for group in range(file.num_row_groups):
                yield from arrow_values(file.iter_batches(_BATCH, row_groups=[group]))
        except faults as error:
            raise BreaksOff(f"the parquet data cannot be read ({_on_a_line(error)})") from error


def table_values(dataset: Any) -> Iterator[Parsed]:
    """One mapping a row of a `datasets.Dataset`, out of its memory-mapped Arrow table."""
    return arrow_values(dataset.with_format("arrow").iter(_BATCH))


def arrow_values(batches: Iterable[Any]) -> Iterator[Parsed]:
    """The rows of Arrow batches as JSON Lines would hold them.

    Columns of JSON text are parsed, and a struct's member that is null is left out: Arrow writes so what a
    row lacks, and one that was written as null cannot be told from it. A row that Python cannot hold, such
    as text not in UTF-8, is an error.
    """
    for batch in batches:
        columns = _conversions(batch.schema)
        try:
            rows = _rows(batch, columns)
        except _NOT_HELD:
            yield from (_arrow_row(batch.slice(row, 1), columns) for row in range(batch.num_rows))
        else:
            yield from ((row, None) for row in rows)


def _on_a_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _rows(batch: Any, columns: dict[str, _Convert]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = batch.to_pylist()
    for row in rows:
        row.update({name: convert(row[name]) for name, convert in columns.items() if row[name] is not None})
    return rows


def _arrow_row(batch: Any, columns: dict[str, _Convert]) -> Parsed:
    try:
        return _rows(batch, columns)[0], None
    except _NOT_HELD as error:
        return None, f"a value that cannot be read ({_on_a_line(error)})"


def _conversions(fields: Iterable[Any]) -> dict[str, _Convert]:
    """For the Arrow fields that need it, what makes a value, as Python holds it, the one that JSON gives."""
    found = {field.name: _conversion(field.type) for field in fields}
    return {name: convert for name, convert in found.items() if convert}


def _conversion(kind: Any) -> _Convert | None:
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):  # `datasets` takes it for columns of mixed structure
        return json.loads
    if pa.types.is_struct(kind):
        inner = _conversions(kind)
        return lambda members: {
            name: inner[name](value) if name in inner else value
            for name, value in members.items()
            if value is not None
        }
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        convert = _conversion(kind.value_type)
        return convert and (lambda values: [None if each is None else convert(each) for each in values])
    return None


def _csv_lines(chunks: Iterator[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines(chunks), start=1):
        if len(line) > LONGEST_ROW:
            raise BreaksOff(f"line {number:,} is {TOO_LONG}")
        yield line.decode("utf-8", "surrogateescape") + "\n"


def _csv_rows(reader: Any) -> Iterator[tuple[list[str], str | None]]:
    """The fields of each row that is not blank, or why they cannot be told apart."""
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if str(error).startswith(("unexpected end", "field larger")):
                raise BreaksOff(f"a quote opened in line {start:,} is never closed") from error
            yield [], OLD_MAC if str(error).startswith("new-line character") else str(error)
        else:
            if fields:
                yield fields, None


def _fault(raw: str, fields: Sequence[str], header: Sequence[str]) -> str | None:
    if len(fields) != len(header):
        return f"{len(fields)} fields where the header names {len(header)}"
    if "\0" in raw:
        return f"not csv{NUL_HINT}"
    try:
        raw.encode()
    except UnicodeEncodeError:
        return f"not UTF-8 text{UTF8_HINT}"
    return None


def _names(names: list[str], fault: str | None) -> list[str]:
    """The columns' names; one may be empty, as pandas leaves that of its index."""
    twice = [name for name in names if names.count(name) > 1]
    if not fault and not any(name.strip() for name in names):
        fault = "no column has a name"
    if not fault and twice:
        fault = f"two columns are named {twice[0]!r}"
    if fault:
        raise Unreadable(f"the header cannot be used: {fault}")
    return names

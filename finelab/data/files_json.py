"""JSON Lines, and JSON arrays of any length, parsed while they are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain

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
from finelab.data.files_window import JsonWindow, why_not_json

# {"version": "1.0", "data": [...]}: scalar members, then the list that holds the rows
_WRAPPED = re.compile(
    r'\{\s*(?:"[^"]*"\s*:\s*(?:"[^"]*"|[\w.+-]+)\s*,\s*)*"(?:data|rows|train|examples|instances)"\s*:\s*\['
)


def jsonl_values(chunks: Iterator[bytes]) -> Iterator[Parsed]:
    """One JSON value a line; a line that cannot be read is given with the reason, and reading goes on."""
    for number, line in enumerate(lines(chunks), start=1):
        if line.strip():
            value, error = _parse(line)
            yield value, error and f"line {number:,}: {error}"


def json_values(chunks: Iterator[bytes]) -> Iterator[Parsed]:
    """The elements of an array or of an object's data list, single objects, or JSON Lines."""
    head = next(chunks, b"")
    chunks = chain([head], chunks)
    if _is_lines(head):
        yield from jsonl_values(chunks)
        return
    text = JsonWindow(chunks)
    token = text.token()
    if token not in ("", "[", "{"):
        raise Unreadable(f"expected a JSON array or JSON objects, found {token!r}")
    wrapped = _WRAPPED.match(text.window, text.position)
    if token == "[" or wrapped:
        text.position = wrapped.end() if wrapped else text.position + 1
        yield from _values(text, until="]")
        text.position += 1
        if wrapped:
            _end_object(text)
        if text.token():
            raise BreaksOff(f"text follows the JSON at character {text.place():,}")
    else:
        yield from _values(text, until="")


def _end_object(text: JsonWindow) -> None:
    """Move behind the object whose list was read; BreaksOff where more than scalar members follows it."""
    while (token := text.token()) != "}":
        if not token:
            raise BreaksOff(f"the JSON breaks off at character {text.place():,}")
        if token in "[{":
            raise BreaksOff(f"a second list or object follows at character {text.place():,} and is not read")
        if token == ":":
            text.position += 1
        else:
            text.value()
    text.position += 1


def _parse(line: bytes) -> Parsed:
    if len(line) > LONGEST_ROW:
        return excerpt(line), TOO_LONG
    try:
        return json.loads(line.decode()), None
    except UnicodeDecodeError as error:
        return excerpt(line), f"byte {error.start + 1:,} is not UTF-8 text{_hint(line) or UTF8_HINT}"
    except (ValueError, RecursionError) as error:
        return excerpt(line), f"not valid JSON ({why_not_json(error)}){_hint(line)}"


def _hint(line: bytes) -> str:
    if line.strip() in (b"{", b"["):
        return "; it looks like JSON spread over several lines: name the file .json"
    return NUL_HINT if b"\0" in line else ""


def _is_lines(head: bytes) -> bool:
    """Whether one of the first two lines, of several, is an object by itself."""
    rows = [line for line in head.split(b"\n", 20) if line.strip()]
    if len(rows) < 2 or rows[0].lstrip().startswith(b"["):
        return False
    return any(isinstance(_parse(line)[0], dict) for line in rows[:2])


def _values(text: JsonWindow, until: str) -> Iterator[Parsed]:
    while (token := text.token()) != until:
        if not token:
            raise BreaksOff(f"the JSON breaks off at character {text.place():,}")
        yield text.value()

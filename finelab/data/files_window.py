"""JSON values one behind the other in a text of any length, parsed while it is read."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator

from finelab.data.files_text import LONGEST_ROW, NUL_HINT, TOO_LONG, UTF8_HINT, BreaksOff, Parsed, excerpt

_DECODER = json.JSONDecoder()
_TOKEN = re.compile(r"[^ \t\r\n,]")


def why_not_json(error: Exception, passed: int = 0) -> str:
    """The decoder's reason; `passed` is how many characters stood before the text that it saw."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {passed + error.pos + 1:,}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


class JsonWindow:
    """The stretch of a long text around `position`, where the next value begins; it moves as it is read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.window = ""
        self.position = 0
        self._passed = 0  # characters before the window
        self._fault: BreaksOff | None = None
        # bytes that are not UTF-8 become lone surrogates, to be the fault of their row
        self._texts = codecs.iterdecode(chunks, "utf-8", "surrogateescape")

    def place(self) -> int:
        """The character in the text, from 1."""
        return self._passed + self.position + 1

    def token(self) -> str:
        """Move to the next character that is neither white space nor a comma; empty at the end."""
        while not (found := _TOKEN.search(self.window, self.position)):
            self.position = len(self.window)
            if not self._grow():
                return ""
        self.position = found.start()
        return found.group()

    def value(self) -> Parsed:
        """The JSON value at the position, which moves behind it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.window, self.position)
            except (ValueError, RecursionError) as error:
                self._grow_or_break(error)
                continue
            # a number goes on in the next piece: 1|2, 1.|5, 1e+|5
            if isinstance(value, (int, float)) and len(self.window) - end < 4 and self._grow():
                continue
            start, self.position = self.position, end
            return self._checked(value, start)

    def _checked(self, value: object, start: int) -> Parsed:
        if self.window.isascii():
            return value, None
        raw = self.window[start : self.position]
        try:
            raw.encode()
        except UnicodeEncodeError as error:
            where = f"character {self._passed + start + error.start + 1:,}"
            shown = excerpt(raw.encode("utf-8", "surrogateescape"))
            return shown, f"{where} is not UTF-8 text{UTF8_HINT}"
        return value, None

    def _grow_or_break(self, error: Exception) -> None:
        """Read on if the value may only be cut by the window's end; BreaksOff if that cannot help."""
        rest = len(self.window) - self.position
        if _is_cut(error, token=16):  # -Infinity and \u1234 are shorter
            if rest > LONGEST_ROW:
                raise BreaksOff(f"the JSON value at character {self.place():,} is {TOO_LONG}") from error
            if self._grow():
                return
        hint = NUL_HINT if "\0" in self.window[self.position : self.position + 2000] else ""
        if _is_cut(error, token=0):
            raise BreaksOff(f"the JSON breaks off at character {self.place() + rest - 1:,}{hint}") from error
        reason = f"{why_not_json(error, self._passed)}{hint}"
        raise BreaksOff(f"not valid JSON from character {self.place():,} on ({reason})") from error

    def _grow(self) -> bool:
        """Drop what was passed and at least double the rest, so that a long value costs linear time."""
        parts = [self.window[self.position :]]
        missing = max(1, min(len(parts[0]), LONGEST_ROW + 1 - len(parts[0])))
        try:
            while missing > 0 and (part := next(self._texts, "")):
                parts.append(part)
                missing -= len(part)
        except BreaksOff as fault:
            self._fault = fault  # raised when what was read before it is used up
        if len(parts) == 1:
            if self._fault:
                raise self._fault
            return False
        self._passed += self.position
        self.window, self.position = "".join(parts), 0
        return True


def _is_cut(error: Exception, token: int) -> bool:
    """Whether the text ends in an open string, or within `token` characters of the error."""
    return isinstance(error, json.JSONDecodeError) and (
        error.msg.startswith("Unterminated string") or len(error.doc) - error.pos <= token
    )

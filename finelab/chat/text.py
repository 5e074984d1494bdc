"""The text of an answer as its tokens come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no character yet
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # C0 and C1 but tab and newline


class Text:
    """Token ids as text, piece by piece; the pieces joined are all ids decoded at once, up to a stop."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.stopped = False
        self._ids: list[int] = []
        self._settled = 0  # so many ids are in `_text` for good
        self._text = ""
        self._given = 0  # so many characters of `_text` were handed out

    def add(self, token_id: int) -> str:
        """What may be shown after this token: "" while a character or a possible stop string is open."""
        self._ids.append(token_id)
        # One settled id is decoded again: alone, a token may lose its leading space.
        start = max(self._settled - 1, 0)
        before, now = self._decode(self._ids[start : self._settled]), self._decode(self._ids[start:])
        if not now.endswith(UNFINISHED):
            self._text += now[len(before) :]
            self._settled = len(self._ids)
        return self._release(held(self._text[self._given :], self.stop))

    def end(self) -> str:
        """The rest, when no token follows."""
        if not self.stopped:
            self._text = self._decode(self._ids)
        return self._release(0)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _release(self, hold: int) -> str:
        """Hand out what is new but for `hold` characters, or up to the first stop string."""
        found = [place for word in self.stop if (place := self._text.find(word, self._given)) >= 0]
        if found:
            self._text, self.stopped, hold = self._text[: min(found)], True, 0
        end = len(self._text) - hold
        piece, self._given = self._text[self._given : end], end
        return piece


def printable(text: str) -> str:
    """The text without control characters, which would move a terminal's cursor or change its title."""
    return CONTROL.sub("", text)


def held(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop string."""
    longest = max(map(len, stop), default=1) - 1
    sizes = range(min(longest, len(text)), 0, -1)
    return next((size for size in sizes if any(word.startswith(text[-size:]) for word in stop)), 0)

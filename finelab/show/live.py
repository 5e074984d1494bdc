"""One line of text that is renewed in place."""

from __future__ import annotations

import sys
import time


class Live:
    """A line that replaces itself in a notebook and is printed anew elsewhere, at most every `every_s`."""

    def __init__(self, every_s: float = 5.0) -> None:
        self.every_s = every_s
        self._shown_at = float("-inf")
        self._handle = None

    def show(self, text: str, last: bool = False) -> None:
        """Show `text` if the last one is old enough; `last` shows it in any case."""
        now = time.monotonic()
        if not last and now - self._shown_at < self.every_s:
            return
        self._shown_at = now
        if "ipykernel" not in sys.modules:
            print(text, flush=True)
            return
        from IPython.display import display

        content = {"text/plain": text}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

"""One line of text, with a picture where there is a notebook, that is renewed in place."""

from __future__ import annotations

import base64
import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

SHARE = 0.02  # of the time may go into drawing: a curve takes 0.2 s
LONGEST_S = 30.0  # without a new picture; the first one takes 2 s, as matplotlib is imported


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    # An imported ipykernel would not say so: nbclient imports it too.
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")


class Live:
    """Renews its display in a notebook and prints its line elsewhere, at most every `every_s` seconds.

    A picture is drawn anew less often than its line, so that it takes about SHARE of the time. What it shows
    goes on when the display fails: hours of training are worth more than a picture.
    """

    def __init__(self, every_s: float = 5.0) -> None:
        self.every_s = every_s
        self._shown_at = float("-inf")
        self._text = ""
        self._handle: Any = None
        self._pictures = True
        self._picture: dict[str, str] = {}
        self._draw_at = float("-inf")

    def show(self, text: str, draw: Callable[[], bytes] | None = None, last: bool = False) -> None:
        """Show `text` if the last one is old enough; `last` shows it in any case.

        In a notebook the PNG that `draw` gives stands above it; elsewhere `draw` is not called.
        """
        now = time.monotonic()
        if text == self._text or (not last and now - self._shown_at < self.every_s):
            return
        self._shown_at, self._text = now, text
        with contextlib.suppress(Exception):  # a closed terminal, a browser that is gone
            if in_notebook():
                self._display({"text/plain": text} | self._newest_picture(draw, last))
            else:
                print(text, flush=True)

    def _display(self, content: dict[str, str]) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def _newest_picture(self, draw: Callable[[], bytes] | None, last: bool) -> dict[str, str]:
        """The picture as a notebook takes it; the first that fails is the last that is tried."""
        began = time.monotonic()
        if draw is None or not self._pictures or (not last and began < self._draw_at):
            return self._picture
        try:
            self._picture = {"image/png": base64.b64encode(draw()).decode("ascii")}
        except Exception as error:
            self._pictures, self._picture = False, {}
            print(f"The live picture cannot be drawn ({error!r}); its line goes on.")
        ended = time.monotonic()
        self._draw_at = ended + min((ended - began) / SHARE, LONGEST_S)
        return self._picture

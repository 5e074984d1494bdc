"""What the runner shows while notebooks run: a live line on a terminal, some lines in a log."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.text import Text

MARK = "step "  # how a line of progress begins
# what a user has to know before hours are over: the plan's time, whether it fits, where it goes on, warnings
NOTES = re.compile(
    r"(time|finished|fits|to publish) {2}|Going on |Accepted |checkpoint-|session_hours |Slow: |The ledger "
)


@dataclass
class Progress:
    """The stage, its cell, its time and the newest line that begins with "step "; above it the notes."""

    console: Console
    every_s: float = 10.0
    name: str = ""
    cells: int = 0
    number: int = 0
    text: str = ""
    notes: set[str] = field(default_factory=set)
    _started: float = field(default=0.0, init=False)
    _printed: float = field(default=0.0, init=False)

    @contextmanager
    def stage(self, name: str, cells: int) -> Iterator[None]:
        """Show one notebook of `cells` code cells from its start to its end."""
        self.name, self.cells, self.number, self.text, self.notes = name, cells, 0, "", set()
        self._started = time.monotonic()
        self._printed = float("-inf")
        if self.console.is_terminal:
            with Live(console=self.console, get_renderable=self._line, transient=True):
                yield
        else:
            self._print(f"{name}: started, {cells} cells")
            yield
        self._print("  ".join(filter(None, (f"{name}: done in {self._elapsed()}", self.text))))

    def cell(self, number: int) -> None:
        """A cell begins."""
        self.number = number

    def say(self, text: str) -> None:
        """Take what a cell put out; only its newest line of progress and its notes are shown."""
        said = text.replace("\r", "\n").splitlines()
        for note in filter(NOTES.match, said):
            if note not in self.notes:
                self.notes.add(note)
                self._print(note)
        lines = [line for line in said if line.startswith(MARK)]
        if not lines or lines[-1] == self.text:
            return
        self.text = lines[-1].rstrip()
        now = time.monotonic()
        if not self.console.is_terminal and now - self._printed >= self.every_s:
            self._printed = now
            self._print(str(self._line()))

    def _line(self) -> Text:
        where = f"{self.name}: cell {self.number}/{self.cells}, {self._elapsed()}"
        return Text("  ".join(filter(None, (where, self.text))), overflow="ellipsis", no_wrap=True)

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        return f"{minutes}:{seconds:02}"

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

"""What each of several processes prints, and why the first one that failed did."""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from finelab.errors import LabError

FOLDER = "logs"  # in the run's
FAILURE = "failure.txt"


class Tee(io.TextIOBase):
    """Text that goes to several streams."""

    def __init__(self, *streams: TextIO) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        """Write and flush, so that a killed rank's log is complete."""
        for stream in self.streams:
            stream.write(text)
            stream.flush()
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


@contextlib.contextmanager
def logged(folder: Path, rank: int) -> Iterator[None]:
    """What this rank prints goes to `rank-N.log`, and what rank 0 prints to the terminal too."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank-{rank}.log").open("a", encoding="utf-8") as log:
        shown = rank == 0
        out = Tee(log, sys.stdout) if shown else Tee(log)
        err = Tee(log, sys.stderr) if shown else Tee(log)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield


def report(error: BaseException, folder: Path, rank: int) -> None:
    """Say why this rank ends: in its log, and for the first rank that fails on the terminal as well.

    The other ranks only fail because that one is gone, or for the same reason. `failure.txt`, which only one
    can make, says which was first; the launcher shows the same sentence in its own report.
    """
    from torch.distributed.elastic.multiprocessing.errors.handlers import get_error_handler

    text = f"finelab: rank {rank}: {words(error)}\n"
    with (folder / f"rank-{rank}.log").open("a", encoding="utf-8") as log:
        log.write(text)
    with contextlib.suppress(FileExistsError), (folder / FAILURE).open("x", encoding="utf-8") as file:
        file.write(text)
        get_error_handler().record_exception(error)
        print(text, end="", file=sys.stderr, flush=True)


def words(error: BaseException) -> str:
    """A LabError's sentence, one for a rank that lost another, and the traceback of anything else."""
    if isinstance(error, LabError):
        return str(error)
    if lost(error):
        return (
            "another process of this training ended without a word (killed, or out of memory?); the "
            "checkpoints are kept: start the same command again to go on."
        )
    return "".join(traceback.format_exception(error)).rstrip()


def lost(error: BaseException) -> bool:
    """Whether an error says that another rank does not answer any more."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))

"""Ask something that may fail in any way."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
NONE: tuple[str, ...] = ()


def attempt(probe: Callable[[], T], default: T) -> T:
    """What `probe` answers, or `default` when it fails."""
    try:
        return probe()
    except Exception:  # of another system, a broken package, a device that is gone
        return default


def said(command: Sequence[str], timeout_s: float = 10) -> tuple[int, str]:
    """A program's exit code and what it printed; -1 and why, when it could not be run to its end."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, str(error)
    return done.returncode, done.stdout.strip()

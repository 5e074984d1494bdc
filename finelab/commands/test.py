"""Check the lab: its tests, its notebooks and its own rules, on all cores; arguments go to pytest."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PARALLEL = (
    "-n",
    "auto",
    "--dist",
    "loadfile",
    "--no-loadscope-reorder",
)  # a file's tests share what they made


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything is pytest's."""
    parser.usage = "lab.py test [pytest arguments]"
    parser.set_defaults(rest=[])


def main(args: argparse.Namespace) -> int:
    """Run pytest in the repository and return its exit code."""
    import pytest

    os.chdir(ROOT)
    # Two processes of two threads each on two cores wait for each other by spinning: 5 to 10 times the time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return int(pytest.main([*PARALLEL, *args.rest]))

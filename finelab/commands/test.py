"""Check the lab: its tests, its notebooks and its own rules; arguments go to pytest."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything is pytest's."""
    parser.usage = "lab.py test [pytest arguments]"
    parser.set_defaults(rest=[])


def main(args: argparse.Namespace) -> int:
    """Run pytest in the repository and return its exit code."""
    import pytest

    os.chdir(ROOT)
    return int(pytest.main(args.rest))

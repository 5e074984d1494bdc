"""What a machine may lack: its tests are skipped with the reason and the command that adds it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
APT = " ".join(re.search(r"apt-get install [^>]+", CI)[0].replace("\\", "").split())


def lacking(*packages):
    """Why a test is skipped where the first of them, which needs the others, is not installed."""
    pins = " ".join(re.search(rf"\b{name}==\S+", CI)[0] for name in packages)
    return f"{packages[0]} is not installed: `bash .ci/run` adds it, or: pip install --no-deps {pins}"


def lacking_extra(name):
    """Why a test is skipped where an extra beside the lock is not installed."""
    file = re.search(rf"environment/extras/{name}.txt", CI)[0]
    return f"{file} is not installed: `bash .ci/run` adds it, or: pip install --no-deps -r {file}"


def lacking_program(name):
    """Why a test is skipped where a program of Debian's is not installed."""
    return f"{name} is not installed: `bash .ci/run` adds it as root on Debian, or: {APT}"


def playwright():
    """The driver of a browser; without it the test, or the module, is skipped."""
    return pytest.importorskip("playwright.sync_api", reason=lacking("playwright", "pyee", "greenlet"))

"""The rules of the house that a tool can check."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STRIP = ["--keep-id", "--extra-keys", "metadata.language_info metadata.widgets"]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["importlinter.cli", "lint"],
        ["nbstripout", "--verify", *STRIP, *sorted(map(str, (ROOT / "notebooks").glob("*.ipynb")))],
    ],
    ids=lambda command: command[0],
)
def test_the_tree_passes(command):
    program = [sys.executable, "-m", *command]
    if command[0] == "importlinter.cli":
        program = [str(Path(sys.executable).with_name("lint-imports"))]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

"""What holds for every Modal script: it imports anywhere, and Modal has deprecated nothing it uses."""

import ast
import os
import subprocess
import sys

import pytest

from tests.deployment.conftest import DEPLOYMENT

SCRIPTS = sorted(DEPLOYMENT.glob("modal_*.py"))


def imported(path):
    """The packages that a script imports when it is loaded."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_container_has_what_a_script_imports(path):
    assert set(imported(path)) - set(sys.stdlib_module_names) == {"modal"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_it_loads_without_a_warning_a_token_or_a_network(path, tmp_path):
    code = f"import {path.stem}"
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MODAL_")}
    environment |= {"PYTHONPATH": str(DEPLOYMENT), "MODAL_CONFIG_PATH": str(tmp_path / "none"), "PATH": ""}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

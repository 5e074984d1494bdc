"""The GitHub workflow: it can be read, and every command in it exists."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import lab

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path):
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_command_exists(path):
    runs = [line for step in steps(path) for line in step.get("run", "").splitlines()]
    assert runs
    for program, script, *arguments in map(shlex.split, runs):
        assert program in {"python", "bash"}
        assert (ROOT / script).is_file(), script
        if script == "lab.py":
            assert arguments[0] in lab.COMMANDS, arguments


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_nothing_may_be_written(path):
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", each) for each in used), used
    assert read(path)["permissions"] == {"contents": "read"}


def test_every_system_and_the_oldest_and_newest_python_are_tested():
    matrix = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["fast"]["strategy"]["matrix"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "windows", "macos"}
    assert matrix["python"] == [f"{major}.{minor}" for major, minor in (lab.OLDEST, lab.NEWEST)]


def test_pips_cache_hangs_on_a_lock():
    for path in WORKFLOWS:
        for step in steps(path):
            if "setup-python" in step.get("uses", ""):
                assert (ROOT / step["with"]["cache-dependency-path"]).is_file()

"""CHANGELOG.md, CONTRIBUTING.md, ARCHITECTURE.md and environment/README.md: what they name exists."""

import re
from pathlib import Path

import pytest

import finelab
import lab

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("CHANGELOG.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "environment/README.md")
MADE = {"notebooks/token.txt"}  # a reader's own, never in git


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_exist(name):
    for command in re.findall(r"python lab\.py (\w+)", text_of(name)):
        assert command in lab.COMMANDS, command


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_and_links_resolve(name):
    text = text_of(name).replace("\\", "/")
    paths = set(re.findall(r"\]\((?!https://)([^)#]+)\)", text))
    paths |= set(re.findall(r"\w[\w.-]*/[\w./-]+\.(?:py|toml|txt|sh|ps1)\b", text)) - MADE
    assert paths
    for path in paths:
        assert any((base / path).exists() for base in (ROOT, (ROOT / name).parent)), path


def test_the_newest_release_in_the_changelog_is_this_version():
    releases = re.findall(r"^## \[(\d[^\]]*)\] - (\d{4}-\d\d-\d\d)$", text_of("CHANGELOG.md"), re.MULTILINE)
    assert releases[0][0] == finelab.__version__
    assert [date for _, date in releases] == sorted((date for _, date in releases), reverse=True)


def test_every_stage_is_in_the_architecture():
    stages = {path.stem.partition("_")[2] for path in (ROOT / "notebooks").glob("0*.ipynb")}
    told = set(re.findall(r"^\| \d `(\w+)`", text_of("ARCHITECTURE.md"), re.MULTILINE))
    assert told == stages


def test_the_architectures_arrows_are_the_contracts():
    """Its picture names the layers in the order in which pyproject.toml has them, later ones first."""
    contract = text_of("pyproject.toml").split("layers = [")[1].split("]")[0]
    layers = [
        name for name in re.findall(r'"finelab\.(\w+)"', contract) if name not in {"__main__", "doctor"}
    ]
    picture = text_of("ARCHITECTURE.md").split("```text\n")[1].split("```")[0]
    assert re.findall(r"\w+", picture.split("▼", 1)[1]) == layers

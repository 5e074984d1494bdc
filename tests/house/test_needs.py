"""What a machine lacks is skipped with the command that adds it."""

import re
import sys

import pytest

from tests import needs
from tests.browser import sound


def test_a_package_is_skipped_with_the_command_that_adds_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(pytest.skip.Exception) as skipped:
        needs.playwright()
    first, _, command = str(skipped.value).partition(" or: ")
    assert first == "playwright is not installed: `bash .ci/run` adds it,"
    packages = command.removeprefix("pip install --no-deps ").split()
    assert [each.partition("==")[0] for each in packages] == ["playwright", "pyee", "greenlet"]
    assert set(packages) <= set(needs.CI.split())


def test_the_command_for_programs_brings_all_that_are_asked_for():
    words = needs.lacking_program("parec").partition(" or: ")[2].split()
    assert words[:2] == ["apt-get", "install"]
    assert {"chromium", "pulseaudio-utils", *sound.PROGRAMS} - {"parec"} <= set(words)


def test_no_package_is_skipped_without_a_reason():
    bare = re.compile(r'importorskip\("[\w.]+"\)')
    tests = (needs.ROOT / "tests").rglob("*.py")
    assert [path.name for path in tests if bare.search(path.read_text(encoding="utf-8"))] == []

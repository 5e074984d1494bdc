"""The vendored libraries are the released ones, and the page's own files are all it is made of."""

import hashlib
import json
import re

import pytest

from tests.browser.scripted import PAGE

VENDOR = PAGE / "vendor"
LISTED = json.loads((VENDOR / "VENDOR.json").read_text("utf-8"))


@pytest.mark.parametrize("entry", LISTED, ids=lambda entry: entry["package"])
def test_a_vendored_file_is_the_one_that_was_reviewed(entry):
    assert hashlib.sha256((VENDOR / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert (VENDOR / entry["licence_file"]).stat().st_size > 500
    assert re.fullmatch(r"\d+\.\d+\.\d+", entry["version"])


def test_nothing_else_is_vendored():
    known = {name for entry in LISTED for name in (entry["file"], entry["licence_file"])}
    assert {path.name for path in VENDOR.iterdir()} == known | {"VENDOR.json"}


def test_every_module_is_imported_and_every_import_is_there():
    imported = {"main.js", "theme.js"}
    for path in PAGE.glob("*.js"):
        for name in re.findall(r"""(?:from |import\()"(\./[^"]+)\"""", path.read_text("utf-8")):
            assert (PAGE / name).is_file(), (path.name, name)
            imported.add(name.removeprefix("./"))
    assert {path.name for path in PAGE.glob("*.js")} <= imported


def test_the_folder_is_a_static_space():
    front = (PAGE / "README.md").read_text("utf-8").split("---")[1]
    assert {"sdk: static", "app_file: index.html", "license: mit"} <= set(front.split("\n"))

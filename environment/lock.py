"""Make the locks and the table of packages from packages.toml, and hold them against the wheels' metadata.

    python environment/lock.py           writes the locks and the table in README.md
    python environment/lock.py --check   says where they differ, and which requirement is not met; exit code 1
    python environment/lock.py --fetch   asks the package index about the wheels that wheels.json lacks

The first two need no network. The lab's environment has what this needs: pip and packaging.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
WHEELS = HERE / "wheels.json"
# How each system answers a marker.
SYSTEMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "windows": {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64"},
    "macos": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
}
# What pip takes a wheel for; glibc 2.28 is that of Debian 10, and torch's own wheels ask for it.
TAGS = {
    "linux": [f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)] + ["manylinux2014_x86_64"],
    "windows": ["win_amd64"],
    "macos": ["macosx_14_0_arm64"],
}
# A line of a lock gets the first of these that holds on just the targets that need its package.
MARKERS = (
    'sys_platform == "win32"',
    'sys_platform != "win32"',
    'sys_platform == "darwin"',
    'sys_platform != "darwin"',
    'python_version < "3.12"',
)
TABLE = re.compile(r"(?<=\| Package \| Version \| Why \|\n\|---\|---\|---\|\n)(\| `.*\n)+")


@dataclass(frozen=True)
class Target:
    """A system and a Python that a lock serves."""

    system: str
    python: str

    def __str__(self) -> str:
        return f"{self.system} {self.python}"


@cache  # the same few thousand markers are asked about again and again
def holds(target: Target, marker: str, extra: str = "") -> bool:
    """Whether what stands under a marker counts on a target, asked for with an extra or without."""
    here = {
        **SYSTEMS[target.system],
        "os_name": "nt" if target.system == "windows" else "posix",
        "python_version": target.python,
        "python_full_version": f"{target.python}.9",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": extra,
    }
    return not marker or Marker(marker).evaluate(here)


requirement = cache(Requirement)  # each text comes again for every lock and target


@dataclass(frozen=True)
class Packages:
    """packages.toml (what the lab wants, every version, what is left unmet) and wheels.json beside it."""

    tables: dict[str, Any]
    wheels: dict[str, dict[str, list[str]]]  # {pin: the targets it was found for, what it requires}

    @classmethod
    def read(cls) -> Packages:
        """The two files in this folder."""
        wheels = json.loads(WHEELS.read_text(encoding="utf-8")) if WHEELS.exists() else {}
        return cls(tomllib.loads((HERE / "packages.toml").read_text(encoding="utf-8")), wheels)

    def targets(self, lock: str) -> list[Target]:
        """The systems and Pythons that a lock serves."""
        systems = self.tables["locks"][lock]["systems"]
        return [Target(system, python) for system in systems for python in self.tables["pythons"]]

    def cases(self) -> Iterator[tuple[str, Target]]:
        """Every lock on every target."""
        return ((lock, target) for lock in self.tables["locks"] for target in self.targets(lock))

    def version(self, lock: str, name: str) -> str | None:
        """The version of a package in a lock."""
        version = self.tables["versions"].get(name)
        return version.get(lock) if isinstance(version, dict) else version

    def pin(self, lock: str, name: str) -> str:
        """What wheels.json calls it; a build that is not on the index (+cu128) goes by the index's own."""
        return f"{name}=={self.version(lock, name)}".partition("+")[0]

    @cached_property
    def excused(self) -> dict[tuple[str, str], set[str]]:
        """{(lock, package): what it requires and is left unmet on purpose}."""
        found: dict[tuple[str, str], set[str]] = {}
        for each in self.tables["unmet"]:
            for case in itertools.product(each.get("locks", self.tables["locks"]), each["by"]):
                found.setdefault(case, set()).update(each["needs"])
        return found

    def requires(self, lock: str, name: str, target: Target, extra: str = "") -> Iterator[Requirement]:
        """What a lock's package requires on a target, but for what is left unmet on purpose."""
        excused = self.excused.get((lock, name), set())
        for text in self.wheels.get(self.pin(lock, name), {}).get("requires", []):
            if holds(target, text.partition(";")[2].strip(), extra):
                need = requirement(text)
                if canonicalize_name(need.name) not in excused:
                    yield need

    def needed(self, lock: str, target: Target, extras: Iterable[str] = ()) -> dict[str, list[Need]]:
        """{package: who requires what of it} for all that a lock needs on a target."""
        groups = [*self.tables["locks"][lock]["wants"], *extras]
        todo = [Need("the lab", requirement(name)) for each in groups for name in self.tables["wanted"][each]]
        found: dict[str, list[Need]] = {}
        seen: set[tuple[str, str]] = set()
        while todo:
            need = todo.pop()
            name = canonicalize_name(need.what.name)
            found.setdefault(name, []).append(need)
            for part in {(name, extra) for extra in ("", *need.what.extras)} - seen:
                seen.add(part)
                todo += [Need(name, each) for each in self.requires(lock, name, target, part[1])]
        return found


@dataclass(frozen=True)
class Need:
    """A requirement, and the package that has it."""

    who: str
    what: Requirement

    def admits(self, version: str) -> bool:
        """Whether a version meets it; a lock may pin a pre-release."""
        return self.what.specifier.contains(version, prereleases=True)

    def __str__(self) -> str:
        return f"{self.who} requires {self.what}"


# What is written


def lock_text(packages: Packages, lock: str) -> str:
    """A lock: its heading, then one pin a line; a marker where only some of its targets need the package."""
    needed = {target: set(packages.needed(lock, target)) for target in packages.targets(lock)}
    return _text(packages.tables["locks"][lock], _lines(packages, lock, needed))


def extra_text(packages: Packages, extra: str) -> str:
    """An extra: all that it adds to any of the locks."""
    lines: set[str] = set()
    for lock in packages.tables["locks"]:
        added = {
            target: packages.needed(lock, target, (extra,)).keys() - packages.needed(lock, target).keys()
            for target in packages.targets(lock)
        }
        lines.update(_lines(packages, lock, added))
    return _text(packages.tables["extras"][extra], sorted(lines))


def _lines(packages: Packages, lock: str, needed: dict[Target, set[str]]) -> Iterator[str]:
    for name in sorted(set().union(*needed.values())):
        on = [target for target in needed if name in needed[target]]
        yield f"{name}=={packages.version(lock, name)}{_marker(on, list(needed))}"


def _marker(on: list[Target], targets: list[Target]) -> str:
    if on == targets:
        return ""
    for marker in MARKERS:
        if on == [target for target in targets if holds(target, marker)]:
            return f" ; {marker}"
    raise SystemExit(f"environment/lock.py: no marker says {', '.join(map(str, on))}; add one to MARKERS.")


def _text(table: dict[str, str], lines: Iterable[str]) -> str:
    heading = (f"# {line}" for line in table["heading"].splitlines())
    return "\n".join([*heading, *lines]) + "\n"


def readme_rows(packages: Packages) -> str:
    """The rows of README.md's table: package, versions and why."""
    rows = []
    for group in packages.tables["wanted"].values():
        for name, why in group.items():
            version = packages.tables["versions"][name]
            if isinstance(version, dict):
                version = f"{version['cpu']} (cpu), {version['cuda']} (cuda)"
            rows.append(f"| `{name}` | {version} | {why} |\n")
    return "".join(rows)


def outputs(packages: Packages) -> Iterator[tuple[Path, str]]:
    """Every file that packages.toml decides, and its text."""
    for lock in packages.tables["locks"]:
        yield HERE / f"{lock}.txt", lock_text(packages, lock)
    for extra in packages.tables["extras"]:
        yield HERE / "extras" / f"{extra}.txt", extra_text(packages, extra)
    readme = HERE / "README.md"
    rows = readme_rows(packages)
    yield readme, TABLE.sub(lambda _: rows, readme.read_text(encoding="utf-8"))


# What is checked


def drift(packages: Packages) -> list[str]:
    """The files that are not what packages.toml gives."""
    return [
        f"environment/{path.relative_to(HERE).as_posix()} is not what packages.toml gives: "
        "run environment/lock.py"
        for path, text in outputs(packages)
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def problems(packages: Packages) -> list[str]:
    """The wheels that are not known, and the requirements that the versions do not meet."""
    found = []
    for lock, target in packages.cases():
        found += [
            f"{lock}, {target}: no wheel of {pin} is known (--fetch asks)"
            for pin in sorted(unknown(packages, lock, target))
        ]
        for name, needs in packages.needed(lock, target, packages.tables["extras"]).items():
            version = packages.version(lock, name)
            found += [
                f"{lock}, {target}: {need}; packages.toml has {version or 'none'}"
                for need in needs
                if not version or not need.admits(version)
            ]
    return found


def unknown(packages: Packages, lock: str, target: Target) -> set[str]:
    """The pins that a lock and the extras need on a target and that wheels.json does not have for it."""
    names = packages.needed(lock, target, packages.tables["extras"])
    pins = {packages.pin(lock, name) for name in names if packages.version(lock, name)}
    return {pin for pin in pins if str(target) not in packages.wheels.get(pin, {}).get("on", [])}


# What the index has


def fetch(packages: Packages) -> None:
    """Ask pip about each wheel that is needed and not known, and keep what it says; nothing is installed."""
    for lock, target in packages.cases():
        asked: set[str] = set()
        while new := unknown(packages, lock, target) - asked:
            asked |= new
            found = find_wheels(sorted(new), target)  # what these require may not be known either
            print(f"{lock}, {target}: {len(found)} new wheels", flush=True)
            for pin, requires in found.items():
                wheel = packages.wheels.setdefault(pin, {"on": [], "requires": []})
                wheel["on"] = sorted({*wheel["on"], str(target)})
                # a wheel for another system may say more: torch's do
                wheel["requires"] = list(dict.fromkeys(wheel["requires"] + requires))
            _keep(packages)


def _keep(packages: Packages) -> None:
    """Write wheels.json: one wheel a line, so that a new version is one changed line, and no old versions."""
    used = {packages.pin(lock, name) for lock, _ in packages.cases() for name in packages.tables["versions"]}
    lines = [
        f"{json.dumps(pin)}: {json.dumps(packages.wheels[pin])}"
        for pin in sorted(packages.wheels.keys() & used)
    ]
    WHEELS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8", newline="\n")


def find_wheels(pins: list[str], target: Target) -> dict[str, list[str]]:
    """{pin: its wheel's requirements} for the pins that have a wheel; those without are printed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        tags = [word for tag in TAGS[target.system] for word in ("--platform", tag)]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
        command += ["--ignore-installed", "--only-binary=:all:", *tags, "--target", folder]
        command += ["--python-version", target.python, "--report", str(report), *pins]
        # wheels that happen to lie on this machine are not the index's
        environment = {**os.environ, "PIP_FIND_LINKS": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
        if done.returncode == 0:
            installs = json.loads(report.read_text(encoding="utf-8"))["install"]
            return dict(_wheel(each["metadata"]) for each in installs)
    lacking = re.search(r"No matching distribution found for (\S+)", done.stderr)
    if lacking is None or lacking[1] not in pins:
        raise SystemExit(f"environment/lock.py: pip failed for {target}: {done.stderr.strip()[-300:]}")
    print(f"{target}: no wheel of {lacking[1]}", flush=True)
    others = [pin for pin in pins if pin != lacking[1]]
    return find_wheels(others, target) if others else {}


def _wheel(metadata: dict[str, Any]) -> tuple[str, list[str]]:
    version = metadata["version"].partition("+")[0]
    requires = [str(Requirement(text)) for text in metadata.get("requires_dist", [])]
    return f"{canonicalize_name(metadata['name'])}=={version}", requires


def main() -> int:
    """Write, check or fetch; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, say what is wrong")
    parser.add_argument("--fetch", action="store_true", help="ask the index about wheels that are not known")
    args = parser.parse_args()
    packages = Packages.read()
    if args.fetch:
        fetch(packages)
    found = problems(packages)
    if not found and not args.check:
        for path, text in outputs(packages):
            path.write_text(text, encoding="utf-8", newline="\n")
    found = found or drift(packages)
    print("\n".join(found) or "the locks are what packages.toml gives, and every requirement is met")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

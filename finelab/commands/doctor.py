"""Say what this machine is, what will be used on it and why, and what is out of step."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shutil
import sys
from pathlib import Path

from finelab import machine, recipe
from finelab.commands.run import existing_runs
from finelab.errors import LabError
from finelab.run import RUNS, default_recipe

ENVIRONMENT = Path(__file__).parent.parent.parent / "environment"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`lab.py doctor` takes none."""


def main(args: argparse.Namespace) -> int:
    """Print the report."""
    name = default_recipe()
    lock = installed_lock()
    rows = {
        "system": f"{platform.platform()}, Python {platform.python_version()} in {sys.prefix}",
        "lock": f"environment/{lock}.txt" if lock else "not installed by lab.py",
        "packages": ", ".join(f"{key} {value}" for key, value in machine.versions().items()),
        "out of step": _out_of_step(lock),
        "card": _card(),
        "memory": _memory(),
        "disk": f"{machine.free_bytes(RUNS) / 1e9:.1f} GB free for {RUNS}",
        "Hub token": _token(),
        "recipes": ", ".join(recipe.preset_names()),
        "runs": ", ".join(existing_runs()) or "none yet",
    }
    for label, text in rows.items():
        print(f"{label:12}  {text}")
    print(f"\nWithout --recipe this machine uses {name}, with:")
    print(machine.profile(recipe.load_preset(name)).describe())
    return 0


def installed_lock() -> str | None:
    """The lock that lab.py made this environment from."""
    try:
        stamp = json.loads((Path(sys.prefix) / "finelab-lock.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(stamp["lock"])


def out_of_step(pins: str) -> list[str]:
    """The packages of a lock that are missing here, or here in another version."""
    from packaging.requirements import Requirement

    found = []
    for line in filter(None, (line.partition("#")[0].strip() for line in pins.splitlines())):
        if line.startswith("-"):
            continue
        pin = Requirement(line)
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{pin.name} is missing")
            continue
        if not pin.specifier.contains(version, prereleases=True):
            found.append(f"{pin.name} {version} instead of {pin.specifier}")
    return found


def _out_of_step(lock: str | None) -> str:
    if lock is None:
        return "unknown"
    found = out_of_step((ENVIRONMENT / f"{lock}.txt").read_text(encoding="utf-8"))
    return "; ".join(found) or "nothing, all packages are as locked"


def _card() -> str:
    hardware = machine.read_hardware()
    if hardware.device == "cuda":
        return f"{hardware.name}, {hardware.gpu_memory_bytes / 2**30:.1f} GiB"
    if shutil.which("nvidia-smi"):
        lock = "windows" if sys.platform == "win32" else "cuda"
        return (
            "an NVIDIA card that this torch cannot use; "
            f"with FINELAB_LOCK={lock} set, lab.py installs one that can"
        )
    return "no NVIDIA card"


def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    return f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"


def _token() -> str:
    from finelab.publish import read_token  # it needs packages

    try:
        return "found" if read_token() else "none: a push goes to a folder"
    except LabError as error:
        return str(error)

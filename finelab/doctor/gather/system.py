"""The operating system, its Python, and the folder the lab lies in."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finelab.doctor.facts import Version
from finelab.doctor.gather.attempt import NONE, attempt, said
from finelab.machine import Profile

ROOT = Path(__file__).parents[3]
# After so many hours a session can end: free machines of Paperspace, and the longest of Colab and Kaggle.
HOURS = {"Paperspace": 6.0, "Colab": 12.0, "Kaggle": 12.0}


def facts(profile: Profile | None) -> dict[str, Any]:
    """What `Facts` holds of the system."""
    host = attempt(rented_host, "")
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "python": sys.version_info[:2],
        "pythons": attempt(served_pythons, (sys.version_info[:2], sys.version_info[:2])),
        "program": sys.executable,
        "root": str(ROOT),
        "environment": str(environment()),
        "translated": attempt(is_translated, False),
        "long_paths": attempt(takes_long_paths, True),
        "symlinks": attempt(can_link, True),
        "workers": attempt(lambda: workers(profile), 1),
        "openmp": attempt(openmp_libraries, NONE),
        "on_battery": attempt(is_on_battery, False),
        "clock": time.time(),
        "published": attempt(published, 0.0),
        "host": host,
        "host_hours": HOURS.get(host, 0.0),
    }


def environment() -> Path:
    """The folder of the lab's own environment, as lab.py has it."""
    return Path(os.environ.get("FINELAB_VENV") or ROOT / ".venv").resolve()


def served_pythons() -> tuple[Version, Version]:
    """The oldest and the newest Python that lab.py takes."""
    import lab  # it lies beside finelab/

    return lab.OLDEST, lab.NEWEST


def is_translated() -> bool:
    """Whether Rosetta runs this Python."""
    return sys.platform == "darwin" and said(["sysctl", "-n", "sysctl.proc_translated"]) == (0, "1")


def takes_long_paths() -> bool:
    """Windows' setting for paths of more than 260 characters; other systems need none."""
    if sys.platform != "win32":
        return True
    import winreg

    name = r"SYSTEM\CurrentControlSet\Control\FileSystem"
    with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, name) as key:
        return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])


def can_link() -> bool:
    """Whether this user may make symbolic links."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            Path(folder, "link").symlink_to(Path(folder, "file"))
        except OSError:
            return False
    return True


def workers(profile: Profile | None) -> int:
    """The processes that tokenise rows: the lab's, or those that Unsloth is told to take."""
    ours = profile.dataset_num_proc if profile else 1
    return max(int(ours), int(os.environ.get("UNSLOTH_DATASET_NUM_PROC") or 1))


def openmp_libraries() -> tuple[str, ...]:
    """Intel's OpenMP in the environment's torch, and in a conda environment that is active beside it."""
    name = {"win32": "libiomp5md.dll", "darwin": "libomp.dylib"}.get(sys.platform, "libiomp5.so")
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent / "lib"] if spec and spec.origin else []
    if conda := os.environ.get("CONDA_PREFIX"):
        folders += [Path(conda, "Library", "bin"), Path(conda, "lib")]
    return tuple(str(folder / name) for folder in folders if (folder / name).exists())


def is_on_battery() -> bool:
    """Whether a laptop's plug is out."""
    import psutil

    battery = psutil.sensors_battery()
    return battery is not None and battery.power_plugged is False


def published() -> float:
    """When the installed certifi came out, whose version is a date: that moment has passed for certain."""
    year, month, day = map(int, importlib.metadata.version("certifi").split(".")[:3])
    return datetime(year, month, day, tzinfo=UTC).timestamp()


def rented_host() -> str:
    """One of HOURS, or nothing."""
    import lab

    if lab.is_paperspace():
        return "Paperspace"
    marks = {"COLAB_RELEASE_TAG": "Colab", "KAGGLE_KERNEL_RUN_TYPE": "Kaggle"}
    return next((host for mark, host in marks.items() if mark in os.environ), "")

"""NVIDIA cards, as their driver and the bus tell them."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelab.doctor.facts import Card, Version
from finelab.doctor.gather.attempt import attempt, said

FIELDS = ("driver_version", "uuid", "memory.total", "memory.used", "name", "compute_cap")
NVIDIA = "0x10de"  # as the bus names the maker; 0x03 is a display or a 3D controller
DISPLAY = "0x03"


@dataclass(frozen=True)
class Driver:
    """What nvidia-smi told: the driver's version and its cards, or an error."""

    version: str | None = None
    cards: tuple[Card, ...] = ()
    error: str = ""


def facts(driver: Driver, first: str) -> dict[str, Any]:
    """What `Facts` holds of the cards; `first` is the uuid of the one that torch takes."""
    # nvidia-smi lists them by their place on the bus, CUDA the fastest first or as CUDA_VISIBLE_DEVICES says
    cards = sorted(driver.cards, key=lambda card: card.uuid != first)
    return {
        "nvidia_on_bus": attempt(is_on_bus, False),
        "nvidia": driver.version is not None or attempt(has_driver, False),
        "driver": driver.version,
        "driver_error": driver.error,
        "cards": tuple(cards),
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "container": Path("/.dockerenv").exists() or Path("/run/.containerenv").exists(),
        "lacking_to_compile": lacking_to_compile(),
    }


def ask_driver() -> Driver:
    """Ask nvidia-smi; a driver before 510 does not know `compute_cap` and is asked again without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Driver()
    for fields in (FIELDS, FIELDS[:-1]):
        code, text = said([tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"])
        if code == 0:
            return read_driver(text)
    return Driver(error=" ".join(text.split())[:200])


def read_driver(text: str) -> Driver:
    """The driver and its cards from nvidia-smi's lines of FIELDS, the last of which may be left out."""
    rows = [[value.strip() for value in line.split(",")] for line in text.splitlines()]
    rows = [row for row in rows if len(row) >= len(FIELDS) - 1]
    if not rows:
        return Driver(error=text)
    version = rows[0][0] if re.match(r"\d+\.", rows[0][0]) else None
    return Driver(version, tuple(_card(row) for row in rows))


def _card(row: list[str]) -> Card:
    """A card from its line; what the driver cannot tell stands there as [N/A] or [Not Supported]."""
    _, uuid, total, used, name, *more = row
    return Card(name, uuid, _capability(more), _mebibytes(total), _mebibytes(used))


def _capability(values: list[str]) -> Version | None:
    found = re.fullmatch(r"(\d+)\.(\d+)", values[0]) if values else None
    return (int(found[1]), int(found[2])) if found else None


def _mebibytes(text: str) -> int | None:
    return int(text) * 2**20 if text.isdigit() else None


def lacking_to_compile() -> tuple[str, ...]:
    """Which of a C compiler and Python's headers are not there, by the names that apt knows them by."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_paths()["include"], "Python.h").exists()
    needed = {"build-essential": compiler, "python{}.{}-dev".format(*sys.version_info): headers}
    return tuple(name for name, there in needed.items() if not there)


def has_driver() -> bool:
    """Whether a driver is installed, also one that does not answer."""
    import lab

    return lab.has_nvidia()


def is_on_bus() -> bool:
    """Whether a card of NVIDIA is plugged in, as Linux lists it."""
    return any(
        vendor.read_text().strip() == NVIDIA and vendor.with_name("class").read_text().startswith(DISPLAY)
        for vendor in Path("/sys/bus/pci/devices").glob("*/vendor")
    )

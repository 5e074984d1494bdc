"""The environment: its lock, its packages, torch, and the kernels of the notebooks."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from finelab.doctor.gather.attempt import NONE, attempt
from finelab.doctor.gather.system import ROOT
from finelab.doctor.packages import STAMP
from finelab.machine import PACKAGES


def facts() -> dict[str, Any]:
    """What `Facts` holds of the environment, torch apart."""
    lock = installed_lock()
    return {
        "lock": lock,
        "out_of_step": attempt(lambda: steps_out(lock), NONE),
        "foreign": attempt(foreign_packages, NONE),
        "kernel": attempt(foreign_kernel, ""),
        "kernel_registered": attempt(is_registered, True),
    }


def installed_lock() -> str | None:
    """The lock that lab.py made this environment from."""
    try:
        stamp = json.loads((Path(sys.prefix) / STAMP).read_text(encoding="utf-8"))
        return str(stamp["lock"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def steps_out(lock: str | None) -> tuple[str, ...]:
    """`out_of_step` for a lock of environment/."""
    if lock is None:
        return ()
    return tuple(out_of_step((ROOT / "environment" / f"{lock}.txt").read_text(encoding="utf-8")))


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


def foreign_packages() -> tuple[str, ...]:
    """The packages that would be imported from outside this Python's own folder."""
    specs = {name: importlib.util.find_spec(name) for name in PACKAGES}
    here = Path(sys.prefix).resolve()
    return tuple(
        name
        for name, spec in specs.items()
        if spec and spec.origin and here not in Path(spec.origin).resolve().parents
    )


def foreign_kernel() -> str:
    """The program of the kernel python3, where it is neither "python", which means this one, nor its path."""
    from jupyter_client.kernelspec import KernelSpecManager

    program = str(KernelSpecManager().get_kernel_spec("python3").argv[0])
    return "" if program in ("python", "python3") or is_this_python(program) else program


def is_registered() -> bool:
    """Whether a kernel names this Python by its path, so that another Jupyter starts it too."""
    from jupyter_client.kernelspec import KernelSpecManager

    specs = KernelSpecManager().get_all_specs().values()
    return any(is_this_python(spec["spec"]["argv"][0]) for spec in specs)


def is_this_python(program: str) -> bool:
    """Whether a path is this environment's Python; its target is the same for every environment."""
    return Path(program).parent == Path(sys.executable).parent


def torch_facts() -> dict[str, Any]:
    """What `Facts` holds of torch, imported now."""
    try:
        import torch

        version, cuda = str(torch.__version__), torch.version.cuda
    except Exception as error:  # a library that does not load raises OSError, a half-installed one anything
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        return {"torch": None, "torch_error": last[0], "torch_cuda": None, "torch_sees_card": False}
    sees_card = attempt(torch.cuda.is_available, False)
    return {"torch": version, "torch_error": "", "torch_cuda": cuda, "torch_sees_card": sees_card}


def first_card() -> str:
    """What nvidia-smi calls the card that torch takes; empty where torch sees none."""

    def ask() -> str:
        import torch

        return f"GPU-{torch.cuda.get_device_properties(0).uuid}" if torch.cuda.is_available() else ""

    return attempt(ask, "")

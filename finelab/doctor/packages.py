"""Rules about the environment: what is installed, and which Python the notebooks get."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath

from finelab.doctor.facts import Facts
from finelab.doctor.finding import Finding
from finelab.doctor.shell import DOCTOR, call, remove, without_variable

SHOWN = 5  # of a list of packages
STAMP = "finelab-lock.json"  # without it lab.py installs the lock again


def no_runtime(facts: Facts) -> Finding | None:
    """torch's libraries for Windows need Microsoft's: 126 where it is missing, 1114 where it is too old."""
    if not re.search(r"WinError (126|1114)\b", facts.torch_error):
        return None
    return Finding(
        "stop",
        f"torch cannot load its libraries ({facts.torch_error})",
        "nothing can be trained; what is missing or too old is nearly always Microsoft's Visual C++ runtime",
        "winget install --id Microsoft.VCRedist.2015+.x64",
    )


def broken_torch(facts: Facts) -> Finding | None:
    """Nothing works without it."""
    if facts.torch is not None or no_runtime(facts):
        return None
    return Finding(
        "stop",
        f"torch cannot be imported ({facts.torch_error})",
        "no notebook works, and no command but this one",
        DOCTOR if facts.lock is None else remove(facts, facts.environment, DOCTOR),
    )


def bad_override(facts: Facts) -> Finding | None:
    """FINELAB_MACHINE does not say what it should."""
    if not facts.override_problem:
        return None
    return Finding(
        "stop",
        facts.override_problem,
        "no notebook gets past its first cell",
        without_variable(facts, "FINELAB_MACHINE"),
    )


def out_of_step(facts: Facts) -> Finding | None:
    """Other versions than those that were tested together."""
    if not facts.out_of_step:
        return None
    first, more = facts.out_of_step[:SHOWN], len(facts.out_of_step) - SHOWN
    return Finding(
        "warning",
        "; ".join(first) + (f"; and {more} more" if more > 0 else ""),
        "these versions were not run together; Unsloth breaks with other releases of trl and transformers",
        remove(facts, _join(facts, facts.environment, STAMP), DOCTOR),
    )


def no_lock(facts: Facts) -> Finding | None:
    """Somebody else's environment."""
    if facts.lock is not None:
        return None
    return Finding(
        "note",
        f"{facts.program} is not the lab's own environment",
        "whether its packages fit each other is not known",
        DOCTOR,
    )


def foreign_packages(facts: Facts) -> Finding | None:
    """PYTHONPATH stands before the environment's own packages."""
    if not facts.foreign:
        return None
    return Finding(
        "warning",
        f"{', '.join(facts.foreign)} would be imported from outside the environment",
        "another version than the pinned one runs",
        without_variable(facts, "PYTHONPATH"),
    )


def foreign_kernel(facts: Facts) -> Finding | None:
    """A kernel python3 found first, through JUPYTER_PATH or in the user's folder, hides the environment's."""
    if not facts.kernel:
        return None
    return Finding(
        "warning",
        f"the notebooks' kernel python3 is another Python ({facts.kernel})",
        "a notebook does not find finelab, or takes other packages",
        call(facts, facts.program, "-m jupyter kernelspec remove python3"),
    )


def unknown_kernel(facts: Facts) -> Finding | None:
    """A rented machine opens notebooks in its own Jupyter."""
    if not facts.host or facts.kernel_registered or facts.lock is None:
        return None
    return Finding(
        "note",
        f"the Jupyter of {facts.host} does not know the lab's Python",
        "a notebook opened there does not find finelab; after this, choose the kernel finelab",
        call(facts, facts.program, "-m ipykernel install --user --name finelab --display-name finelab"),
    )


def _join(facts: Facts, folder: str, name: str) -> str:
    kind = PureWindowsPath if facts.system == "Windows" else PurePosixPath
    return str(kind(folder) / name)


RULES = (
    no_runtime,
    broken_torch,
    bad_override,
    out_of_step,
    no_lock,
    foreign_packages,
    foreign_kernel,
    unknown_kernel,
)

"""Rules about the operating system, its Python and the folder the lab lies in."""

from __future__ import annotations

import re
from pathlib import PureWindowsPath

from finelab.doctor.facts import Facts
from finelab.doctor.finding import Finding
from finelab.doctor.shell import quoted

LONGEST = 201  # characters below the environment's folder, measured in that of cpu.txt
MAX_PATH = 259  # what Windows takes without its setting for long paths
SYNCED = ("OneDrive", "Dropbox", "Google Drive", "GoogleDrive", "My Drive", "Mobile Documents")
DAY = 86_400


def python_version(facts: Facts) -> Finding | None:
    """The pinned packages have wheels for some Pythons only."""
    oldest, newest = facts.pythons
    if oldest <= facts.python <= newest:
        return None
    return Finding(
        "stop",
        f"Python {facts.python[0]}.{facts.python[1]}",
        "the pinned packages have no wheels for it; install Python 3.12, then:",
        "py -3.12 lab.py doctor" if facts.system == "Windows" else "python3.12 lab.py doctor",
    )


def rosetta(facts: Facts) -> Finding | None:
    """A Python for Intel, translated on Apple silicon."""
    if not facts.translated:
        return None
    return Finding(
        "stop",
        "this Python is made for Intel and runs translated on Apple silicon",
        "PyTorch makes no builds for Intel Macs any more; an arm64 Python has them",
        "brew install python@3.12 && /opt/homebrew/bin/python3.12 lab.py doctor",
    )


def intel_mac(facts: Facts) -> Finding | None:
    """PyTorch dropped them."""
    if facts.system != "Darwin" or facts.machine != "x86_64" or facts.translated:
        return None
    return Finding(
        "stop",
        "an Intel Mac",
        "PyTorch makes no builds for it any more",
        "use a Linux, Windows or Apple silicon machine, or Paperspace",
    )


def long_paths(facts: Facts) -> Finding | None:
    """Windows cuts at 260 characters."""
    longest = len(facts.environment) + LONGEST
    if facts.system != "Windows" or facts.long_paths or longest <= MAX_PATH:
        return None
    return Finding(
        "warning",
        f"paths in {facts.environment} reach {longest} characters, and Windows takes {MAX_PATH}",
        "pip ends in the middle, or files of a package are missing; in a PowerShell of the administrator:",
        r"reg add HKLM\SYSTEM\CurrentControlSet\Control\FileSystem /v LongPathsEnabled /t REG_DWORD /d 1 /f",
    )


def symlinks(facts: Facts) -> Finding | None:
    """The Hub's cache links to its files where it can."""
    if facts.system != "Windows" or facts.symlinks:
        return None
    return Finding(
        "note",
        "this user may not make symbolic links",
        "files that two revisions of a model share lie twice in the Hub's cache, unless Developer Mode is on",
        "start ms-settings:developers",
    )


def spawned_workers(facts: Facts) -> Finding | None:
    """Windows starts workers anew and imports the notebook in each."""
    if facts.system != "Windows" or facts.workers <= 1:
        return None
    return Finding(
        "warning",
        f"FINELAB_MACHINE or UNSLOTH_DATASET_NUM_PROC asks for {facts.workers} data workers",
        "Windows starts workers by spawn, which crashes or hangs in notebooks; without them it is one",
        "Remove-Item Env:FINELAB_MACHINE, Env:UNSLOTH_DATASET_NUM_PROC -ErrorAction Ignore",
    )


def synced_folder(facts: Facts) -> Finding | None:
    """A program that copies files to a cloud holds them open while it does."""
    path = next((path for path in (facts.root, facts.runs) if _service(path)), None)
    if path is None:
        return None
    move = f"{'Move-Item' if facts.system == 'Windows' else 'mv'} {quoted(facts, path)}"
    return Finding(
        "warning",
        f"{path} lies in a folder that {_service(path)} copies",
        "it holds files that the lab renames, and uploads every checkpoint; from outside the folder:",
        f"{move} ~/finelab" if path == facts.root else f"{move} ~/finelab-runs{_then_set_runs(facts)}",
    )


def _then_set_runs(facts: Facts) -> str:
    """FINELAB_RUNS, which names the runs' old folder when that is not the lab's own, names the new one."""
    if facts.system == "Windows":
        return '; $env:FINELAB_RUNS = "$HOME/finelab-runs"'
    return ' && export FINELAB_RUNS="$HOME/finelab-runs"'


def _service(path: str) -> str:
    """Which of SYNCED a path lies in, if any; OneDrive adds the name of a firm or a university to its own."""
    parts = PureWindowsPath(path).parts  # it knows both kinds of slash
    return next((name for name in SYNCED for part in parts if re.match(rf"{name}\b", part)), "")


def wsl_mount(facts: Facts) -> Finding | None:
    """Windows' disks are slow from inside WSL."""
    if "microsoft" not in facts.release.lower() or not re.match(r"/mnt/[a-z]/", facts.root):
        return None
    return Finding(
        "warning",
        f"WSL works on a Windows disk ({facts.root})",
        "each file access crosses into Windows: imports and checkpoints take many times as long",
        f"git clone {quoted(facts, facts.root)} ~/finelab && cd ~/finelab",
    )


def two_openmp(facts: Facts) -> Finding | None:
    """Intel's OpenMP ends a process that loads it twice."""
    if len(facts.openmp) < 2:
        return None
    return Finding(
        "warning",
        f"there are two OpenMP runtimes, {' and '.join(facts.openmp)}",
        'when both are loaded the kernel ends with "OMP: Error #15"; the lab needs none of conda\'s packages',
        "conda deactivate",
    )


def on_battery(facts: Facts) -> Finding | None:
    """A laptop without its plug lowers its clocks."""
    if not facts.on_battery:
        return None
    return Finding(
        "warning",
        "this laptop runs on its battery",
        "processor and card are slower, and the battery may end before the training does",
        "plug it in",
    )


def clock(facts: Facts) -> Finding | None:
    """A certificate is not valid before its first day."""
    if facts.clock > facts.published - DAY:
        return None
    commands = {
        "Windows": "w32tm /resync",
        "Darwin": "sudo sntp -sS time.apple.com",
        "Linux": "sudo timedatectl set-ntp true",
    }
    return Finding(
        "warning",
        "the clock is behind the date on which an installed package came out",
        "certificates look as if they were not valid yet, so downloads fail",
        commands.get(facts.system, "set the clock"),
    )


def host_lifetime(facts: Facts) -> Finding | None:
    """A host that ends sessions, and a recipe that does not stop before."""
    if not facts.host or facts.session_hours is not None:
        return None
    return Finding(
        "warning",
        f"{facts.host} can end a session after {facts.host_hours:g} hours",
        "what came after the last checkpoint is then lost; with a limit the run saves, and the same command "
        "goes on in the next session",
        f"python lab.py run --set training.session_hours={facts.host_hours - 0.5:g}",
    )


RULES = (
    python_version,
    rosetta,
    intel_mac,
    long_paths,
    symlinks,
    spawned_workers,
    synced_folder,
    wsl_mount,
    two_openmp,
    on_battery,
    clock,
    host_lifetime,
)

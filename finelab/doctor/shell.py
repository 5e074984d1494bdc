"""Commands as the user's shell takes them: PowerShell on Windows, a POSIX shell elsewhere."""

from __future__ import annotations

import shlex

from finelab.doctor.facts import Facts

DOCTOR = "python lab.py doctor"


def quoted(facts: Facts, text: str) -> str:
    """A path or value as one word of a command."""
    return f'"{text}"' if facts.system == "Windows" else shlex.quote(text)


def with_variable(facts: Facts, name: str, value: str, command: str) -> str:
    """A command that runs with an environment variable set."""
    if facts.system == "Windows":
        return f"$env:{name} = {quoted(facts, value)}; {command}"
    return f"{name}={quoted(facts, value)} {command}"


def without_variable(facts: Facts, name: str) -> str:
    """Take an environment variable out of this shell."""
    return f"Remove-Item Env:{name}" if facts.system == "Windows" else f"unset {name}"


def call(facts: Facts, program: str, arguments: str) -> str:
    """Call a program by its path."""
    operator = "& " if facts.system == "Windows" else ""
    return f"{operator}{quoted(facts, program)} {arguments}"


def remove(facts: Facts, path: str, command: str) -> str:
    """Delete a file or folder, then run a command."""
    if facts.system == "Windows":
        return f"Remove-Item -Recurse -Force {quoted(facts, path)}; {command}"
    return f"rm -rf {quoted(facts, path)} && {command}"


def restart(facts: Facts) -> str:
    """Restart the machine."""
    return "Restart-Computer" if facts.system == "Windows" else "sudo reboot"

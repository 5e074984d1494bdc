"""A finding."""

from __future__ import annotations

from dataclasses import dataclass

SEVERITIES = ("stop", "warning", "note")  # stop: the lab does not work before this is mended


@dataclass(frozen=True)
class Finding:
    """What was found, what follows from it, and the command that mends it, or the step where none does."""

    severity: str
    found: str
    consequence: str
    mend: str
    rule: str = ""

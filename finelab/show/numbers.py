"""Numbers as text."""

from __future__ import annotations


def signed(*values: float) -> list[str]:
    """Each value with its sign and three digits behind the point, or four where one would be said as zero."""
    digits = 4 if any(value and abs(value) < 5e-4 for value in values) else 3
    return [f"{value:+.{digits}f}" for value in values]

"""The one error a user's mistake ends in."""

from __future__ import annotations


class LabError(Exception):
    """A mistake that the user can mend: one sentence with what came, where, and what to do next."""

    def _render_traceback_(self) -> list[str]:
        """Jupyter's hook: a notebook shows the sentence, not the library's frames."""
        return [f"LabError: {self}"]

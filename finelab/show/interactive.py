"""Widgets that say the same without a frontend: in an executed copy, on GitHub, in a text console."""

from __future__ import annotations

from typing import Any


class Interactive:
    """Shows a widget where a frontend can draw it, else `html`, else `text`."""

    def __init__(self, widget: Any, html: str, text: str) -> None:
        self.widget = widget
        self.html = html
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """All three: a frontend takes the first kind that it knows."""
        shown: dict[str, Any] = self.widget._repr_mimebundle_(**kwargs)
        return shown | {"text/html": self.html, "text/plain": self.text}

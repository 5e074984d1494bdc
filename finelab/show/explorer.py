"""The explorer's picture: memory by part against the sizes that cards have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finelab.show.figures import BLUE, GREY, ORANGE, WIDTH


def memory_bar(parts: Mapping[str, int], limits: Mapping[str, int], title: str) -> Any:
    """One bar of memory by part, in bytes, and a line at each of `limits`, orange where it is passed."""
    from matplotlib.figure import Figure

    total, widest = sum(parts.values()), max(limits.values())
    figure = Figure(figsize=(WIDTH, 2.2))
    axes = figure.add_axes((0.02, 0.40, 0.96, 0.32))
    left = 0.0
    for number, (part, size) in enumerate(parts.items()):
        shade = 0.95 - 0.12 * number
        axes.barh(0, size / 1e9, left=left, color=BLUE, alpha=shade, edgecolor="white", label=part)
        left += size / 1e9
    for name, limit in limits.items():
        axes.axvline(limit / 1e9, color=ORANGE if total > limit else GREY, linewidth=2)
        axes.text(limit / 1e9, 0.47, name, ha="center", va="bottom", fontsize=9)
    axes.set_xlim(0, 1.05 * max(total, widest) / 1e9)
    axes.set_yticks([])
    axes.set_xlabel("GB of card memory")
    axes.set_title(title, loc="left", fontsize=11, pad=20)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(parts), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.65))
    return figure

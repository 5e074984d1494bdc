"""The picture of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finelab.show.figures import BLUE, GREY, ORANGE, _axes

COLOURS = {"better": BLUE, "worse": ORANGE}


def sweep(settings: Mapping[str, Mapping[str, Any]], unit: str, title: str) -> Any:
    """Each setting's loss minus the first one's: a dot per seed, the interval, grey where it is noise.

    `settings` are those of a sweep's report; a setting without a verdict has only its name.
    """
    figure, axes = _axes(
        title, f"{unit}, minus the first setting's (left is better)", "", height=1.2 + 0.4 * len(settings)
    )
    first = next(iter(settings.values()))["losses"]
    for row, each in enumerate(settings.values()):
        colour = COLOURS.get(each.get("verdict", ""), GREY)
        dots = [loss - first[seed] for seed, loss in each["losses"].items() if seed in first]
        axes.plot(dots, [row] * len(dots), "o", color=colour, markersize=4)
        if "interval" in each:
            low, high = each["interval"]
            half = (high - low) / 2
            axes.barh(row, 2 * half, left=-half, height=0.7, color=GREY, alpha=0.2)
            axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(settings)), list(settings))
    axes.set_ylim(len(settings) - 0.5, -0.5)
    return figure

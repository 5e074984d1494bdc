"""Pictures of an evaluation: intervals, token by token, weight by weight, and answers beside each other."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from finelab.show.figures import BLUE, GREY, ORANGE, _axes, name_rows, token_picture

FULL_COLOUR = 3.0  # nats of change from which on a token has the full colour
TABLE = "<style>.fl-answers td {text-align: left; vertical-align: top; white-space: pre-wrap}</style>"
DIFF = (
    "<style>.fl-answers del, .fl-answers ins {color: #10243c} .fl-answers del {background: #f3d3b5}"
    " .fl-answers ins {background: #bcd4ee}</style>"
)


def intervals(
    names: Sequence[str],
    differences: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    verdicts: Sequence[str],
    title: str,
) -> Any:
    """Each name's difference as a dot with its interval; its colour is the verdict, hollow too few rows."""
    xlabel = (
        "difference in nats per token, tuned minus base (left is better)\n"
        "blue: improved   orange: worse   grey: no measurable change   hollow: too few rows to tell"
    )
    figure, axes = _axes(title, xlabel, "", height=1.0 + 0.34 * len(names))
    for row, (difference, (low, high), verdict) in enumerate(zip(differences, bounds, verdicts, strict=True)):
        colour = {"improved": BLUE, "worse": ORANGE}.get(verdict, GREY)
        axes.plot([low, high], [row, row], color=colour, linewidth=2.5, solid_capstyle="butt")
        face = "white" if verdict == "too few rows to tell" else colour
        axes.plot([difference], [row], "o", color=colour, markerfacecolor=face, markersize=5)
    axes.axvline(0, color="black", linewidth=0.8)
    name_rows(axes, names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    return figure


def token_changes(texts: Sequence[str], changes: Sequence[float]) -> Any:
    """A row as text: blue where the loss fell, orange where it rose, grey where it was not measured (NaN)."""
    key = "blue: better predicted than before   orange: worse   grey text: read only"
    inks = [GREY if math.isnan(change) else "black" for change in changes]
    return token_picture(texts, [_colour(change) for change in changes], inks, key)


def token_changes_html(texts: Sequence[str], changes: Sequence[float]) -> str:
    """The same as escaped HTML; a token's change in nats stands in its tooltip."""
    parts = []
    for text, change in zip(texts, changes, strict=True):
        shown = escape(text)
        if math.isnan(change):
            parts.append(f"<span style='color:{GREY}'>{shown}</span>")
            continue
        colour, strength = _colour(change)
        tint = f"{colour}{round(255 * strength):02x}"
        parts.append(f"<span style='background:{tint}' title='{change:+.2f} nats'>{shown}</span>")
    style = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:12px"
    return f"<pre style='{style}'>{''.join(parts)}</pre>"


def update_rms(updates: Mapping[str, Mapping[int, float]]) -> Any:
    """A heat map of the adapter's update: a row for each projection, a column for each layer."""
    layers = sorted({layer for each in updates.values() for layer in each})
    values = [[each.get(layer, np.nan) for layer in layers] for each in updates.values()]
    title = "how far the adapter moves each weight: root mean square of s · B · A"
    figure, axes = _axes(title, "layer", "", height=1.2 + 0.3 * len(updates))
    image = axes.imshow(values, aspect="auto", cmap="Blues", vmin=0)
    axes.set_yticks(range(len(updates)), list(updates))
    every = math.ceil(len(layers) / 16)
    axes.set_xticks(range(0, len(layers), every), layers[::every])
    figure.colorbar(image, ax=axes)
    return figure


def word_diff(before: str, after: str) -> str:
    """What has to be done to `before` to get `after`, word by word: [-gone-] and {+new+}."""
    marks = {"delete": "[-{}-]", "insert": "{{+{}+}}", "equal": "{}"}
    return "".join(marks[kind].format(text) for kind, text in _word_edits(before, after))


def word_diff_html(before: str, after: str) -> str:
    """The same as escaped HTML with del and ins."""
    marks = {"delete": "<del>{}</del>", "insert": "<ins>{}</ins>", "equal": "{}"}
    return "".join(marks[kind].format(escape(text)) for kind, text in _word_edits(before, after))


def answers_html(rows: Sequence[Mapping[str, str]]) -> str:
    """A table of escaped answers: a column for each key of the rows, then how `base` became `tuned`."""
    names = [*(rows[0] if rows else ()), "from base to tuned"]
    head = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in names)
    body = ""
    for row in rows:
        cells = [escape(text) for text in row.values()] + [word_diff_html(row["base"], row["tuned"])]
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return f"{TABLE}{DIFF}<table class='fl-answers'><tr>{head}</tr>{body}</table>"


def _word_edits(before: str, after: str) -> list[tuple[str, str]]:
    """(delete, insert or equal, text) in order; the texts of all but the inserted ones make up `before`."""
    old, new = (re.findall(r"\s*\S+|\s+$", text) for text in (before, after))
    edits = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            edits.append(("equal", "".join(old[i:j])))
            continue
        if i < j:
            edits.append(("delete", "".join(old[i:j])))
        if k < m:
            edits.append(("insert", "".join(new[k:m])))
    return edits


def _colour(change: float) -> tuple[str, float]:
    """A token's colour, and how strong it is, from 0 to 0.85."""
    if math.isnan(change):
        return GREY, 0.0
    return (BLUE if change < 0 else ORANGE), 0.85 * min(abs(change) / FULL_COLOUR, 1.0)

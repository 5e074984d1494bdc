"""Figures: each is saved as a PNG, shown, and said in one printed line."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finelab.files import writing
from finelab.show.live import in_notebook

BLUE, ORANGE, GREY = "#2f6db3", "#d9822b", "#9aa3ad"
WIDTH = 9.0  # inches
COLUMNS = 96  # letters in a line of a row shown as text
POINTS = 1000  # of a curve are drawn: more cannot be told apart, and 12,500 take 50 ms longer


def save(figure: Any, path: Path, line: str) -> None:
    """Write the figure as PNG, show it in a notebook, and print `line`, which holds its numbers."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")
    if in_notebook():
        from IPython.display import Image, display

        display(Image(filename=str(path)))
    print(line)


def histogram(values: Sequence[int], xlabel: str, title: str) -> Any:
    """The distribution of `values`, with its median marked."""
    figure, axes = _axes(title, xlabel, "rows")
    axes.hist(values, bins=min(40, max(5, len(set(values)))), color=BLUE, alpha=0.85)
    axes.axvline(float(np.median(values)), color=ORANGE, linewidth=2, label="median")
    axes.legend(frameon=False)
    return figure


def bars(names: Sequence[str], values: Sequence[float], xlabel: str, title: str) -> Any:
    """One horizontal bar for each name."""
    figure, axes = _axes(title, xlabel, "", height=0.6 + 0.35 * len(names))
    axes.barh(range(len(names)), list(values), color=BLUE, alpha=0.85)
    name_rows(axes, names)
    axes.invert_yaxis()
    return figure


def paired_bars(
    names: Sequence[str], before: Sequence[float], after: Sequence[float], xlabel: str, title: str
) -> Any:
    """For each name the value of the base model and of the tuned one."""
    figure, axes = _axes(title, xlabel, "", height=0.8 + 0.5 * len(names))
    rows = np.arange(len(names))
    axes.barh(rows - 0.2, before, height=0.38, color=GREY, label="base")
    axes.barh(rows + 0.2, after, height=0.38, color=BLUE, label="tuned")
    name_rows(axes, names)
    axes.invert_yaxis()
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def loss_curve(
    steps: Sequence[int],
    losses: Sequence[float],
    learning_rates: Sequence[float],
    tokens_per_s: Sequence[float] = (),
    validation_steps: Sequence[int] = (),
    validation_losses: Sequence[float] = (),
    *,
    resumes: Sequence[int] = (),
    title: str = "training",
) -> Any:
    """A run's curves: the loss raw, smoothed and held out, the learning rate, the tokens per second.

    The first four lists have one item for each log, the held-out ones one for each evaluation; a dotted line
    marks each step in `resumes`, where the run was resumed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 5.0))
    grid = figure.add_gridspec(2, 2, height_ratios=(2.4, 1), hspace=0.28, wspace=0.22)
    axes = figure.add_subplot(grid[0, :])
    every = len(steps) // POINTS + 1
    shown = steps[::every]
    axes.plot(shown, losses[::every], color=BLUE, alpha=0.35, linewidth=1, label="loss")
    axes.plot(shown, _smoothed(losses)[::every], color=BLUE, linewidth=2, label="smoothed")
    if validation_steps:
        axes.plot(validation_steps, validation_losses, "o-", color=ORANGE, markersize=4, label="validation")
    rate, speed = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    rate.plot(shown, learning_rates[::every], color=BLUE, linewidth=1.5)
    speed.plot(shown[: len(tokens_per_s)], tokens_per_s[::every], color=BLUE, linewidth=1)
    _dress(axes, title, "", "loss (nats per trained token)")
    _dress(rate, "", "optimizer step", "learning rate")
    _dress(speed, "", "optimizer step", "tokens/s")
    rate.ticklabel_format(axis="y", scilimits=(0, 0))
    speed.set_ylim(bottom=0)
    _mark(axes, rate, speed, resumes=resumes)
    axes.legend(frameon=False, loc="upper right")
    return figure


def png(figure: Any) -> bytes:
    """The figure as a PNG, quickly: no second drawing to find its tight outline."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=80, facecolor="white")
        return file.getvalue()


def identity_bars(links: Sequence[dict[str, Any]]) -> Any:
    """The mean KL of each link of the identity chain, on a logarithmic axis."""
    names = [f"{link['from']} → {link['to']}" for link in links]
    figure, axes = _axes(
        "how far each model is from the one before",
        "mean KL (nats)",
        "",
        height=1 + 0.5 * len(links),
    )
    colours = [BLUE if link["passed"] else ORANGE for link in links]
    distances = [max(link["mean_kl"], 1e-12) for link in links]
    axes.barh(names, distances, color=colours)
    axes.set_xscale("log")
    axes.set_xlim(left=min(distances) / 10)
    axes.invert_yaxis()
    return figure


def answers_by_token(tokens: Sequence[str], trained: Sequence[bool]) -> Any:
    """The row as text, tokens that carry a label coloured, so that one sees what is learned."""
    faces = [(BLUE if each else GREY, 0.25) for each in trained]
    return token_picture(tokens, faces, ["black"] * len(faces), "blue: trained   grey: read only")


def token_picture(
    tokens: Sequence[str], faces: Sequence[tuple[str, float]], inks: Sequence[str], key: str
) -> Any:
    """Tokens as running text: each has the colour and opacity of its face, and the colour of its letters."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    size = WIDTH * 72 / COLUMNS / 0.602  # DejaVu Sans Mono is 0.602 em wide
    lines = _wrapped(tokens)
    figure = Figure(figsize=(WIDTH, 0.5 + 0.22 * len(lines)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(len(lines) + 0.5, -1.2)
    axes.axis("off")
    axes.text(0, -0.7, key, fontsize=9, color=BLUE, weight="bold")
    for row, line in enumerate(lines):
        for column, text, place in line:
            colour, opacity = faces[place]
            box = Rectangle((column, row - 0.45), len(text), 0.9, color=colour, alpha=opacity, lw=0)
            axes.add_patch(box)
            font: dict[str, Any] = {"fontsize": size, "family": "DejaVu Sans Mono", "va": "center"}
            axes.text(column, row, text, color=inks[place], **font)
    return figure


def name_rows(axes: Any, names: Sequence[str]) -> None:
    """Write each row's name, in which a `$` is no formula: it may come from the data."""
    axes.set_yticks(range(len(names)), list(names), parse_math=False)


def _axes(title: str, xlabel: str, ylabel: str, height: float = 3.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, height))
    axes = figure.subplots()
    _dress(axes, title, xlabel, ylabel)
    return figure, axes


def _dress(axes: Any, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _mark(*panels: Any, resumes: Sequence[int]) -> None:
    """A dotted line in each panel at each step where the run was resumed, named once."""
    for axes in panels:
        for step in resumes:
            axes.axvline(step, color=GREY, linewidth=1, linestyle=":", label="_")
    if resumes:
        panels[0].lines[-1].set_label("resumed")


def _smoothed(values: Sequence[float]) -> list[float]:
    """An exponential moving average, corrected for its start."""
    weight, average, smoothed = 0.9, 0.0, []
    for count, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        smoothed.append(average / (1 - weight**count))
    return smoothed


def _wrapped(tokens: Sequence[str]) -> list[list[tuple[int, str, int]]]:
    """Tokens laid out in lines: (column, text, number); a newline in a token ends its line."""
    lines: list[list[tuple[int, str, int]]] = [[]]
    column = 0
    for number, token in enumerate(tokens):
        text = token.replace("\n", "↵").replace("$", r"\$")
        if column + len(text) > COLUMNS:
            lines.append([])
            column = 0
        lines[-1].append((column, text, number))
        column += len(text)
        if "\n" in token:
            lines.append([])
            column = 0
    return [line for line in lines if line]

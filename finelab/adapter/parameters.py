"""Every parameter of a run, explained once in `parameters.toml`: as cards, as a widget, as a table.

`python -m finelab.adapter.parameters --readme` writes the table into the README, between its two markers.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import html
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelab.errors import LabError
from finelab.files import write_text
from finelab.recipe import Recipe, load_preset, preset_names
from finelab.show import Interactive

PARAMETERS = Path(__file__).parents[1] / "parameters.toml"
README = Path(__file__).parents[2] / "README.md"
MARKERS = "<!-- parameters -->", "<!-- /parameters -->"
KEYWORDS = "keywords"  # the section of the keywords that no recipe field sets
TEXTS = ("what", "tradeoff", "evidence", "range", "library")
STYLE = (
    "<style>.fl-card {max-width: 760px; border: 1px solid #9aa3ad; padding: 6px 14px; line-height: 1.45}"
    " .fl-card p {margin: 6px 0}</style>"
)


@dataclass(frozen=True)
class Source:
    """Where evidence is from; `where` is an address, a path in the repository, or empty."""

    title: str
    where: str


@dataclass(frozen=True)
class Parameter:
    """One entry of `parameters.toml`; `default` is None for a recipe's field, which the recipe knows."""

    section: str
    name: str
    what: str
    tradeoff: str
    evidence: str
    range: str
    library: str
    sources: tuple[Source, ...]
    default: str | None = None

    @property
    def key(self) -> str:
        """Section and name, as `--set` takes a recipe's field."""
        return f"{self.section}.{self.name}"

    @property
    def trades(self) -> str:
        """What is traded: the first sentence of `tradeoff`."""
        return re.split(r"(?<=\.) ", self.tradeoff, maxsplit=1)[0]

    def value(self, recipe: Recipe) -> str:
        """What a recipe sets it to, or the library's default, as text."""
        if self.section == KEYWORDS:
            return self.default or "not set"
        return _text(getattr(getattr(recipe, self.section), self.name))

    def __str__(self) -> str:
        sources = "; ".join(f"{each.title} {each.where}".strip() for each in self.sources)
        lines = (
            f"{self.key}  ({self.library})",
            self.what,
            f"Trade-off: {self.tradeoff}",
            f"Evidence: {self.evidence}",
            f"Worth trying: {self.range}",
            f"Sources: {sources}",
        )
        return "\n".join(lines)


# Reading


def read(path: Path = PARAMETERS) -> dict[str, Parameter]:
    """All parameters by their key, in the file's order; LabError names what is wrong with the file."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LabError(f"{path.name}: cannot be read ({error}); restore it from the repository.") from error
    sources = {name: _source(key, table) for key, name, table in _entries(tables, ["sources"])}
    sections = [section for section in tables if section != "sources"]
    return {key: _parameter(key, table, sources) for key, _, table in _entries(tables, sections)}


def explain(name: str) -> Parameter:
    """The parameter called `name`, with or without its section; LabError with the nearest names."""
    found = [each for each in _shipped().values() if name in (each.key, each.name)]
    if not found:
        names = [each.name for each in _shipped().values()]
        near = difflib.get_close_matches(name.rpartition(".")[2], names, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}."
        raise LabError(f"there is no parameter {name!r}; {hint}")
    return found[0]


@functools.cache
def _shipped() -> dict[str, Parameter]:
    return read()


def _entries(tables: Mapping[str, Any], sections: Iterable[str]) -> Iterable[tuple[str, str, dict[str, Any]]]:
    """Key, name and table of each entry of some sections."""
    for section in sections:
        entries = tables.get(section)
        if not isinstance(entries, dict):
            raise _damaged(section, "expected entries such as [lora.r]")
        for name, table in entries.items():
            if not isinstance(table, dict):
                raise _damaged(f"{section}.{name}", "expected a table")
            yield f"{section}.{name}", name, table


def _source(key: str, table: dict[str, Any]) -> Source:
    texts = _texts(key, table, required=["title"], optional=["where"])
    return Source(texts["title"], texts.get("where", ""))


def _parameter(key: str, table: dict[str, Any], sources: Mapping[str, Source]) -> Parameter:
    cited = table.get("sources")
    if not isinstance(cited, list) or not cited:
        raise _damaged(key, "`sources` must name at least one of [sources]")
    if unknown := [each for each in cited if each not in sources]:
        raise _damaged(key, f"there is no source {unknown[0]!r}")
    texts = _texts(key, {name: table[name] for name in table if name != "sources"}, TEXTS, ["default"])
    section, _, name = key.partition(".")
    return Parameter(section, name, sources=tuple(sources[each] for each in cited), **texts)


def _texts(
    key: str, table: dict[str, Any], required: Iterable[str], optional: Iterable[str]
) -> dict[str, str]:
    """The table, each value a text that says something, none missing and none unknown."""
    if unknown := sorted(set(table) - {*required, *optional}):
        raise _damaged(key, f"unknown key {unknown[0]!r}")
    if missing := sorted(set(required) - set(table)):
        raise _damaged(key, f"`{missing[0]}` is missing")
    for name, value in table.items():
        if not isinstance(value, str) or not value.strip():
            raise _damaged(key, f"`{name}` must be a text that is not empty, got {value!r}")
    return {name: " ".join(value.split()) for name, value in table.items()}  # the file's lines are wrapped


def _damaged(key: str, what: str) -> LabError:
    return LabError(f"{PARAMETERS.name}: {key}: {what}; restore the file from the repository.")


# Showing


def chooser(recipe: Recipe, first: str = "r") -> Interactive:
    """A widget to choose a parameter and read its card; without a frontend, all cards to fold out."""
    import ipywidgets as widgets

    known = _shipped()
    choice = widgets.Dropdown(options=list(known), value=explain(first).key, description="parameter")
    shown = widgets.HTML()

    def show(_change: Any = None) -> None:
        shown.value = STYLE + card(known[choice.value], recipe)

    choice.observe(show, names="value")
    show()
    text = f"{len(known)} parameters; parameters.explain(name) gives one, for example:\n{explain(first)}"
    return Interactive(widgets.VBox([choice, shown]), cards(recipe), text)


def cards(recipe: Recipe) -> str:
    """All cards as HTML, each folded under its name, its value and what it trades."""
    folded = [
        f"<details><summary><code>{each.key} = {html.escape(each.value(recipe))}</code> {_html(each.trades)}"
        f"</summary>{card(each, recipe)}</details>"
        for each in _shipped().values()
    ]
    return STYLE + "".join(folded)


def card(parameter: Parameter, recipe: Recipe) -> str:
    """One parameter as HTML: what it is, what it trades, the evidence, and this recipe's value."""
    lines = {
        "": parameter.what,
        "Trade-off": parameter.tradeoff,
        "Evidence": parameter.evidence,
        "Here": f"`{parameter.value(recipe)}`. Worth trying: {parameter.range}. {_how_to_set(parameter)}",
    }
    body = "".join(
        f"<p>{f'<b>{title}.</b> ' if title else ''}{_html(text)}</p>" for title, text in lines.items()
    )
    sources = "; ".join(_link(each) for each in parameter.sources)
    return (
        f"<div class='fl-card'><b><code>{parameter.key}</code></b>{body}<p><small>{sources}</small></p></div>"
    )


def _how_to_set(parameter: Parameter) -> str:
    if parameter.section == KEYWORDS:
        return f"A keyword of `{parameter.library}`."
    owner = "the lab itself" if parameter.library == "finelab" else f"`{parameter.library}`"
    return f"Taken by {owner}; `--set {parameter.key}=...` changes it."


def _link(source: Source) -> str:
    title = html.escape(source.title)
    if source.where.startswith("https://"):
        return f'<a href="{html.escape(source.where)}">{title}</a>'
    return f"{title} <code>{html.escape(source.where)}</code>" if source.where else title


def _html(text: str) -> str:
    """Escaped, and what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _text(value: Any) -> str:
    """A recipe's value as a reader takes it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "empty"
    return f"{value:g}" if isinstance(value, float) else str(value)


# The README


def table() -> str:
    """What each parameter trades and its default in the presets, as Markdown; [data] has its own table."""
    recipes = [load_preset(name) for name in preset_names()]
    lines = ["| parameter | what it trades | default |", "| --- | --- | --- |"]
    for parameter in _shipped().values():
        if parameter.section != "data":
            values = [parameter.value(recipe) for recipe in recipes]
            if len(set(values)) == 1:
                values = values[:1]
            lines.append(f"| `{parameter.key}` | {parameter.trades.rstrip('.')} | {' / '.join(values)} |")
    return "\n".join(lines)


def section() -> str:
    """The README's section, markers included."""
    intro = (
        "### Parameters\n\n"
        "What each line of a recipe trades. What it is, what more and less of it do, and the evidence\n"
        "with its sources: [finelab/parameters.toml](finelab/parameters.toml), and as cards in notebook 02.\n"
        f"Where the recipes differ, the defaults are those of {', '.join(preset_names())}.\n"
        "`keywords` are a library's own, which no recipe sets.\n"
        "`python -m finelab.adapter.parameters --readme` writes this table."
    )
    return f"{MARKERS[0]}\n{intro}\n\n{table()}\n{MARKERS[1]}"


def with_section(readme: str) -> str:
    """The README's text with the section between the markers made anew; LabError without them."""
    start, end = (readme.find(marker) for marker in MARKERS)
    if start < 0 or end < start:
        raise LabError(f"README.md: expected the lines {MARKERS[0]} and {MARKERS[1]}; put them back.")
    return readme[:start] + section() + readme[end + len(MARKERS[1]) :]


def main(arguments: list[str]) -> None:
    """Print the README's table, or write its section."""
    parser = argparse.ArgumentParser(prog="python -m finelab.adapter.parameters", description=main.__doc__)
    parser.add_argument(
        "--readme", action="store_true", help="write the section between the README's markers"
    )
    if parser.parse_args(arguments).readme:
        write_text(README, with_section(README.read_text(encoding="utf-8")))
    else:
        print(table())


if __name__ == "__main__":
    main(sys.argv[1:])

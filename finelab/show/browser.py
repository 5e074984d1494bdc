"""A browser for tokenised rows: as they came, as the template writes them, and what is learned."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from finelab.show.interactive import Interactive

ALL = "all sources"
IGNORE = -100
STYLE = (
    "<style>.fl-row {display: flex; gap: 12px} .fl-row pre {flex: 1; max-height: 420px; overflow: auto;"
    " white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; padding: 8px;"
    " border: 1px solid #9aa3ad; margin: 0} .fl-row mark {background: #bcd4ee; color: #10243c}</style>"
)


def browser(rows: Any, tokenizer: Any, raw: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Widgets to page through `rows`, a split, source by source; `raw` gives a row as it was read.

    Without a frontend it is the first row.
    """
    import ipywidgets as widgets

    places = {ALL: list(range(len(rows)))}
    for place, source in enumerate(rows["source"]):
        places.setdefault(source, []).append(place)
    source = widgets.Dropdown(options=list(places), description="source")
    number = widgets.BoundedIntText(value=1, min=1, max=len(rows), description="row")
    picture = widgets.HTML()

    def show(_change: Any = None) -> None:
        row = rows[places[source.value][number.value - 1]]
        picture.value = row_html(raw(row), tokenizer, row)

    def choose(_change: Any) -> None:
        number.max = len(places[source.value])
        number.value = 1
        show()

    source.observe(choose, names="value")
    number.observe(show, names="value")
    show()
    box = widgets.VBox([widgets.HBox([source, number]), picture])
    return Interactive(box, picture.value, tokenizer.decode(rows[0]["input_ids"]))


def row_html(raw: Any, tokenizer: Any, row: Mapping[str, Any]) -> str:
    """One row three times, as escaped HTML: as it was read, as text, and with the learned part marked."""
    as_read = json.dumps(raw, ensure_ascii=False, indent=1, default=str)
    panes = (
        ("as it was read", escape(as_read)),
        ("as the template writes it", escape(tokenizer.decode(row["input_ids"]))),
        ("what is learned", _marked(tokenizer, row["input_ids"], row["labels"])),
    )
    titles = f"{escape(row['file'])}, row {row['row']}, source {escape(row['source'])}"
    body = "".join(f"<pre><b>{title}</b>\n\n{text}</pre>" for title, text in panes)
    return f"{STYLE}<p>{titles}: {len(row['input_ids'])} tokens</p><div class='fl-row'>{body}</div>"


def _marked(tokenizer: Any, input_ids: list[int], labels: list[int]) -> str:
    """The row's text with a mark around each run of labelled tokens."""
    pairs = zip(input_ids, labels, strict=True)
    text = ""
    for learned, run in itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORE):
        part = escape(tokenizer.decode([token for token, _ in run]))
        text += f"<mark>{part}</mark>" if learned else part
    return text

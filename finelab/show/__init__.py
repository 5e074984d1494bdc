"""Pictures and the first cell's text, used by all notebooks."""

from finelab.show.browser import browser, row_html
from finelab.show.figures import (
    answers_by_token,
    bars,
    histogram,
    identity_bars,
    loss_curve,
    paired_bars,
    png,
    save,
)
from finelab.show.header import header
from finelab.show.live import Live

__all__ = [
    "Live",
    "answers_by_token",
    "bars",
    "browser",
    "header",
    "histogram",
    "identity_bars",
    "loss_curve",
    "paired_bars",
    "png",
    "row_html",
    "save",
]

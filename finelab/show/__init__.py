"""Pictures and the first cell's text, used by all notebooks."""

from finelab.show.browser import browser, row_html
from finelab.show.evaluation import (
    answers_html,
    intervals,
    token_changes,
    token_changes_html,
    update_rms,
    word_diff,
    word_diff_html,
)
from finelab.show.explorer import memory_bar
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
from finelab.show.interactive import Interactive
from finelab.show.live import Live

__all__ = [
    "Interactive",
    "Live",
    "answers_by_token",
    "answers_html",
    "bars",
    "browser",
    "header",
    "histogram",
    "identity_bars",
    "intervals",
    "loss_curve",
    "memory_bar",
    "paired_bars",
    "png",
    "row_html",
    "save",
    "token_changes",
    "token_changes_html",
    "update_rms",
    "word_diff",
    "word_diff_html",
]

"""What one can read from the pictures of an evaluation."""

import io
import math
import re
from html import unescape

import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from finelab import show

EVIL = "<script>alert(1)</script>"


def test_each_verdict_of_an_interval_looks_different():
    figure = show.intervals(
        ["a", "b", "c", "d"],
        [-0.2, 0.01, 0.3, -0.5],
        [(-0.3, -0.1), (-0.1, 0.1), (0.2, 0.4), (-0.6, -0.4)],
        ["improved", "no measurable change", "worse", "too few rows to tell"],
        title="change",
    )
    [axes] = figure.axes
    bars = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 2]
    assert [tuple(line.get_xdata()) for line in bars] == [
        (-0.3, -0.1),
        (-0.1, 0.1),
        (0.2, 0.4),
        (-0.6, -0.4),
    ]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert len({(dot.get_color(), dot.get_markerfacecolor()) for dot in dots}) == 4
    assert "hollow: too few rows" in axes.get_xlabel()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("name", ["$a_b$", "$\\frac$", "100 $", "$x$ and $y"])
def test_a_name_out_of_the_data_is_no_formula(name):
    """matplotlib takes what stands between two dollars for one, and stops where it is none."""
    figures = [
        show.intervals([name], [0.1], [(0.0, 0.2)], ["worse"], title=name),
        show.bars([name], [1.0], "tokens", name),
        show.paired_bars([name], [1.0], [2.0], "nats", name),
    ]
    for figure in figures:
        [axes] = figure.axes
        assert show.png(figure)
        assert [label.get_text() for label in axes.get_yticklabels()] == [name]


def test_a_tokens_colour_says_direction_and_size():
    figure = show.token_changes(["ask", "ed", " well", " badly"], [math.nan, -0.5, -3.0, 2.0])
    unmeasured, little, much, worse = figure.axes[0].patches
    assert unmeasured.get_alpha() == 0
    assert little.get_alpha() < much.get_alpha()
    assert to_hex(little.get_facecolor()) == to_hex(much.get_facecolor()) != to_hex(worse.get_facecolor())
    assert imread(io.BytesIO(show.png(figure))).shape[1] > 500


def test_the_html_holds_the_text_escaped_and_each_change():
    html = show.token_changes_html(["ask ", EVIL, "\n& on"], [math.nan, -1.25, 0.5])
    assert "<script" not in html
    assert unescape(re.sub(r"<[^>]*>", "", html)) == f"ask {EVIL}\n& on"
    assert html.count("title=") == 2
    assert "-1.25 nats" in html


@pytest.mark.parametrize(
    ("before", "after", "diff"),
    [
        ("the red kite", "the blue kite", "the[- red-]{+ blue+} kite"),
        ("same", "same", "same"),
        ("", "new", "{+new+}"),
        ("a b", "a", "a[- b-]"),
        ("one red fish swims", "one big old cat swims", "one[- red fish-]{+ big old cat+} swims"),
    ],
)
def test_words_that_go_and_come_are_marked(before, after, diff):
    assert show.word_diff(before, after) == diff
    html = show.word_diff_html(before, after)
    assert re.sub(r"<del>.*?</del>|</?ins>", "", html) == after
    assert re.sub(r"<ins>.*?</ins>|</?del>", "", html) == before


def test_answers_are_shown_as_text_never_as_html():
    html = show.answers_html([{"question": EVIL, "base": f"no {EVIL}", "tuned": "<img src=x> no"}])
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("<td>") == 4
    assert "<ins>&lt;img" in html
    assert "del, .fl-answers ins {color:" in html  # a dark page's light letters cannot be read on the marks


def test_updates_stand_at_their_layer_and_projection():
    figure = show.update_rms({"q_proj": {0: 0.1, 1: 0.2}, "v_proj": {1: 0.4}})
    image = figure.axes[0].images[0].get_array()
    assert image.shape == (2, 2)
    assert image[1, 1] == pytest.approx(0.4)
    assert math.isnan(float(image.filled(math.nan)[1, 0]))

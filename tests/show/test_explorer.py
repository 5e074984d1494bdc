"""The explorer's picture, and what is shown where no frontend draws widgets."""

from finelab import show


def test_the_bar_is_as_long_as_its_parts_and_limits_that_are_passed_stand_out():
    parts = {"weights": 6_000_000_000, "activations": 4_000_000_000}
    axes = show.memory_bar(parts, {"8 GB": 8_000_000_000, "16 GB": 16_000_000_000}, "a model").axes[0]
    assert [round(bar.get_x() + bar.get_width(), 6) for bar in axes.patches] == [6, 10]
    passed, free = axes.lines
    assert (passed.get_xdata()[0], free.get_xdata()[0]) == (8, 16)
    assert passed.get_color() != free.get_color()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(parts)
    assert axes.get_xlim()[1] > 16


def test_what_a_widget_says_is_there_without_a_frontend():
    import ipywidgets

    shown = show.Interactive(ipywidgets.IntSlider(), "<b>three</b>", "three")
    bundle = shown._repr_mimebundle_()
    assert bundle["text/html"] == "<b>three</b>"
    assert bundle["text/plain"] == repr(shown) == "three"
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == shown.widget.model_id

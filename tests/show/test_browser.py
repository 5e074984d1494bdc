import datasets
import pytest

from finelab import show

IGNORE = -100


@pytest.fixture
def rows(tokenizer):
    def row(question, answer, source, number):
        asked, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question, answer))
        return {
            "source": source,
            "file": "a.jsonl",
            "row": number,
            "input_ids": asked + said,
            "labels": [IGNORE] * len(asked) + said,
        }

    return datasets.Dataset.from_list(
        [
            row("ask <b>one</b> ", "say one", "first", 1),
            row("ask two ", "say two", "second", 2),
            row("ask three ", "say three", "second", 3),
        ]
    )


def test_a_row_is_shown_as_read_as_text_and_with_the_learned_part_marked(rows, tokenizer):
    html = show.row_html({"from": "<script>"}, tokenizer, rows[0])
    assert "&lt;script&gt;" in html and "<script>" not in html
    assert "ask &lt;b&gt;one&lt;/b&gt; <mark>say one</mark>" in html
    assert "a.jsonl, row 1, source first" in html


def test_one_pages_through_the_rows_of_a_source(rows, tokenizer):
    asked_for = []
    shown = show.browser(rows, tokenizer, lambda row: asked_for.append(row["row"]) or {})
    assert "say one" in shown.html and "say one" in repr(shown)  # where no frontend draws the widgets
    box = shown.widget
    (source, number), picture = box.children[0].children, box.children[1]
    assert source.options == ("all sources", "first", "second")
    source.value = "second"
    assert number.max == 2 and "say two" in picture.value
    number.value = 2
    assert "say three" in picture.value
    assert asked_for[-1] == 3
    source.value = "first"
    assert "say one" in picture.value

import math

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from finelab.evaluate import answer_bytes, by_token_class, format_share, most_changed, token_changes
from finelab.evaluate.tokens import token_class
from tests.tiny import tokenizer


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("\n\n", "white space"),
        (" ", "white space"),
        ("", "white space"),
        (" **", "punctuation and markup"),
        ('":', "punctuation and markup"),
        ("- ", "punctuation and markup"),
        ("“", "punctuation and markup"),
        (" word", "content"),
        ("7", "content"),
        ("'s", "content"),
        ("°", "content"),
        ("🎂", "content"),
        ("é", "content"),
        ("\ufffd", "content"),  # a part of a character
    ],
)
def test_a_tokens_class(text, kind):
    assert token_class(text) == kind


@pytest.fixture
def rows():
    """A row whose answer is "the a.\\n" and an end token."""
    encode = tokenizer()
    question, answer = encode("the").input_ids, encode("the a.\n<|im_end|>").input_ids
    ids = question + answer
    labels = [-100] * len(question) + answer
    messages = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "the a."}]
    return Dataset.from_list([{"input_ids": ids, "labels": labels, "messages": messages}])


def losses(*values):
    return [np.array(values, dtype=np.float32)]


def test_each_class_has_its_own_comparison(rows):
    base = losses(1, 1, 1, 1, 1, 1)  # the, space, a, full stop, new line, end token
    tuned = losses(0, 1, 0, 0.5, 1, 0.25)
    found = by_token_class(tokenizer(), rows, base, tuned)
    assert {name: each.difference for name, each in found.items()} == {
        "end token": -0.75,
        "white space": 0.0,
        "punctuation and markup": -0.5,
        "format": pytest.approx(-1.25 / 4),
        "content": -1.0,
    }
    assert format_share(base, tuned, tokenizer(), rows) == pytest.approx(1.25 / 3.25)
    assert math.isnan(format_share(base, base, tokenizer(), rows))


def test_the_tokens_of_answers_to_one_question_are_drawn_together(rows):
    both = concatenate_datasets([rows] * 3)
    found = by_token_class(tokenizer(), both, losses(*[1.0] * 6) * 3, losses(*[0.5] * 6) * 3)
    assert {(each.rows, each.questions) for each in found.values()} == {(3, 1)}


def test_only_labelled_tokens_have_a_change_and_it_stands_at_their_place(rows):
    texts, changes = token_changes(tokenizer(), rows[0], losses(*[1.0] * 6)[0], losses(*range(6))[0])
    assert texts == ["the", "the", " ", "a", ".", "\n", "<|im_end|>"]
    assert math.isnan(changes[0])
    assert changes[1:] == [-1, 0, 1, 2, 3, 4]


def test_bytes_are_those_of_the_answer_without_its_end_token_and_outer_white_space(rows):
    assert answer_bytes(tokenizer(), rows) == [len("the a.")]


def test_the_most_changed_rows_come_first_and_only_those_that_moved_that_way():
    base = np.array([[10.0, 10.0]] * 5)
    tuned = base + np.array([[-1.0, 0], [2.0, 0], [0.0, 0], [-5.0, 0], [1.0, 0]])
    assert most_changed(base, tuned) == ([3, 0], [1, 4])
    assert most_changed(base, tuned, count=1) == ([3], [1])
    assert most_changed(base, base) == ([], [])

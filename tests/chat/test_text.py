"""Token ids as text piece by piece: nothing is lost, no character is split, no stop string leaks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelab.chat.text import Text, held
from tests import tiny

TOKENIZER = tiny.tokenizer()
WRITTEN = st.text(alphabet=st.sampled_from("aby the🌙é漢\n"), max_size=40)


def pieces_of(ids, stop=()):
    text = Text(TOKENIZER, stop)
    pieces = []
    for id_ in ids:
        pieces.append(text.add(id_))
        if text.stopped:
            return pieces, True
    return [*pieces, text.end()], text.stopped


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=30))
def test_the_pieces_of_any_ids_are_what_they_decode_to(ids):
    pieces, _ = pieces_of(ids)
    assert "".join(pieces) == TOKENIZER.decode(ids, skip_special_tokens=True)


@given(WRITTEN)
def test_no_piece_of_a_text_ends_inside_a_character(text):
    pieces, _ = pieces_of(TOKENIZER(text)["input_ids"])
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@given(WRITTEN, st.text(alphabet=st.sampled_from("aby the🌙"), min_size=1, max_size=4))
def test_an_answer_ends_before_the_stop_string_wherever_its_tokens_fall(text, stop):
    pieces, stopped = pieces_of(TOKENIZER(text)["input_ids"], [stop])
    before, found, _ = text.partition(stop)
    assert "".join(pieces) == before
    assert stopped == bool(found)


@pytest.mark.parametrize(
    ("text", "stop", "open_characters"),
    [
        ("a###", ["####"], 3),
        ("a##", ["##b", "####"], 2),
        ("abc", ["###"], 0),
        ("aba", ["abab"], 3),
        ("a", ["b"], 0),
    ],
)
def test_what_may_begin_a_stop_string_is_held_back(text, stop, open_characters):
    assert held(text, stop) == open_characters

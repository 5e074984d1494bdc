from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelab import LabError
from finelab.data.split import BY_FAMILY, BY_ROW, TRAIN, check_sides, is_heldout, question_key, side


def messages(question, answer="An answer."):
    return [
        {"role": "system", "content": answer},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": f"And then {answer}?"},
        {"role": "assistant", "content": "Nothing."},
    ]


def side_of(question, share=0.2, source="a", heldout_sources=()):
    return side(source, question_key(messages(question)), share, heldout_sources)


QUESTIONS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(QUESTIONS, QUESTIONS, QUESTIONS)
def test_two_answers_to_one_question_are_on_the_same_side(question, answer, other):
    assert question_key(messages(question, answer)) == question_key(messages(question, other))


@pytest.mark.parametrize("repeat", ["what is\n 2 + 2?", " WHAT IS 2  + 2? ", "What is\t2 + 2?"])
def test_case_and_white_space_make_no_other_question(repeat):
    assert question_key(messages(repeat)) == question_key(messages("What is 2 + 2?"))


def test_another_question_has_another_key():
    assert len({question_key(messages(f"What is {n} + 2?")) for n in range(100)}) == 100


def test_the_key_is_the_same_in_every_version_and_process():
    assert question_key(messages("Hello")).startswith("2cf24dba")  # sha256 of "hello"


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_about_that_share_of_the_questions_is_held_out(share):
    heldout = sum(side_of(f"Question {n}", share) == BY_ROW for n in range(20_000))
    deviation = (20_000 * share * (1 - share)) ** 0.5
    assert abs(heldout - 20_000 * share) < 4 * deviation


@given(QUESTIONS, st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_larger_share_only_adds_held_out_rows(question, one, other):
    key = question_key(messages(question))
    assert is_heldout(key, min(one, other)) <= is_heldout(key, max(one, other))


def test_a_held_out_source_is_held_out_as_a_whole():
    sides = {side_of(f"Question {n}", source="b", heldout_sources=["b", "c"]) for n in range(50)}
    assert sides == {BY_FAMILY}
    assert {side_of(f"Question {n}", heldout_sources=["b"]) for n in range(50)} == {TRAIN, BY_ROW}


def test_an_unknown_source_names_the_known_ones():
    with pytest.raises(
        LabError, match=r"data\.heldout_sources: no row has the source 'c'; there are: a, b\."
    ):
        check_sides(Counter({TRAIN: 5, BY_ROW: 5}), ["b", "a", "b"], 0.2, ["a", "c"])


@pytest.mark.parametrize("sides", [{}, {TRAIN: 9}, {BY_ROW: 9}, {TRAIN: 9, BY_FAMILY: 9}])
def test_an_empty_side_is_refused(sides):
    with pytest.raises(LabError, match=r"both are needed: .* data\.heldout_share = 0\.2"):
        check_sides(Counter(sides), ["a"], 0.2)


def test_rows_on_both_sides_pass():
    check_sides(Counter({TRAIN: 1, BY_ROW: 1}), ["a", "b"], 0.2, ["b"])

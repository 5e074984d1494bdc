from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelab import LabError
from finelab.data.split import BY_FAMILY, BY_ROW, TRAIN, VALIDATION, check_sides, question_key, side


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
    few, many = (side("a", key, share) == BY_ROW for share in sorted((one, other)))
    assert few <= many


@given(QUESTIONS, st.floats(0.01, 0.5), st.floats(0, 0.49))
def test_validation_rows_come_from_those_to_train_on(question, share, validation):
    key = question_key(messages(question))
    before, after = side("a", key, share), side("a", key, share, (), validation)
    assert after == before or (before, after) == (TRAIN, VALIDATION)


def test_about_the_validation_share_is_kept_apart():
    keys = [question_key(messages(f"Question {n}")) for n in range(20_000)]
    validation = sum(side("a", key, 0.1, ["b"], 0.2) == VALIDATION for key in keys)
    assert abs(validation - 4_000) < 4 * (20_000 * 0.2 * 0.8) ** 0.5
    assert {side("b", key, 0.1, ["b"], 0.2) for key in keys} == {BY_FAMILY}


def test_a_held_out_source_is_held_out_as_a_whole():
    sides = {side_of(f"Question {n}", source="b", heldout_sources=["b", "c"]) for n in range(50)}
    assert sides == {BY_FAMILY}
    assert {side_of(f"Question {n}", heldout_sources=["b"]) for n in range(50)} == {TRAIN, BY_ROW}


def test_an_unknown_source_names_the_known_ones():
    with pytest.raises(
        LabError, match=r"data\.heldout_sources: no row has the source 'c'; there are: a, b\."
    ):
        check_sides(Counter({TRAIN: 5, BY_ROW: 5}), ["b", "a", "b"], [], 0.2, ["a", "c"])


@pytest.mark.parametrize("sides", [{}, {TRAIN: 9}, {BY_ROW: 9}, {TRAIN: 9, BY_FAMILY: 9}])
def test_an_empty_side_is_refused(sides):
    with pytest.raises(LabError, match=r"both are needed: .* data\.limit .* data\.heldout_share = 0\.2"):
        check_sides(Counter(sides), ["a"], ["q", "r"], 0.2)


def test_rows_that_share_their_first_question_are_told_so():
    with pytest.raises(LabError, match="all 9 rows have the same first question"):
        check_sides(Counter({TRAIN: 9}), ["a"], ["q"] * 9, 0.2)


def test_a_validation_share_without_rows_is_refused():
    sides = Counter({TRAIN: 9, BY_ROW: 9})
    with pytest.raises(LabError, match=r"none of 18 rows .* data\.validation_share = 0\.01"):
        check_sides(sides, ["a"], [], 0.2, (), 0.01)
    check_sides(sides | Counter({VALIDATION: 1}), ["a"], [], 0.2, (), 0.01)


def test_rows_on_both_sides_pass():
    check_sides(Counter({TRAIN: 1, BY_ROW: 1}), ["a", "b"], [], 0.2, ["b"])

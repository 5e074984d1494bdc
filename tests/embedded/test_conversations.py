"""The embedded data set: its schema, its origin, and that the checks tell right from wrong."""

import json
from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from finelab.embedded import make_conversations
from finelab.embedded.families import FAMILIES, check_answer, make_conversation
from finelab.embedded.make_conversations import CONVERSATIONS, ROWS_PER_FAMILY, first_prompt

SAMPLES = 200


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in CONVERSATIONS.read_text(encoding="utf-8").splitlines()]


def samples(name):
    rng = Random(f"test {name}")
    return [make_conversation(name, rng) for _ in range(SAMPLES)]


def with_answer(row, answer):
    *turns, last = row["conversations"]
    return row | {"conversations": [*turns, last | {"value": answer}]}


def final_answer(row):
    return row["conversations"][-1]["value"]


def test_file_is_what_the_generator_makes(rows):
    assert rows == make_conversations.build()
    assert make_conversations.main(["--check"]) == 0


def test_generator_writes_the_file_byte_for_byte(tmp_path, monkeypatch):
    copy = tmp_path / CONVERSATIONS.name
    monkeypatch.setattr(make_conversations, "CONVERSATIONS", copy)
    assert make_conversations.main([]) == 0
    assert copy.read_bytes() == CONVERSATIONS.read_bytes()
    assert list(tmp_path.iterdir()) == [copy]


@pytest.mark.parametrize("content", [None, b"{}\n"])
def test_check_mode_notices_another_file(content, tmp_path, monkeypatch, capsys):
    other = tmp_path / CONVERSATIONS.name
    if content:
        other.write_bytes(content)
    monkeypatch.setattr(make_conversations, "CONVERSATIONS", other)
    assert make_conversations.main(["--check"]) == 1
    assert "run this without --check" in capsys.readouterr().out


def test_size(rows):
    counts = Counter(row["source"] for row in rows)
    handwritten = counts.pop("handwritten")
    assert counts == dict.fromkeys(FAMILIES, ROWS_PER_FAMILY)
    assert handwritten >= 64
    assert len(rows) >= 400


def test_schema(rows):
    for row in rows:
        assert list(row) == ["conversations", "source", "score"]
        assert isinstance(row["score"], float)
        assert 4.0 <= row["score"] <= 5.0
        assert all(list(turn) == ["from", "value"] for turn in row["conversations"])


def test_roles_alternate_and_end_with_an_answer(rows):
    for row in rows:
        roles = [turn["from"] for turn in row["conversations"]]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns
        assert turns == ["human", "gpt"] * (len(turns) // 2)


def test_values_are_clean(rows):
    for value in (turn["value"] for row in rows for turn in row["conversations"]):
        assert value
        assert value == value.strip()
        assert "<|" not in value
        assert "\r" not in value


def test_prompts_are_unique(rows):
    prompts = Counter(first_prompt(row) for row in rows)
    assert prompts.most_common(1)[0][1] == 1


def test_generated_rows_are_right(rows):
    assert all(check_answer(row) for row in rows if row["source"] in FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_check_accepts_what_the_family_makes(name):
    assert [row for row in samples(name) if not check_answer(row)] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_check_rejects_the_answer_to_another_question(name):
    wrong = [
        with_answer(row, final_answer(other))
        for row, other in pairwise(samples(name))
        if final_answer(row) != final_answer(other)
    ]
    assert len(wrong) > SAMPLES / 2
    assert [row for row in wrong if check_answer(row)] == []


# The answers of the other two hold words only.
@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"string-edits", "system-style"}))
def test_check_rejects_a_changed_digit(name):
    rng, wrong = Random(name), []
    for row in samples(name):
        answer = final_answer(row)
        places = [i for i, character in enumerate(answer) if character.isdigit()]
        if places:
            place = rng.choice(places)
            digit = rng.choice("0123456789".replace(answer[place], ""))
            wrong.append(with_answer(row, answer[:place] + digit + answer[place + 1 :]))
    assert len(wrong) > SAMPLES / 4
    assert [row for row in wrong if check_answer(row)] == []


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("spoil", [str.swapcase, lambda text: text + " Really.", lambda _: ""])
def test_check_rejects_another_form(name, spoil):
    wrong = [with_answer(row, spoil(final_answer(row))) for row in samples(name)[:40]]
    assert [row for row in wrong if check_answer(row)] == []

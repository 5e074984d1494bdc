import json

import pytest

from finelab.data.read import EMBEDDED
from finelab.errors import LabError
from finelab.evaluate import neutral, neutral_rows
from finelab.files import sha256

DATE = "26 Jul 2024"


def test_the_set_is_the_frozen_one():
    assert sha256(neutral.NEUTRAL) == neutral.NEUTRAL_SHA256


def test_prose_is_scored_whole_and_of_a_question_only_the_answer(tokenizer):
    rows = neutral_rows(tokenizer, DATE)
    assert rows["source"] == ["prose"] * 36 + ["instructions"] * 20
    assert rows["labels"][0] == rows["input_ids"][0]
    assert tokenizer.decode(rows["labels"][0]).startswith("Rivers rarely run straight")
    answer = [label for label in rows["labels"][36] if label != -100]
    assert tokenizer.decode(answer).startswith("The waves roll in")
    assert tokenizer.decode(rows["input_ids"][36]).count("Write two lines that rhyme") == 1
    assert answer[-1] == tokenizer.eos_token_id


def test_no_row_is_near_the_length_at_which_it_would_be_cut(tokenizer):
    assert max(map(len, neutral_rows(tokenizer, DATE)["input_ids"])) < neutral.LONGEST / 4


def test_nothing_of_it_is_in_the_embedded_data_set():
    said = EMBEDDED.read_text(encoding="utf-8").casefold()
    for line in neutral.NEUTRAL.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = row.get("text") or row["conversations"][0]["value"]
        assert json.dumps(text, ensure_ascii=False)[1:-1].casefold() not in said


def test_a_changed_set_is_refused(tokenizer, tmp_path, monkeypatch):
    changed = tmp_path / "neutral.jsonl"
    changed.write_bytes(neutral.NEUTRAL.read_bytes() + b"\n")
    monkeypatch.setattr(neutral, "NEUTRAL", changed)
    with pytest.raises(LabError, match=r"neutral\.jsonl is not the frozen set"):
        neutral_rows(tokenizer, DATE)

import json

import pytest

from finelab import LabError
from finelab.data.dropped import DroppedRows


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dropped.jsonl"


def written(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_is_written_down_with_its_place_the_reason_and_what_it_was(path):
    with DroppedRows(path) as dropped:
        dropped.add("a.jsonl", 3, "empty", {"conversations": []})
        dropped.add("b.jsonl", 7, "empty", "x" * 30_000)
    first, second = written(path)
    assert first == {"file": "a.jsonl", "row": 3, "reason": "empty", "value": {"conversations": []}}
    assert (second["file"], second["row"], len(second["value_cut"])) == ("b.jsonl", 7, 20_000)
    assert dropped.counts == {"empty": 2}
    assert dropped.first == {"empty": "a.jsonl, row 3"}


def test_what_json_cannot_hold_does_not_stop_it(path):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with DroppedRows(path) as dropped:
        dropped.add("a", 1, "nested too deeply", deep)
        dropped.add("a", 2, "a lone surrogate", "\ud800")
        dropped.add("a", 3, "bytes", {"image": b"\x00"})
    assert [row["row"] for row in written(path)] == [1, 2, 3]


def test_too_many_are_an_error_with_a_table_of_the_reasons(path):
    with DroppedRows(path) as dropped:
        for number in range(3):
            dropped.add("a.jsonl", number + 7, "no answer to a question")
        dropped.add("a.jsonl", 2, "no conversation column")
        dropped.check(10, 0.4)
        with pytest.raises(LabError) as error:
            dropped.check(10, 0.3)
    said = str(error.value)
    assert said.startswith("4 of 10 rows cannot be used; the limit is data.max_dropped_share = 0.3.")
    assert "3   30.0%  no answer to a question (first: a.jsonl, row 7)" in said


def test_no_usable_row_is_an_error_whatever_the_limit(path):
    with DroppedRows(path) as dropped:
        dropped.add("a.jsonl", 1, "empty conversation")
        with pytest.raises(LabError, match="1 of 1 rows cannot be used"):
            dropped.check(1, 1.0)

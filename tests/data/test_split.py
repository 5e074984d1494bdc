import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelab import LabError
from finelab.data import split


def row(text, source="a"):
    return {"id": hashlib.sha256(text.encode()).hexdigest(), "source": source}


ROWS = [row(str(i), "ab"[i % 2]) for i in range(400)]


def test_every_row_is_on_exactly_one_side():
    train, heldout = split(ROWS, 0.2)
    assert len(train) + len(heldout) == 400
    assert 40 < len(heldout) < 120
    assert not {r["id"] for r in train} & {r["id"] for r in heldout}


@given(st.integers(100, 399))
def test_a_row_keeps_its_side_when_rows_are_added(first):
    few, many = split(ROWS[:first], 0.2), split(ROWS, 0.2)
    assert {r["id"] for r in few[0]} <= {r["id"] for r in many[0]}
    assert {r["id"] for r in few[1]} <= {r["id"] for r in many[1]}


def test_a_family_is_held_out_as_a_whole():
    train, heldout = split(ROWS, 0.2, ["b"])
    assert {r["source"] for r in train} == {"a"}
    assert sum(r["heldout"] == "family" for r in heldout) == 200
    assert all(r["source"] == "a" for r in heldout if r["heldout"] == "row")


def test_an_unknown_family_names_the_known_ones():
    with pytest.raises(LabError, match="no row has the source 'c'; there are: a, b"):
        split(ROWS, 0.2, ["c"])


def test_an_empty_side_is_refused():
    with pytest.raises(LabError, match="both are needed"):
        split(ROWS[:3], 0.0001)

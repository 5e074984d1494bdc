import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelab.data import xray
from finelab.data.xray import IGNORE, by_source, packed_rows, padding, padding_share

END, BOS, OTHER = 2, 1, 0  # SmolLM2's <|im_end|>, <|im_start|> and <|endoftext|>


def batch(*rows, cut=()):
    """Rows of (input_ids, trained flags)."""
    ids = [list(row[0]) for row in rows]
    labels = [
        [token if flag else IGNORE for token, flag in zip(tokens, flags, strict=True)]
        for tokens, flags in rows
    ]
    return pa.RecordBatch.from_pydict(
        {
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "labels": pa.array(labels, pa.list_(pa.int32())),
            "cut_answer": pa.array([index in cut for index in range(len(rows))]),
        }
    )


GOOD = ([BOS, 50, 60, 70, END, 99, BOS, 80, END], [0, 0, 0, 1, 1, 0, 0, 1, 1])


def found(tokenizer, *batches):
    return {name: count for name, count in xray.faults(batches, tokenizer).items() if count}


def test_good_rows_have_no_faults(tokenizer):
    assert found(tokenizer, batch(GOOD, GOOD), batch(GOOD)) == {}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (([BOS, 50, END], [0, 0, 0]), "rows with nothing to learn"),
        (([BOS, BOS, 50, END], [0, 0, 1, 1]), "rows that begin with two BOS tokens"),
        (([BOS, 50, 60, 70], [0, 0, 1, 1]), "answers without their end token"),
        (([BOS, 50, 60, 70, 71, END], [0, 1, 1, 0, 1, 1]), "answers without their end token"),
        (([BOS, 50, OTHER, 70, END], [0, 1, 1, 1, 1]), "control tokens trained"),
    ],
)
def test_each_fault_is_seen_in_any_row(tokenizer, row, fault):
    assert found(tokenizer, batch(GOOD, row, GOOD)) == {fault: 1}
    assert found(tokenizer, batch(GOOD, GOOD), batch(row)) == {fault: 1}
    assert found(tokenizer, batch(GOOD, row, GOOD).slice(1, 1)) == {fault: 1}


def test_a_label_that_is_another_token_is_seen(tokenizer):
    wrong = batch(GOOD)
    labels = wrong["labels"].to_pylist()
    labels[0][3] = 71
    wrong = wrong.set_column(1, "labels", pa.array(labels, pa.list_(pa.int32())))
    assert found(tokenizer, wrong) == {"labels that are not the token": 1}


def test_only_a_cut_row_may_lack_its_last_end_token(tokenizer):
    open_end = ([BOS, 50, 60, END, 70, 71], [0, 0, 1, 1, 0, 1])
    assert found(tokenizer, batch(open_end, GOOD, cut={0})) == {}
    middle = ([BOS, 50, 60, 70, 71, END], [0, 0, 1, 0, 1, 1])
    assert found(tokenizer, batch(middle, cut={0})) == {"answers without their end token": 1}


def test_sources_are_told_apart_and_the_largest_comes_first():
    rows = by_source(["a", "b", "b"], np.array([10, 20, 40]), np.array([5, 5, 10]), np.array([0, 1, 0]))
    assert [row["source"] for row in rows] == ["b", "a"]
    assert rows[0] == {
        "source": "b",
        "rows": 2,
        "tokens": 60,
        "trained_share": 0.25,
        "truncated_share": 0.5,
        "median_tokens": 30,
        "longest_tokens": 40,
    }


def test_padding_is_what_a_batch_wastes():
    assert padding_share([10, 10, 10, 10], 2) == 0
    assert padding_share([1, 3], 2) == pytest.approx(1 - 4 / 6)
    assert padding_share([5, 1, 3], 2) == pytest.approx(1 - 9 / 13)


lengths = st.lists(st.integers(1, 64), min_size=1, max_size=80)


@given(lengths)
def test_packing_needs_as_many_rows_as_trls(lengths):
    from trl.data_utils import _pack_bfd

    rows = pa.table({"input_ids": pa.array([[7] * length for length in lengths])})
    assert packed_rows(lengths, 64) == len(_pack_bfd(rows, 64))


@given(lengths, st.integers(1, 8))
def test_grouping_by_length_wastes_at_most_one_batch_of_each_group(lengths, batch_size):
    """transformers shuffles, and sorts within some four groups of whole batches."""
    shares = padding(lengths, batch_size, 64, seed=0)
    group = batch_size * max(1, len(lengths) // (4 * batch_size))
    groups = -(-len(lengths) // group)
    most = groups * (batch_size - 1) * (max(lengths) - min(lengths))
    assert shares["group_by_length"] <= most / (sum(lengths) + most) + 1e-9
    assert 0 <= shares["random"] < 1
    assert 0 <= shares["packing"] < 1
    if batch_size == 1:
        assert shares["random"] == shares["group_by_length"] == 0


def test_rows_of_many_lengths_gain_from_grouping_and_packing():
    lengths = list(range(1, 1025)) * 2
    shares = padding(lengths, 8, 1024, seed=3407)
    assert shares["random"] > 0.35
    assert shares["group_by_length"] < 0.1
    assert shares["packing"] < 0.01

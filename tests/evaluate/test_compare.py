import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelab.errors import LabError
from finelab.evaluate import batch_losses, bits_per_byte, by_group, by_kind, by_length, compare, gain_kept
from finelab.evaluate.compare import IMPROVED, NO_CHANGE, WORSE, compare_shares, paired_interval
from finelab.show.numbers import signed

ALLOWED = 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 200)  # false alarms in 200 tries


def rows(nats, tokens=10):
    nats = np.asarray(nats, dtype=float)
    return np.stack([nats, np.full(len(nats), float(tokens))], axis=1)


def heldout(kinds, questions=None):
    """The columns of held-out rows that a comparison looks at; each row has its own question by default."""
    asked = range(len(kinds)) if questions is None else questions
    return {"heldout": kinds, "messages": [[{"role": "user", "content": f"{each}?"}] for each in asked]}


@pytest.fixture
def noise():
    return np.random.default_rng(0).normal(0, 1, 200)


@pytest.mark.parametrize(
    ("shift", "verdict"), [(-1.0, "improved"), (0.0, "no measurable change"), (1.0, "worse")]
)
def test_the_verdict_follows_the_interval(noise, shift, verdict):
    base = rows(np.full(200, 20.0))
    result = compare(base, rows(20.0 + noise - noise.mean() + shift))
    assert result.verdict == verdict
    assert result.difference == pytest.approx(shift / 10)
    assert result.interval[0] < result.difference < result.interval[1]


def test_the_loss_is_per_token_not_per_row():
    base = np.array([[10.0, 10.0], [90.0, 30.0]])
    assert compare(base, base).base == pytest.approx(100 / 40)


def test_the_interval_is_near_the_normal_one(noise):
    result = compare(rows(np.full(200, 20.0)), rows(20.0 + noise))
    half = 1.96 * noise.std() / np.sqrt(200) / 10
    assert result.interval[1] - result.interval[0] == pytest.approx(2 * half, rel=0.1)


def test_the_interval_does_not_depend_on_how_many_draws_are_held_at_once(noise, monkeypatch):
    base, tuned = rows(np.full(200, 20.0)), rows(20.0 + noise)
    whole = compare(base, tuned).interval
    monkeypatch.setitem(compare.__globals__, "DRAWN_AT_ONCE", 7 * 200)
    assert compare(base, tuned).interval == whole


@pytest.mark.parametrize("count", [8, 12, 60])
def test_without_a_change_one_is_seen_in_one_of_twenty_also_with_few_rows(count):
    """The plain percentile interval would alarm in 10 % of the comparisons of 8 rows."""
    rng = np.random.default_rng(count)
    alarms = 0
    for seed in range(600):
        base = rows(np.full(count, 20.0))
        low, high = compare(base, rows(20.0 + rng.normal(0, 1, count)), resamples=1000, seed=seed).interval
        alarms += low > 0 or high < 0
    assert alarms / 600 < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 600)  # 2.6 standard errors: 1 in 200


def test_fewer_than_eight_rows_get_no_verdict():
    few, enough = rows(np.full(7, 20.0)), rows(np.full(8, 20.0))
    assert compare(few, rows(np.full(7, 10.0))).verdict == "too few rows to tell"
    assert compare(enough, rows(np.full(8, 10.0))).verdict == "improved"
    assert compare(few[:1], few[:1]).verdict == "too few rows to tell"


def test_rows_without_a_token_of_the_class_neither_count_nor_break_it():
    base = np.array([[2.0, 1.0], [0.0, 0.0]] * 10)
    result = compare(base, base * 0.5)
    assert (result.rows, result.difference) == (10, -1.0)
    assert np.isfinite(result.interval).all()


def test_a_higher_level_makes_a_wider_interval(noise):
    base, tuned = rows(np.full(200, 20.0)), rows(20.0 + noise)
    normal, wide = compare(base, tuned), compare(base, tuned, level=0.99)
    assert wide.interval[0] < normal.interval[0] < normal.interval[1] < wide.interval[1]
    assert "99 % interval" in str(wide)


def test_rows_and_families_are_judged_apart(noise):
    base = rows(np.full(200, 20.0))
    tuned = rows(20.0 + 0.1 * noise - np.repeat([1.0, 0.0], 100) + np.repeat([0.0, 1.0], 100))
    results = by_kind(heldout(["row"] * 100 + ["family"] * 100), base, tuned)
    assert list(results) == ["row", "family"]
    assert [each.verdict for each in results.values()] == ["improved", "worse"]
    assert list(by_kind(heldout(["row"] * 200), base, tuned)) == ["row"]


def test_answers_to_one_question_are_drawn_together():
    """By row, two in ten of these A/A comparisons would be called a change."""
    rng, alarms = np.random.default_rng(0), 0
    questions = [number // 5 for number in range(100)]  # 20 questions with 5 answers each
    for _ in range(200):
        change = rng.normal(0, 0.7, 20)[questions] + rng.normal(0, 0.7, 100)
        base, tuned = rows(np.full(100, 20.0)), rows(20.0 + change)
        result = by_kind(heldout(["row"] * 100, questions), base, tuned)["row"]
        alarms += result.verdict != "no measurable change"
    assert (result.rows, result.questions) == (100, 20)
    assert "100 rows of 20 questions" in str(result)
    assert alarms / 200 < ALLOWED


@pytest.mark.parametrize(
    "compared",
    [
        lambda base, tuned, asked: by_group(["a"] * 100, base, tuned, questions=asked)["a"],
        lambda base, tuned, asked: by_length(base, tuned, asked)["below 32 tokens"],
        lambda base, tuned, asked: bits_per_byte([40] * 100, base, tuned, asked),
    ],
    ids=["by_group", "by_length", "bits_per_byte"],
)
def test_every_table_draws_the_answers_to_one_question_together(compared):
    """Drawn by row, 100 rows of 20 questions raised 40 % false alarms."""
    rng, alarms = np.random.default_rng(0), 0
    numbers = [number // 5 for number in range(100)]
    asked = [str(number) for number in numbers]
    for _ in range(200):
        change = rng.normal(0, 1, 20)[numbers] + rng.normal(0, 0.3, 100)
        result = compared(rows(np.full(100, 20.0)), rows(20.0 + change), asked)
        alarms += result.verdict != NO_CHANGE
    assert result.evidence()["questions"] == 20
    assert alarms / 200 < ALLOWED


def test_rows_of_which_a_few_hold_most_tokens_give_no_verdict():
    base = np.array([[20.0, 10.0]] * 30 + [[20000.0, 10000.0]] * 2)
    result = compare(base, base - [[5.0, 0.0]] * 32)
    assert result.verdict == "too few rows to tell"
    assert "32 rows, which weigh as 2.1 of equal length" in str(result)


def test_a_bound_that_is_not_zero_is_not_said_as_zero():
    assert signed(-0.123, 0.0, 0.5) == ["-0.123", "+0.000", "+0.500"]
    assert signed(-0.123, -0.2, -0.0004) == ["-0.1230", "-0.2000", "-0.0004"]


def test_few_questions_give_no_verdict_however_many_answers_they_have():
    base = rows(np.full(70, 20.0))
    result = by_kind(heldout(["row"] * 70, [number % 7 for number in range(70)]), base, base - [5.0, 0.0])
    assert result["row"].verdict == "too few rows to tell"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("broken", [0, 1])
def test_a_loss_that_is_no_number_is_no_verdict(noise, value, broken):
    both = [rows(np.full(200, 20.0)), rows(20.0 + noise)]
    both[broken][17, 0] = value
    with pytest.raises(LabError, match=f"the loss of row 17 is {value}: the model's arithmetic broke"):
        compare(*both)


def test_a_merge_is_held_against_the_adapter_on_the_same_base(noise):
    base = rows(np.full(200, 20.0))
    adapter, merged = (compare(base, rows(20.0 + gain + 0.1 * noise)) for gain in (-2.0, -1.6))
    assert gain_kept(adapter, merged).startswith("the merge keeps 80.")
    assert gain_kept(compare(base, base), compare(base, base)).endswith("that its merge could lose")
    few = compare(base[:4], base[:4] - 0.5)
    assert gain_kept(few, few).startswith("too few held-out rows")


def test_groups_come_in_the_alphabets_order_and_hold_their_own_rows():
    base = rows([1.0, 2.0, 3.0])
    groups = by_group(["b", "a", "b"], base, base)
    assert list(groups) == ["a", "b"]
    assert groups["b"].base == pytest.approx(4 / 20)


def test_of_many_groups_the_largest_are_compared_and_the_others_counted(capsys):
    names = [f"source {number:02}" for number in range(50)]
    base = rows(np.ones(90))
    assert list(by_group(names + names[10:], base, base)) == names[10:]
    assert "10 of 50 groups are left out, those with the fewest rows." in capsys.readouterr().out


def test_lengths_are_those_of_the_answers():
    base = np.array([[1.0, 5.0], [1.0, 31.0], [1.0, 32.0], [1.0, 200.0]])
    found = by_length(base, base, list("abcd"))
    assert {name: each.rows for name, each in found.items()} == {
        "below 32 tokens": 2,
        "32 to 63 tokens": 1,
        "128 to 255 tokens": 1,
    }


def test_bits_per_byte_are_the_same_however_the_text_is_cut():
    coarse, fine = np.array([[8.0, 4.0]] * 9), np.array([[8.0, 16.0]] * 9)
    one, other = (bits_per_byte([20] * 9, each, each, list("abcdefghi")) for each in (coarse, fine))
    assert one.base == other.base == pytest.approx(8 / np.log(2) / 20)
    assert "bits per byte" in str(one)


def test_the_loss_of_a_small_batch_jumps_more_than_that_of_a_large_one(noise):
    totals = rows(20.0 + noise)
    assert batch_losses(totals, 2).std() > 2 * batch_losses(totals, 50).std()
    assert batch_losses(totals, 8).mean() == pytest.approx(totals[:, 0].sum() / 2000, rel=0.01)


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [(0, 0, NO_CHANGE), (1, 0, NO_CHANGE), (4, 0, NO_CHANGE), (12, 0, IMPROVED), (0, 12, WORSE)],
)
def test_a_few_answers_of_nineteen_are_no_change(better, worse, verdict):
    base, tuned = np.zeros(19, dtype=bool), np.zeros(19, dtype=bool)
    base[:better] = True  # wrong before, right now
    tuned[better : better + worse] = True
    found = compare_shares(base, tuned, "of the answers")
    assert found.verdict == verdict
    assert found.interval[0] < found.difference < found.interval[1]


@given(st.integers(8, 60), st.floats(0.05, 0.5), st.integers(0, 2**32 - 1))
def test_the_interval_of_shares_is_symmetric_and_within_reach(rows, share, seed):
    rng = np.random.default_rng(seed)
    base, tuned = rng.random(rows) < share, rng.random(rows) < share
    up, down = int(np.sum(tuned & ~base)), int(np.sum(base & ~tuned))
    low, high = paired_interval(up, down, rows)
    assert low < high
    assert paired_interval(down, up, rows) == pytest.approx((-high, -low))

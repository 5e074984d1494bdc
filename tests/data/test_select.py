import hashlib
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelab import LabError
from finelab.data.conversation import Conversation
from finelab.data.select import check_languages, language, limit, mix, unwanted

GERMAN = "Der Zug fährt um acht Uhr vom Hauptbahnhof ab und kommt am Nachmittag in Wien an."
ENGLISH = "The train leaves the main station at eight and arrives in Vienna in the afternoon."


def conversation(answer, question="Hm?", score=None):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation("0", messages, "a", score, 1)


def hashes(names):
    return [hashlib.sha256(str(name).encode()).hexdigest() for name in names]


# Filters


@pytest.mark.parametrize(
    ("row", "languages", "min_score", "reason"),
    [
        (conversation(GERMAN, score=1.0), (), None, None),
        (conversation(ENGLISH, score=2.9), (), 3.0, "score below data.min_score"),
        (conversation(ENGLISH, score=3.0), (), 3.0, None),
        (conversation(ENGLISH, score=None), (), 3.0, None),
        (conversation(GERMAN), ("en",), None, "language de is not in data.languages"),
        (conversation(GERMAN), ("en", "de"), None, None),
        (conversation(ENGLISH), ("en",), None, None),
        (conversation("3F9A-77-BC01 00:1B:44:11:3A:B7 0xdeadbeef", "0b1011"), ("en",), None, None),
    ],
    ids=["no filter", "low", "just enough", "no score", "foreign", "two", "wanted", "no language"],
)
def test_a_filter_gives_its_reason(row, languages, min_score, reason):
    assert unwanted(row, languages, min_score) == reason


@pytest.mark.parametrize(
    ("answer", "question", "code"),
    [
        (GERMAN, 50 * ENGLISH, "de"),
        ("Lima.", "Which of these cities is the capital of Peru: Lima, Quito or Porto?", "en"),
        ("Le train part à huit heures de la gare centrale.", "?", "fr"),
        ("我哋今晚去食飯，你嚟唔嚟呀？佢哋都話想去。", "?", "zh"),
        ("Поезд отправляется в восемь часов утра.", "?", "ru"),
    ],
    ids=["answers lead", "questions help", "French", "Cantonese", "Russian"],
)
def test_the_language_is_that_of_the_answers(answer, question, code):
    assert language(conversation(answer, question)) == code


def test_an_unknown_language_names_the_known_ones():
    check_languages(["en", "de"])
    check_languages([])
    with pytest.raises(
        LabError, match=r"data\.languages: 'english' is not known; the codes are: .*\bde, .*\ben,"
    ):
        check_languages(["en", "english"])


def test_the_language_model_is_loaded_only_for_its_filter():
    code = (
        "import sys\n"
        "from finelab.data.select import Conversation, check_languages, unwanted\n"
        "check_languages(())\n"
        "unwanted(Conversation('0', [], 'a', 1.0, 1), (), 2.0)\n"
        "print('py3langid' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


# Limit

UNIQUE = st.lists(st.integers(0, 10**6), unique=True, max_size=40).map(hashes)


@given(UNIQUE, st.integers(0, 50) | st.none(), st.randoms())
def test_the_limit_picks_the_same_rows_in_any_order(ids, rows, random):
    picked = limit(ids, rows)
    assert picked == sorted(set(picked))
    assert len(picked) == len(ids) if rows is None else len(picked) == min(rows, len(ids))
    shuffled = random.sample(ids, len(ids))
    assert {ids[i] for i in picked} == {shuffled[i] for i in limit(shuffled, rows)}


@given(UNIQUE, UNIQUE, st.integers(0, 50))
def test_added_rows_push_out_no_more_than_come_in(ids, more, rows):
    both = ids + [each for each in more if each not in ids]
    before, after = {ids[i] for i in limit(ids, rows)}, {both[i] for i in limit(both, rows)}
    assert after & set(ids) <= before
    assert len(before - after) == max(0, len(after - before) - max(0, rows - len(ids)))


# Mix


@st.composite
def sources_and_weights(draw):
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    weight = st.floats(0, 5).map(lambda each: round(each, 2))
    weights = draw(st.lists(weight, min_size=len(sizes), max_size=len(sizes)).filter(any))
    return [hashes((s, i) for i in range(size)) for s, size in enumerate(sizes)], weights


@given(sources_and_weights(), st.integers(1, 80) | st.none())
def test_a_mix_has_the_shares_of_its_weights(given_sources, rows):
    sources, weights = given_sources
    picked = mix(sources, weights, rows)
    total = sum(map(len, picked))
    exact = [Fraction(str(weight)) for weight in weights]
    for ids, mine, weight in zip(sources, picked, exact, strict=True):
        assert abs(len(mine) - total * weight / sum(exact)) < 1
        assert mine == sorted(set(mine)) and set(mine) <= set(range(len(ids)))
    assert rows is None or total <= rows
    larger = total + 1  # the next larger mix would repeat a row, or be over the limit
    assert larger == (rows or 0) + 1 or any(
        larger * weight / sum(exact) > len(ids) for ids, weight in zip(sources, exact, strict=True)
    )


@given(sources_and_weights(), st.integers(1, 80) | st.none(), st.randoms())
def test_a_mix_is_the_same_in_any_order_of_rows(given_sources, rows, random):
    sources, weights = given_sources
    shuffled = [random.sample(ids, len(ids)) for ids in sources]
    for ids, mine, others, theirs in zip(
        sources, mix(sources, weights, rows), shuffled, mix(shuffled, weights, rows), strict=True
    ):
        assert {ids[i] for i in mine} == {others[i] for i in theirs}


@given(sources_and_weights(), st.integers(1, 40))
def test_a_larger_mix_holds_the_smaller_one_but_for_rounding(given_sources, rows):
    sources, weights = given_sources
    for small, large in zip(mix(sources, weights, rows), mix(sources, weights, rows + 10), strict=True):
        assert len(set(small) - set(large)) == max(0, len(small) - len(large)) <= 1


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(1, 60) | st.none())
def test_without_weights_every_row_is_used_as_far_as_the_limit_goes(sizes, rows):
    sources = [hashes((s, i) for i in range(size)) for s, size in enumerate(sizes)]
    picked = mix(sources, (), rows)
    assert sum(map(len, picked)) == min(sum(sizes), rows or sum(sizes))
    for size, mine in zip(sizes, picked, strict=True):
        assert abs(len(mine) - sum(map(len, picked)) * size / max(sum(sizes), 1)) < 1


def test_weights_are_taken_as_they_are_written():
    """0.7 and 0.3 are no exact binary fractions; 700 and 300 rows are nonetheless all used."""
    sources = [hashes(range(700)), hashes(range(700, 1000))]
    assert [len(each) for each in mix(sources, (0.7, 0.3))] == [700, 300]
    assert [len(each) for each in mix(sources, (7, 3))] == [700, 300]


def test_one_source_with_a_limit_is_the_limit():
    ids = hashes(range(100))
    assert mix([ids], (), 10) == [limit(ids, 10)] == mix([ids], (2.5,), 10)


def test_rows_of_one_source_leave_the_others_alone():
    a, b, more = hashes(range(100)), hashes(range(100, 150)), hashes(range(200, 300))
    before, after = mix([a, b], (1, 1)), mix([a + more, b], (1, 1))
    assert before[1] == after[1] == list(range(50))
    assert Counter(len(each) for each in after) == {50: 2}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), r"data\.weights has 1 numbers and data\.sources 2 sources"),
        ((1.0, -0.5), r"data\.weights\[1\] = -0\.5: expected a number that is not below 0"),
        ((float("nan"), 1.0), r"data\.weights\[0\] = nan: expected"),
        ((0.0, 0.0), r"data\.weights are all 0"),
    ],
)
def test_weights_that_fit_no_mix_are_refused(weights, message):
    with pytest.raises(LabError, match=message):
        mix([hashes("ab"), hashes("cd")], weights)


def test_a_weight_for_a_source_without_rows_is_refused():
    with pytest.raises(LabError, match=r"data\.weights\[1\] = 0\.5, but no row of that source is left"):
        mix([hashes("ab"), []], (0.5, 0.5))
    assert mix([hashes("ab"), []], (0.5, 0.0)) == [[0, 1], []]

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelab.data import duplicates
from finelab.data.duplicates import (
    CROWD,
    first_of_each,
    leakage,
    on_disk,
    said,
    shingles,
    signature,
)


def near_duplicates(texts, threshold):
    return duplicates.near_duplicates(on_disk(map(signature, texts)), threshold)


def near_matches(train, heldout, threshold):
    train = list(train)
    return duplicates.near_matches(on_disk(map(signature, [*train, *heldout])), len(train), threshold)


WORDS = random.Random(1).sample([a + b + c for a in "bdfgk" for b in "aeiou" for c in ("ma", "ne", "ri")], 75)


def prose(seed, words=150):
    """A text whose sentences no other seed has."""
    draw = random.Random(seed)
    return " ".join(f"{draw.choice(WORDS).capitalize() if i % 10 == 0 else draw.choice(WORDS)}"
                    f"{'.' if i % 10 == 9 else ''}" for i in range(words))  # fmt: skip


def changed(text, seed, share):
    """The text with a share of its words replaced."""
    draw, words = random.Random(seed), text.split()
    for place in draw.sample(range(len(words)), max(1, round(share * len(words)))):
        words[place] = "changed"
    return " ".join(words)


def jaccard(one, other):
    one, other = set(shingles(one)), set(shingles(other))
    return len(one & other) / len(one | other)


BASE = prose(0)
HAN = (
    "机器学习模型从大量文本中学习语言的规律并且可以回答问题写作翻译以及总结各种各样的文章内容帮助人们完成工作"
)


@pytest.mark.parametrize(
    ("repeat", "original"),
    [
        (BASE, BASE),
        (BASE.upper(), BASE),
        (BASE.replace(" ", "\n  "), BASE),
        (BASE + " I hope that this is of some help to you.", BASE),
        (changed(BASE, 1, 0.02), BASE),
        (" ".join(BASE.split()[100:] + BASE.split()[:100]), BASE),
        (HAN.replace("文章", "书籍"), HAN),
        ("Yes.", "yes."),
        ("", ""),
    ],
    ids=[
        "same",
        "case",
        "white space",
        "appended",
        "words changed",
        "reordered",
        "Chinese",
        "short",
        "empty",
    ],
)
def test_a_near_duplicate_is_found(repeat, original):
    assert near_duplicates([prose(9), original, prose(8), repeat], 0.8) == [None, None, None, 1]


@pytest.mark.parametrize(
    "texts",
    [
        [prose(seed) for seed in range(20)],
        ["yes", "no", "yes please", "thank you", "you thank", ""],
        ["好", "不", "谢谢", "你好", "ありがとう", "ขอบคุณ"],
        [HAN, "今天天气很好我们决定去公园散步顺便买一些新鲜的水果和蔬菜准备晚上做一顿丰盛的晚餐"],
        [f"What is {n} degrees Celsius in Fahrenheit? It is {n * 1.8 + 32:.1f}." for n in range(30)],
    ],
    ids=["prose", "short", "short without spaces", "Chinese", "numbers in a template"],
)
def test_different_texts_stay(texts):
    assert near_duplicates(texts, 0.8) == [None] * len(texts)


@given(st.lists(st.text("ab ", max_size=4), max_size=12))
def test_texts_shorter_than_a_shingle_match_only_when_they_say_the_same(texts):
    texts = [text for text in texts if len(text.split()) < 3]
    said = [" ".join(text.split()) for text in texts]
    first = [None if said.index(text) == row else said.index(text) for row, text in enumerate(said)]
    assert near_duplicates(texts, 0.8) == first


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_what_is_found_agrees_with_the_exact_jaccard_similarity(threshold):
    texts = [prose(seed) for seed in range(40)]
    texts += [changed(texts[i % 40], i, share) for i, share in enumerate([0.005, 0.01, 0.02, 0.05, 0.1] * 24)]
    found = near_duplicates(texts, threshold)
    for row, match in enumerate(found):
        kept = [other for other in range(row) if found[other] is None]
        if match is None:
            assert all(jaccard(texts[row], texts[other]) < threshold + 0.1 for other in kept)
        else:
            assert match in kept
            assert jaccard(texts[row], texts[match]) > threshold - 0.1
    assert any(match is not None for match in found) or threshold == 1


def test_a_repeat_of_a_text_left_out_is_judged_by_those_that_stay():
    """Small changes one after the other must not lead away from every text that stays."""
    chain = [BASE]
    for step in range(30):
        chain.append(changed(chain[-1], step, 0.02))
    found = near_duplicates(chain, 0.8)
    assert 1 < found.count(None) < 30
    for row, match in enumerate(found):
        assert match is None or (found[match] is None and jaccard(chain[row], chain[match]) > 0.7)


def test_a_repeat_is_found_among_rows_of_one_template():
    template = prose(0, 26)
    rows = [f"{template} {prose(seed, 8)}" for seed in range(1, 4 * CROWD)]
    assert 0.5 < jaccard(rows[0], rows[1]) < 0.75
    repeats = [f"{row} indeed" for row in rows[:40]]
    found = near_duplicates(rows + repeats, 0.85)
    assert found[: len(rows)].count(None) > 0.95 * len(rows)
    assert found[len(rows) :].count(None) == 0


def test_the_result_does_not_depend_on_the_process():
    code = (
        "from finelab.data.duplicates import near_duplicates, on_disk, signature\n"
        "texts = [' '.join(str(n * i % 97 + n) for n in range(60 + i % 3)) for i in range(200)]\n"
        "print(near_duplicates(on_disk(map(signature, texts)), 0.7))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stdout.count("None") == 97, "the rows repeat after 97"


def test_texts_are_read_once_and_not_held():
    class Text(str):
        alive = most = 0

        def __init__(self, _):
            Text.alive += 1
            Text.most = max(Text.most, Text.alive)

        def __del__(self):
            Text.alive -= 1

    assert near_duplicates((Text(prose(seed % 50)) for seed in range(100)), 0.8) == [None] * 50 + [*range(50)]
    assert Text.most <= 3


def test_no_texts_have_no_duplicates():
    assert near_duplicates([], 0.8) == []


@given(st.lists(st.lists(st.integers(0, 5), max_size=6)), st.integers(1, 10))
def test_of_rows_with_the_same_hash_the_first_stays(parts, partition):
    """However the rows come, and into however many files they are put on the disk."""
    hashes = [np.array([[n % 2, n] for n in part], dtype=np.uint64).reshape(-1, 2) for part in parts]
    rows = [n for part in parts for n in part]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(duplicates, "PARTITION", partition)
        first = first_of_each(iter(hashes), len(rows), Path(folder))
        assert not list(Path(folder).iterdir())
    assert first.tolist() == [rows.index(n) == row for row, n in enumerate(rows)]


def test_a_leak_names_the_training_row():
    train = [prose(1), prose(2), BASE]
    heldout = [prose(3), changed(BASE, 1, 0.02), prose(4), prose(2).lower()]
    assert near_matches(iter(train), iter(heldout), 0.8) == [None, 2, None, 1]


def test_rows_that_repeat_each_other_within_a_side_are_no_leak():
    assert near_matches([BASE, BASE], [prose(3), prose(3)], 0.8) == [None, None]
    assert near_matches([], [BASE, BASE], 0.8) == [None, None]
    assert near_matches([BASE], [], 0.8) == []


def test_clean_rows_of_one_kind_hide_no_leaks_of_another():
    found = leakage([7, None, 3, 3, *[None] * 16], ["row"] * 4 + ["family"] * 16)
    assert (found.rows, found.share) == (3, 3 / 4)


@pytest.mark.parametrize("matches", [[], [None, None]])
def test_without_leaks_the_share_is_zero(matches):
    found = leakage(matches, ["row"] * len(matches))
    assert (found.rows, found.share) == (0, 0.0)


def test_only_what_user_and_assistant_say_is_compared():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ]
    assert said(messages).split() == ["Weather?", "It", "rains."]

"""The encoder gives the tokenizer's own ids and places, for any text and for any tokenizer."""

import itertools
import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelab.data.encoder import Encoder

ODD = [*" \n\t0123.'s", "\r\n", "👩‍👩‍👧", "e\u0301", "א", "字", "\u00a0", "\x16", "\U00011de0"]
CONTROL = ["<|im_end|>", "<|eot_id|>", "<|im_start|>", "<|begin_of_text|>"]
pieces = st.one_of(
    st.characters(codec="utf-8"), st.characters(codec="ascii"), st.sampled_from(ODD), st.sampled_from(CONTROL)
)
anything = st.lists(pieces, max_size=60).map("".join)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return Encoder(tokenizer)


def check(encoder, tokenizer, text):
    tokens = encoder.encode(text, len(text))
    expected = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert tokens.ids.tolist() == expected["input_ids"]
    assert list(zip(tokens.starts, tokens.ends, strict=True)) == expected["offset_mapping"]


def check_every_character(encoder, tokenizer):
    """Each one that tiktoken is trusted with, beside letters, digits, spaces, newlines and itself."""
    numbers = [*range(0xD800), *range(0xE000, 0x10000), *range(0x1F000, 0x20000)]
    texts = [
        f"ab{c}cd {c} {c}ef  {c}\n{c}\n\n{c}1{c}2 3{c}{c}'{c}'s{c} . {c}!{c}  1{c}   {c}{c}{c} x{c}'ll"
        for c in map(chr, numbers)
    ]
    for start in range(0, len(texts), 10_000):
        batch = texts[start : start + 10_000]
        expected = tokenizer(batch, add_special_tokens=False)["input_ids"]
        for text, ids in zip(batch, expected, strict=True):
            assert encoder.encode(text, len(text)).ids.tolist() == ids, text


def check_every_token(tokenizer):
    """tiktoken merges any two tokens that make one; the tokenizer, the pairs in its list. Merging by
    lowest id makes a token always from the same two, so it is enough that those two are in the list."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["content"] for token in state["added_tokens"]}
    ids = {name: number for name, number in state["model"]["vocab"].items() if name not in added}
    listed = {tuple(pair) for pair in state["model"]["merges"]}
    last = [pair for name in ids if len(pair := last_two(name, ids)) == 2]
    assert len(last) > 48_000
    assert listed.issuperset(last)


def last_two(name, ids):
    """What merging by lowest id makes of a token's bytes before the last merge; more parts if stuck."""
    parts = list(name)
    while len(parts) > 2:
        number, at = min((ids.get(a + b, math.inf), i) for i, (a, b) in enumerate(itertools.pairwise(parts)))
        if number == math.inf:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return tuple(parts)


def is_fast(encoder):
    """Whether tiktoken does the work: the tokenizer itself does not stop at a limit."""
    return len(encoder.encode("a b " * 5000, 10).ids) < 5000


def test_the_embedded_tokenizer_is_encoded_fast(encoder):
    assert is_fast(encoder)


@given(text=anything)
def test_any_text_has_the_tokenizers_ids_and_places(encoder, tokenizer, text):
    check(encoder, tokenizer, text)


@pytest.mark.slow
def test_every_character_has_the_tokenizers_ids(encoder, tokenizer):
    check_every_character(encoder, tokenizer)


def test_every_token_is_merged_as_the_tokenizer_lists_it(tokenizer):
    check_every_token(tokenizer)


def test_what_tiktoken_cannot_split_is_encoded_by_the_tokenizer(encoder, tokenizer):
    spaces = " " * 1_000_000 + "x"
    assert encoder.encode(spaces, len(spaces)).ids.tolist() == tokenizer.encode(spaces)


@given(words=st.lists(anything, max_size=200), limit=st.integers(0, 600))
def test_a_limit_gives_a_beginning_of_the_same_tokens(encoder, words, limit):
    text = " ".join(words * 4)
    whole, beginning = encoder.encode(text, len(text)), encoder.encode(text, limit)
    assert len(beginning.ids) > limit or len(beginning.ids) == len(whole.ids)
    for part, all_of_it in zip(beginning, whole, strict=True):
        assert part.tolist() == all_of_it[: len(part)].tolist()


def test_a_limit_saves_work_on_a_long_text(encoder):
    assert len(encoder.encode("word " * 100_000, 1000).ids) < 2000


def test_a_worker_process_gets_an_encoder_that_does_the_same(encoder):
    text = "It's 👋🏽 1234 字\n\n<|im_end|>"
    sent = pickle.loads(pickle.dumps(encoder))
    assert is_fast(sent)
    assert sent.encode(text, 100).ids.tolist() == encoder.encode(text, 100).ids.tolist()


def reads_words(state):
    words = {"a": 0, "b": 1, "?": 2}
    state["model"] = {"type": "WordLevel", "vocab": words, "unk_token": "?"}
    state["pre_tokenizer"] = {"type": "Whitespace"}
    state["added_tokens"] = []


def reads_pieces(state):
    state["model"] = {"type": "Unigram", "vocab": [["?", 0.0], ["a", -1.0], ["b", -2.0]], "unk_id": 0}
    state["added_tokens"] = []


CHANGES = {
    "a normaliser": lambda s: s.update(normalizer={"type": "NFC"}),
    "no pre-tokenizer": lambda s: s.update(pre_tokenizer=None),
    "a space put before": lambda s: s["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
    "digits in groups": lambda s: s["pre_tokenizer"]["pretokenizers"][0].update(individual_digits=False),
    "control tokens that eat spaces": lambda s: s["added_tokens"][2].update(rstrip=True),
    "a control token that begins another": lambda s: s["added_tokens"][2].update(content="<|im_start|>2"),
    "merges in another order": lambda s: s["model"]["merges"].reverse(),
    "a token that is never merged": lambda s: s["model"]["merges"].pop(),
    "a token that is no bytes": lambda s: s["model"]["vocab"].update({"▁": 49_152}),
    "words": reads_words,
    "pieces of words": reads_pieces,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_another_kind_of_tokenizer_encodes_for_itself(tokenizer, change):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    change(state)
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    encoder = Encoder(other)
    assert not is_fast(encoder)
    check(encoder, other, "Cafe\u0301 a b  12<|im_end|>  x <|im_start|>2 \n")

"""Text to token ids with their places in the text: the tokenizer's own ids, several times as fast.

tiktoken encodes with the tokenizer's vocabulary where it is known to give the same ids. Any other
tokenizer, and any text for which that is not known, is encoded by the tokenizer itself.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import string
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# How text is split before it is merged: in Llama 3; in GPT-2; in SmolLM2, as GPT-2 but digit by digit.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SMOLLM_2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
# All three split before a space that stands between two other characters.
CUT = re.compile(r"\S (?=\S)")
PIECE = 1_000  # characters encoded at once, some 230 tokens of English

# Beyond the basic plane and the emoji, the two libraries' Unicode tables differ: U+11DE0, for one.
RARE = "\U00010000-\U0001efff\U00020000-\U0010ffff"
# UTF-8 of all other characters behind ASCII; emoji begin with F0, as some of the rare ones do.
USUAL_BYTES = {*range(0x80, 0xF1)} - {0xC0, 0xC1}

PROBES = (
    "Hello, world! It's 7:05 pm; they'll pay $1,234.56 for 100000000 of 1/2.\n\n\n  DON'T we'Ll x's",
    "def f(x):\n    return x**2  # ok\r\n\tif x != None and y:\n\n\n\n        print('%s' % x)   \n",
    "Größe naïve Ελλάδα Привет שלום مرحبا नमस्ते สวัสดี 你好，世界。こんにちは 안녕 ½ ² ٣ Ⅷ ſ 's",
    "👋🏽 👩‍👩‍👧 🇺🇦 ❤️ … — “quoted” \u00a0\u3000\u2028 a\u0301 \ufeffx   1   a  \n 1\n a ",
    '{"a": [1, 22, 333, 4444]} <b>&amp;</b> https://example.org/?q=1#x \\frac{1}{2} ABCdef123ghi',
)


class Tokens(NamedTuple):
    """Tokens of a text: their ids, and the characters of the text where each begins and ends."""

    ids: NDArray[Any]
    starts: NDArray[Any]
    ends: NDArray[Any]


class ByteLevelBPE(NamedTuple):
    """What tiktoken needs: how to split text, the tokens in order of merging, and the control tokens."""

    pattern: str
    ranks: dict[bytes, int]
    control: dict[str, int]


class Encoder:
    """Encodes text, control tokens in it included, as `tokenizer(text, add_special_tokens=False)` does."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tiktoken: _Tiktoken | None = None
        vocabulary = _byte_level_bpe(json.loads(tokenizer.backend_tokenizer.to_str()))
        if vocabulary:
            self._tiktoken = _Tiktoken(vocabulary)
            if not all(self._agrees_on(probe) for probe in _probes()):
                self._tiktoken = None

    def encode(self, text: str, limit: int) -> Tokens:
        """The text's tokens; of a text with more than `limit`, the first `limit` + 1 or more."""
        if self._tiktoken and self._tiktoken.takes(text):
            try:
                return self._tiktoken.encode(text, limit)
            except ValueError:  # a million spaces in a row are too many for its regular expressions
                pass
        return self._encode(text)

    def _encode(self, text: str) -> Tokens:
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        places = np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return Tokens(np.array(found["input_ids"], dtype=np.int32), places[:, 0], places[:, 1])

    def _agrees_on(self, text: str) -> bool:
        return np.array_equal(self.encode(text, len(text)).ids, self._encode(text).ids)


class _Tiktoken:
    """A tokenizer's vocabulary in tiktoken."""

    def __init__(self, vocabulary: ByteLevelBPE) -> None:
        import tiktoken

        pattern, ranks, control = vocabulary
        self._encoding = tiktoken.Encoding(
            "finelab", pat_str=pattern, mergeable_ranks=ranks, special_tokens=control
        )
        self._control = re.compile("|".join(map(re.escape, control)) or r"(?!)")
        names = ranks | {name.encode(): number for name, number in control.items()}
        self._sizes = np.zeros(max(names.values()) + 1, dtype=np.int64)  # bytes of each token
        self._sizes[list(names.values())] = [len(name) for name in names]
        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        self._usual = bytes(byte for byte in range(0xF0) if byte not in missing)
        unknown = "".join(re.escape(chr(byte)) for byte in missing if byte < 0x80)
        self._unusual = re.compile(f"[{unknown}{RARE}]")

    def takes(self, text: str) -> bool:
        """Whether every character of the text is known to be encoded as the tokenizer does it."""
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            return False
        # looking at bytes first takes a tenth of the time, and mostly settles it
        return not raw.translate(None, self._usual) or not self._unusual.search(text)

    def encode(self, text: str, limit: int) -> Tokens:
        """As `Encoder.encode`; ValueError for text that tiktoken cannot split."""
        found: list[NDArray[Any]] = []
        count = 0
        for piece in _pieces(text):
            control = set(self._control.findall(piece))  # all 256 of Llama's would take 30 us
            ids = self._encoding.encode_to_numpy(piece, allowed_special=control, disallowed_special=())
            found.append(ids)
            count += len(ids)
            if count > limit:
                break
        ids = np.concatenate(found).astype(np.int32)
        sizes = self._sizes[ids]
        ends = np.cumsum(sizes)
        starts = ends - sizes
        if not text.isascii():
            raw = np.frombuffer(text.encode(), dtype=np.uint8)
            character = np.cumsum((raw & 0xC0) != 0x80) - 1  # of each byte
            starts, ends = character[starts], character[ends - 1] + 1
        return Tokens(ids, starts, ends)


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces between which no token lies."""
    start = 0
    while found := CUT.search(text, start + PIECE):
        yield text[start : found.start() + 1]
        start = found.start() + 1
    yield text[start:]


def _byte_level_bpe(state: dict[str, Any]) -> ByteLevelBPE | None:
    """The vocabulary of a tokenizer.json, or None where tiktoken might not give the same ids."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    model, control = state["model"], _control(state["added_tokens"])
    pattern = _pattern(state["pre_tokenizer"])
    normalizer = state["normalizer"] or {"normalizers": []}
    if model["type"] != "BPE" or pattern is None or control is None or normalizer.get("normalizers") != []:
        return None
    byte_of = {ord(character): byte for byte, character in bytes_to_unicode().items()}
    ids = {token: number for token, number in model["vocab"].items() if token not in control}
    if not byte_of.keys() >= set(map(ord, set("".join(ids)))):
        return None
    ranks = {token.translate(byte_of).encode("latin-1"): number for token, number in ids.items()}
    return ByteLevelBPE(pattern, ranks, control) if _merges_by_id(model, ranks) else None


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """The regular expression that splits text as the pre-tokenizer does, if it is one of the three."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if pre_tokenizer else []
    kinds = [step["type"] for step in steps]
    if not steps or kinds[-1] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    if kinds == ["Split", "ByteLevel"] and not steps[1]["use_regex"]:
        split = {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False}
        return LLAMA_3 if steps[0] == split else None
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1]["use_regex"]:
        return SMOLLM_2
    return GPT_2 if kinds == ["ByteLevel"] and steps[0]["use_regex"] else None


def _control(added: list[dict[str, Any]]) -> dict[str, int] | None:
    """The added tokens' ids, if they are found in a text wherever they stand in it and by nothing else."""
    names = sorted(token["content"] for token in added)
    ambiguous = any(after.startswith(before) for before, after in itertools.pairwise(names))
    special = any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added)
    if ambiguous or special or any(" " in name for name in names):
        return None
    return {token["content"]: token["id"] for token in added}


def _merges_by_id(model: dict[str, Any], ranks: dict[bytes, int]) -> bool:
    """Whether the model merges any two tokens that make a token, the lowest id first, as tiktoken does."""
    if model["dropout"] or model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        return False
    merged = [model["vocab"][left + right] for left, right in model["merges"]]
    single = {token[0] for token in ranks if len(token) == 1}
    complete = model["ignore_merges"] or len(set(merged)) == len(ranks) - len(single)
    return complete and merged == sorted(merged) and single.issuperset(USUAL_BYTES)


def _probes() -> Iterator[str]:
    """The texts on which both must agree: written ones, and random ones with a fixed seed."""
    yield from PROBES
    draw = random.Random(0)
    for _ in range(100):
        rare = [chr(draw.randrange(0x80, 0xD800)) for _ in range(40)]
        yield "".join(draw.choices(rare + list(string.printable), k=80))

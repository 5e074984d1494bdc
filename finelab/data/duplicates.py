"""Repeated conversations: exact ones by content hash, near ones by MinHash, and leaks by the same.

Two texts are near each other when enough of their shingles are the same: the Jaccard similarity
(shared shingles / all shingles) reaches a threshold. rensa turns a text into a signature, and the
share of equal values in two signatures estimates it (standard error 0.02 at 0.8). Compared are only
texts that share a whole band of values (locality-sensitive hashing), by their whole signatures.

Memory grows by some 50 bytes a row: hashes are sorted one partition after the other, signatures and bands
lie in memory-mapped files (512 and 250 bytes a row), which the system takes out of memory when it must.
"""

from __future__ import annotations

import contextlib
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash
from tqdm import tqdm

from finelab.data.conversation import Message

PARTITION = 1_000_000  # hashes that are sorted at once, in some 100 MB
PERMUTATIONS = 128  # values of 4 bytes in a signature
SEED = 1
RECALL = 0.99  # of the pairs whose similarity is the threshold, this share is compared
# Rows built on one template fill a bucket without repeating each other. Comparing 20,000 such rows with
# all others took 52 s, with the last 100 of each bucket 4 s, and 506 and 507 of 511 real repeats were found.
CROWD = 100
LOOKED_AT = 10 * CROWD  # of a bucket, to find so many that stay

# Random odd numbers: bands of different values give the same sum of products by chance alone, 1 in 2 ** 64.
MIX = np.random.default_rng(SEED).integers(2**63, size=PERMUTATIONS, dtype=np.uint64) * 2 + 1
Signatures = NDArray[np.uint32]

# Written without spaces, so a character counts as a word: Thai, Lao, Tibetan, Burmese; Khmer; Kana; Han
UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def first_of_each(hashes: Iterable[NDArray[np.uint64]], rows: int, folder: Path) -> NDArray[np.bool_]:
    """For each row whether it is the first with its hash; the hashes come as arrays of shape (n, 2).

    Equal hashes meet in one of the partitions, which are files in `folder` while this runs.
    """
    first = np.ones(rows, dtype=bool)
    count = math.ceil(rows / PARTITION)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(count)]
        start = 0
        for part in hashes:
            numbered = np.column_stack([part, np.arange(start, start + len(part), dtype=np.uint64)])
            for number, file in enumerate(files):
                file.write(numbered[part[:, 0] % count == number].tobytes())
            start += len(part)
        for file in files:
            file.seek(0)
            records = np.frombuffer(file.read(), dtype=np.uint64).reshape(-1, 3)
            records = records[np.lexsort(records.T[[2, 1, 0]])]  # by hash, then by row
            repeats = (records[1:, :2] == records[:-1, :2]).all(axis=1)
            first[records[1:][repeats, 2].astype(np.int64)] = False
    return first


def said(messages: Sequence[Message]) -> str:
    """What user and assistant say: the text in which near duplicates are looked for."""
    return "\n".join(each["content"] for each in messages if each["role"] in ("user", "assistant"))


def signature(text: str) -> bytes:
    """The signature of a text: `PERMUTATIONS` values of 4 bytes."""
    found = RMinHash(PERMUTATIONS, SEED)
    found.update(shingles(text))
    return np.array(found.digest(), dtype=np.uint32).tobytes()


def matrix(signatures: Iterable[bytes]) -> Signatures:
    """Signatures as a matrix (texts, `PERMUTATIONS`)."""
    return np.frombuffer(b"".join(signatures), dtype=np.uint32).reshape(-1, PERMUTATIONS)


def on_disk(signatures: Iterable[bytes], folder: Path | None = None) -> Signatures:
    """As `matrix`, memory-mapped from a file in `folder`, or in the system's folder for such files."""
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  lives as long as the matrix does
    file.writelines(signatures)
    return _mapped(file, np.uint32, (file.tell() // (4 * PERMUTATIONS), PERMUTATIONS))


def near_duplicates(signatures: Signatures, threshold: float, folder: Path | None = None) -> list[int | None]:
    """For each text the index of the earlier text that it nearly repeats, None when it stays.

    The earlier text is always one that stays, so each text left out has one like it among the rest.
    """
    buckets = _Buckets(signatures, threshold, folder)
    kept = np.ones(len(signatures), dtype=bool)
    matches: list[int | None] = [None] * len(signatures)

    def that_stay(earlier: NDArray[np.int32]) -> NDArray[np.int32]:
        near = earlier[-LOOKED_AT:]
        return near[kept[near]]

    for row in tqdm(buckets.rows_in_company(), "near duplicates: compare", unit="row", delay=2):
        matches[row] = buckets.match(row, that_stay)
        kept[row] = matches[row] is None
    return matches


def near_matches(
    signatures: Signatures, train_rows: int, threshold: float, folder: Path | None = None
) -> list[int | None]:
    """For each text behind the first `train_rows` the index of the one of those that it nearly repeats."""
    buckets = _Buckets(signatures, threshold, folder)

    def to_train_on(earlier: NDArray[np.int32]) -> NDArray[np.int32]:
        return earlier[: np.searchsorted(earlier, train_rows)]

    heldout = range(train_rows, len(signatures))
    return [buckets.match(row, to_train_on) for row in tqdm(heldout, "leaks: compare", unit="row", delay=2)]


@dataclass(frozen=True)
class Leakage:
    """Held-out rows with a near match in the training rows, and the largest share of them in a kind.

    The verdict is over the rows of one kind, so that another kind's clean rows must not hide its leaks.
    """

    rows: int
    share: float


def leakage(matches: Sequence[int | None], kinds: Sequence[str]) -> Leakage:
    """What `near_matches` found in held-out rows of these kinds."""
    leaked = Counter(kind for kind, match in zip(kinds, matches, strict=True) if match is not None)
    shares = [leaked[kind] / rows for kind, rows in Counter(kinds).items()]
    return Leakage(leaked.total(), max(shares, default=0.0))


def shingles(text: str) -> list[str]:
    """Every run of three words, lower-cased; a shorter text is one shingle.

    Three: of 300 real conversations with one word in 40 changed, 95 % stay over 0.8; with runs of
    five, 39 %. Runs of 5 characters take 22 of our 459 rows for repeats at 0.7, these take 2.
    """
    words = WORD.findall(text.lower())
    return [" ".join(run) for run in zip(words, words[1:], words[2:], strict=False)] or [" ".join(words)]


class _Buckets:
    """Which rows of a signature matrix share a band.

    Each band is an order of the rows by their values in it. In this order the bucket of row r begins
    at `start[r]` and r stands at `place[r]`; between them are the earlier rows of its bucket.
    """

    def __init__(self, signatures: Signatures, threshold: float, folder: Path | None) -> None:
        self._signatures = signatures
        self._threshold = threshold
        width = _band_width(threshold)
        firsts = range(0, PERMUTATIONS - width + 1, width)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  lives as long as the bands do
        self._bands = _mapped(file, np.int32, (len(firsts), 3, len(signatures)))
        for band, first in zip(self._bands, firsts, strict=True):
            band[:] = _band(signatures[:, first : first + width])

    def rows_in_company(self) -> list[int]:
        """The rows with an earlier one in any of their buckets, in ascending order."""
        company = np.zeros(len(self._signatures), dtype=bool)
        for _, start, place in self._bands:
            company |= start < place
        return [int(row) for row in np.flatnonzero(company)]

    def match(self, row: int, choose: Callable[[NDArray[np.int32]], NDArray[np.int32]]) -> int | None:
        """The most similar of the rows that `choose` leaves of the first bucket with one near enough.

        It is given a bucket's earlier rows in ascending order; the last `CROWD` it leaves are compared.
        """
        for order, start, place in self._bands:
            chosen = choose(order[start[row] : place[row]])[-CROWD:]
            if len(chosen):
                similarity = (self._signatures.take(chosen, axis=0) == self._signatures[row]).mean(axis=1)
                best = similarity.argmax()
                if similarity[best] >= self._threshold:
                    return int(chosen[best])
        return None


def _band_width(threshold: float) -> int:
    """The most values a band may have to keep the recall; the wider, the fewer comparisons in vain."""

    def recall(width: int) -> float:
        return 1 - (1 - threshold**width) ** (PERMUTATIONS // width)

    return max(width for width in range(1, PERMUTATIONS + 1) if recall(width) >= RECALL)


def _band(values: NDArray[np.uint32]) -> NDArray[np.int32]:
    """The order, start and place of the rows by their values in one band, see `_Buckets`."""
    keys = np.zeros(len(values), dtype=np.uint64)  # sorting by one number takes a sixth of the time
    for column, factor in zip(values.T, MIX, strict=False):
        keys += column * factor
    order = np.argsort(keys, kind="stable").astype(np.int32)
    positions = np.arange(len(order), dtype=np.int32)
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = keys[order[1:]] != keys[order[:-1]]
    start, place = np.empty_like(order), np.empty_like(order)
    start[order] = np.maximum.accumulate(np.where(begins, positions, 0))
    place[order] = positions
    return np.stack([order, start, place])


def _mapped(file: Any, kind: type, shape: tuple[int, ...]) -> NDArray[Any]:
    """A file as an array; an empty one cannot be mapped."""
    file.flush()
    return np.memmap(file, kind, shape=shape) if math.prod(shape) else np.empty(shape, kind)

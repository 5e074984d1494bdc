"""A batch as the step by hand computes it: documents one after another, nothing twice, nothing for nothing.

- No padding stands between documents, and each is cut after its last label.
- What several of them begin with, such as a system prompt, is computed once: a token sees only those before
  it, so there it is the same in all. Of the embedded rows, 92 tokens on average with 24 of system prompt,
  eight at once have 0.82 of the tokens to compute and take 0.84 of the time.
- The rows are filled up to a multiple of ROWS, for oneDNN's sake (see cpu_llama.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from finelab.data import IGNORE

ROWS = 32  # 16 leaves more kernels to build, 64 computes more rows for nothing
BLOCK = 192  # keys at whose multiples a block of queries ends: attention takes 1.05 times as long at 128
BEGINNING = 16  # tokens: what is computed once costs some small operations in each layer
LONG = 1024  # tokens of a document whose attention takes as long as all else
WHOLE = 1.3  # the time of a whole batch over that of two equal halves side by side
SENT = 256  # tokens that are computed while a half and its gradients are sent, and its kernels are built


@dataclass(frozen=True)
class Document:
    """Rows `first` to `after`; they see `keys` from `key` on: `shared` common ones, then their own."""

    first: int
    after: int
    key: int
    shared: int


@dataclass(frozen=True)
class Batch:
    """Token ids of all documents, their positions, the rows with a label and those labels.

    A beginning that several documents share is a document of its own, before them. `keys` are the rows that
    each document sees, document by document: all rows in their order where nothing is shared.
    Up to ROWS - 1 rows at the end belong to no document.
    """

    ids: Tensor
    positions: Tensor
    labelled: Tensor
    targets: Tensor
    documents: list[Document]
    keys: Tensor

    @classmethod
    def of(
        cls, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> Batch:
        """From what a collator makes: rows padded on the right, or flattened with positions that restart."""
        ids, targets = input_ids.flatten(), labels.roll(-1, 1).flatten()
        width = input_ids.shape[1]
        if attention_mask is None and position_ids is not None:
            positions = position_ids.expand_as(input_ids).flatten()
        else:
            positions = torch.arange(width).repeat(len(input_ids))
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        targets[torch.tensor(starts[1:]) - 1] = IGNORE  # the next document's first token is not this one's
        whole = []
        for first, after in itertools.pairwise(starts):
            labelled = (targets[first:after] != IGNORE).nonzero()
            if len(labelled):  # what follows the last label decides nothing
                whole.append(torch.arange(first, first + int(labelled[-1]) + 1))
        return cls._of(whole, ids, positions, targets)

    @classmethod
    def _of(cls, whole: list[Tensor], ids: Tensor, positions: Tensor, targets: Tensor) -> Batch:
        """From the rows of each document, which ends with a label."""
        documents, taken, keys = _laid_out(_alike(whole, ids, targets))
        targets = targets[taken]
        labelled = (targets != IGNORE).nonzero().flatten()
        spare = (0, -len(taken) % ROWS)
        ids, positions = (pad(each[taken], spare) for each in (ids, positions))
        return cls(ids, positions, labelled, targets[labelled], documents, keys)

    def halves(self, threads: tuple[int, int]) -> tuple[Batch, Batch] | None:
        """Its documents in two batches, for so many threads each; None where the whole is as fast."""
        ends = set(self.labelled.tolist())  # a shared beginning does not end with a label
        loads = [0.0, 0.0]
        parts: tuple[list[Tensor], list[Tensor]] = [], []
        whole = [each for each in self.documents if each.after - 1 in ends]
        for each in sorted(whole, key=lambda each: each.first - each.after - each.shared):
            rows = self.sees(each)
            load = len(rows) * (1 + len(rows) / LONG)
            half = min((0, 1), key=lambda half: (loads[half] + load) / threads[half])
            loads[half] += load
            parts[half].append(rows)
        slower = max(load / count for load, count in zip(loads, threads, strict=True))
        if slower + SENT >= WHOLE * sum(loads) / sum(threads):
            return None
        targets = torch.full_like(self.ids, IGNORE).index_copy_(0, self.labelled, self.targets)
        first, second = (self._of(part, self.ids, self.positions, targets) for part in parts)
        return first, second

    def sees(self, document: Document) -> Tensor:
        """The rows that its last row sees: the whole document, with what it shares."""
        own = document.after - document.first
        return self.keys[document.key : document.key + document.shared + own]

    @property
    def end(self) -> int:
        """The row after the last document."""
        return self.documents[-1].after

    def blocks(self) -> Iterator[tuple[int, int, int, int]]:
        """(first query, query after the last, first key they see, key after the last), block by block.

        The last query sees all of these keys, each one before it one less. Their number is a multiple of
        BLOCK, but in a document's last block: products and softmax are fastest in whole registers.
        """
        for each in self.documents:
            begin = each.first
            while begin < each.after:
                before = each.shared + begin - each.first
                end = min(begin + BLOCK - before % BLOCK, each.after)
                yield begin, end, each.key, each.key + before + end - begin
                begin = end

    def seen(self, rows: Tensor) -> Tensor:
        """What belongs to each row, key by key: that of a shared row once for each document."""
        return rows if len(self.keys) == self.end else rows.index_select(0, self.keys)

    def by_row(self, gradient: Tensor) -> Tensor:
        """The gradient of what `seen` was given, from that of what it gave: a shared row has the sum."""
        if len(self.keys) == self.end:
            return gradient
        total = torch.zeros(len(self.ids), *gradient.shape[1:])
        total.flatten(1).index_add_(0, self.keys, gradient.flatten(1))
        return total


def _alike(whole: list[Tensor], ids: Tensor, targets: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
    """(how many tokens without a label these documents begin with in common, the documents' rows)."""
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for rows in whole:
        groups.setdefault(tuple(ids[rows[:BEGINNING]].tolist()), []).append(rows)
    for group in groups.values():
        heads = torch.stack([rows[: min(map(len, group))] for rows in group])
        same = (ids[heads] == ids[heads[0]]) & (targets[heads] == IGNORE)
        shared = int(same.all(0).cumprod(0).sum())
        if len(group) > 1 and shared >= BEGINNING:
            yield shared, group
        else:
            yield from ((0, [rows]) for rows in group)


def _laid_out(groups: Iterator[tuple[int, list[Tensor]]]) -> tuple[list[Document], Tensor, Tensor]:
    """The documents, shared beginnings among them; the rows taken for them, in order; and their keys."""
    documents, taken, keys = [], [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    end = key = 0
    for shared, group in groups:
        beginning = torch.arange(end, end + shared)
        if shared:
            documents.append(Document(end, end := end + shared, key, 0))
            taken.append(group[0][:shared])
        for rows in group:
            own = len(rows) - shared
            keys += [beginning, torch.arange(end, end + own)]
            documents.append(Document(end, end := end + own, key, shared))
            taken.append(rows[shared:])
            key += len(rows)
    return documents, torch.cat(taken), torch.cat(keys)

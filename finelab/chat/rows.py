"""Keys and values of several sequences, in place: the cache that a transformers model reads and writes."""

from __future__ import annotations

from typing import Any

BLOCK = 256  # positions by which the cache grows at least


class Rows:
    """One row per sequence, left-aligned; `look` says which rows and positions the next forward is about.

    A row that nobody uses keeps its keys and values, so that a later prompt with the same beginning need not
    compute them again. `tokens[row]` is what a row holds, `owner[row]` the model that computed it.
    """

    def __init__(self, rows: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.owner = [""] * rows
        self._layers: list[tuple[Any, Any]] = []  # (keys, values) of shape (rows, heads, positions, size)
        self._rows = slice(0)
        self._starts: list[int] = []
        self._end = 0

    def look(self, first: int, ids: list[list[int]]) -> tuple[list[list[int]], Any]:
        """Aim the next forward at the rows from `first` on, which `ids` are appended to.

        Several rows take one token each. Gives the position ids, and the mask (rows, 1, queries, keys), or
        None where plain causal attention is meant.
        """
        import torch

        self._rows = slice(first, first + len(ids))
        self._starts = [len(held) for held in self.tokens[self._rows]]
        count = len(ids[0])
        self._end = max(self._starts) + count
        for held, new in zip(self.tokens[self._rows], ids, strict=True):
            held.extend(new)
        positions = [list(range(start, start + count)) for start in self._starts]
        if len(set(self._starts)) == 1 and (count == 1 or self._starts[0] == 0):
            return positions, None
        return positions, torch.arange(self._end) <= torch.tensor(positions)[:, None, :, None]

    def move(self, old: int, new: int) -> None:
        """Put row `old` at place `new`; the rows between close up."""
        order = list(range(len(self.tokens)))
        order.insert(new, order.pop(old))
        moved = [place for place, row in enumerate(order) if place != row]
        if not moved:
            return
        source = [order[place] for place in moved]
        length = max(len(self.tokens[row]) for row in moved)
        for layer in self._layers:
            for kept in layer:
                kept[moved, :, :length] = kept[source, :, :length]
        self.tokens = [self.tokens[row] for row in order]
        self.owner = [self.owner[row] for row in order]

    def common(self, row: int, owner: str, prompt: list[int]) -> int:
        """How many tokens at the beginning of `prompt` the row holds already, as this model computed them."""
        if self.owner[row] != owner:
            return 0
        pairs = zip(self.tokens[row], prompt, strict=False)
        return next(
            (place for place, (held, asked) in enumerate(pairs) if held != asked),
            min(len(self.tokens[row]), len(prompt)),
        )

    # What transformers' models ask of a cache

    def update(self, keys: Any, values: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Write this forward's keys and values, and give the rows' whole ones."""
        if layer == len(self._layers):
            shape = (len(self.tokens), keys.shape[1], 0, keys.shape[3])
            self._layers.append((keys.new_zeros(shape), values.new_zeros(shape)))
        if self._layers[layer][0].shape[2] < self._end:
            self._layers[layer] = tuple(map(self._grown, self._layers[layer]))  # type: ignore[assignment]
        return self._put(self._layers[layer][0], keys), self._put(self._layers[layer][1], values)

    def get_seq_length(self, layer: int = 0) -> int:
        """Positions filled before this forward."""
        return self._starts[0]

    get_query_offset = get_seq_length

    def get_mask_sizes(self, count: int, layer: int) -> tuple[int, int]:
        """Length and offset of the keys."""
        return self._end, 0

    def _put(self, kept: Any, new: Any) -> Any:
        if len(self._starts) == 1:
            kept[self._rows, :, self._starts[0] : self._end] = new
        else:
            rows = list(range(self._rows.start, self._rows.stop))
            kept[rows, :, self._starts] = new[:, :, 0]
        return kept[self._rows, :, : self._end]

    def _grown(self, kept: Any) -> Any:
        rows, heads, length, size = kept.shape
        # Zeros, not what lay in memory: a masked position has the weight 0, and 0 times NaN is NaN.
        longer = kept.new_zeros((rows, heads, max(2 * length, -(-self._end // BLOCK) * BLOCK), size))
        longer[:, :, :length] = kept
        return longer

"""Keys and values of several sequences, in place: the cache that a transformers model reads and writes."""

from __future__ import annotations

from typing import Any

BLOCK = 256  # positions by which the cache grows at least


class Rows:
    """One row per sequence, left-aligned; `look` says which rows and positions the next forward is about.

    A row that nobody uses keeps its keys and values, so that a later prompt with the same beginning need not
    compute them again. `tokens[row]` is what a row holds, `owner[row]` the model that computed it
    and the key of the client who asked: how much was computed before would tell what another one asked.
    """

    def __init__(self, rows: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.owner = [("", b"")] * rows
        self._layers: list[tuple[Any, Any]] = []  # (keys, values) of shape (rows, heads, positions, size)
        self._rows: list[int] = []
        self._span = slice(0)
        self._starts: list[int] = []
        self._end = 0

    def look(self, rows: list[int], ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]], Any]:
        """Aim the next forward at these rows, in ascending order, which `ids` are appended to.

        Several rows take one token each. Rows between them are computed too, with a token that is not kept:
        cheaper than copying rows to lie beside each other. Gives ids, positions and the mask (span, 1,
        queries, keys) of the whole span; the mask is None where plain causal attention is meant.
        """
        import torch

        self._rows, self._span = rows, slice(rows[0], rows[-1] + 1)
        self._starts = [len(self.tokens[row]) for row in rows]
        count = len(ids[0])
        self._end = max(self._starts) + count
        span = range(rows[0], rows[-1] + 1)
        positions = {row: [0] for row in span}
        tokens = {row: [0] for row in span}
        for row, start, new in zip(rows, self._starts, ids, strict=True):
            positions[row] = list(range(start, start + count))
            tokens[row] = new
            self.tokens[row].extend(new)
        placed = list(positions.values())
        if len({place[0] for place in placed}) == 1 and (count == 1 or self._starts[0] == 0):
            return list(tokens.values()), placed, None
        return (
            list(tokens.values()),
            placed,
            torch.arange(self._end) <= torch.tensor(placed)[:, None, :, None],
        )

    def common(self, row: int, owner: tuple[str, bytes], prompt: list[int]) -> int:
        """How many tokens at the beginning of `prompt` the row holds already, for this owner."""
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
        if len(self._rows) == 1:
            kept[self._span, :, self._starts[0] : self._end] = new
        else:
            within = [row - self._span.start for row in self._rows]
            kept[self._rows, :, self._starts] = new[within, :, 0]
        return kept[self._span, :, : self._end]

    def _grown(self, kept: Any) -> Any:
        rows, heads, length, size = kept.shape
        # Zeros, not what lay in memory: a masked position has the weight 0, and 0 times NaN is NaN.
        longer = kept.new_zeros((rows, heads, max(2 * length, -(-self._end // BLOCK) * BLOCK), size))
        longer[:, :, :length] = kept
        return longer

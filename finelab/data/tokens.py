"""Tokens and labels: one BOS, the end token trained, nothing cut inside an answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from finelab.data.conversation import Conversation
from finelab.data.template import trained_spans
from finelab.errors import LabError

IGNORE = -100  # torch's cross entropy skips this label
BATCH = 500


@dataclass
class Tokenized:
    """Rows of input_ids and labels with what they came from, and what did not fit.

    `truncated` counts the rows cut behind an earlier answer, `too_long` the numbers of the rows
    whose first answer already ends behind `max_seq_length`.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    truncated: int = 0
    too_long: list[int] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row["input_ids"]) for row in self.rows]

    @property
    def tokens_trained(self) -> int:
        """Positions with a label."""
        return sum(label != IGNORE for row in self.rows for label in row["labels"])


def tokenize(
    tokenizer: Any, conversations: Sequence[Conversation], max_seq_length: int, date_string: str
) -> Tokenized:
    """Tokenise with the model's template; labels are the ids of answers and their end tokens, else -100.

    A row over `max_seq_length` tokens is cut behind the last answer that fits, never inside one.
    LabError when no row is left.
    """
    from tqdm import tqdm

    result = Tokenized()
    for start in tqdm(range(0, len(conversations), BATCH), "tokenise", unit="batch", delay=2):
        batch = conversations[start : start + BATCH]
        rendered = [trained_spans(tokenizer, each.messages, date_string) for each in batch]
        encoded = tokenizer(
            [text for text, _ in rendered], add_special_tokens=False, return_offsets_mapping=True
        )
        for index, (conversation, (_, spans)) in enumerate(zip(batch, rendered, strict=True)):
            ids, offsets = encoded["input_ids"][index], encoded["offset_mapping"][index]
            _add_row(result, conversation, ids, labels(ids, offsets, spans), max_seq_length)
    if not result.rows:
        raise LabError(
            f"none of {len(conversations)} rows fits into model.max_seq_length = {max_seq_length} "
            "tokens with at least one whole answer; raise it."
        )
    _check_one_bos(tokenizer, result.rows[0]["input_ids"])
    return result


def labels(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[int]:
    """The id at each token that lies inside a span of characters, -100 elsewhere; spans in order."""
    found = [IGNORE] * len(ids)
    position = 0
    for start, end in spans:
        while position < len(ids) and offsets[position][0] < start:
            position += 1
        while position < len(ids) and offsets[position][1] <= end:
            found[position] = ids[position]
            position += 1
    return found


def padding_share(lengths: Sequence[int], batch_size: int, seed: int) -> float:
    """The padding share of a shuffled epoch's positions when each batch is as long as its longest row."""
    shuffled = random.Random(seed).sample(list(lengths), len(lengths))
    batches = [shuffled[i : i + batch_size] for i in range(0, len(shuffled), batch_size)]
    padded = sum(len(batch) * max(batch) for batch in batches)
    return 1 - sum(lengths) / padded


def _add_row(
    result: Tokenized, conversation: Conversation, ids: list[int], labels: list[int], limit: int
) -> None:
    length = len(ids)
    if length > limit:
        length = limit
        while length and not (labels[length - 1] != IGNORE and _ends_answer(labels, length)):
            length -= 1
        if length == 0:
            result.too_long.append(conversation.number)
            return
        result.truncated += 1
    result.rows.append(
        {
            "id": conversation.id,
            "source": conversation.source,
            "messages": conversation.messages,
            "input_ids": ids[:length],
            "labels": labels[:length],
        }
    )


def _ends_answer(labels: list[int], length: int) -> bool:
    return length == len(labels) or labels[length] == IGNORE


def _check_one_bos(tokenizer: Any, ids: list[int]) -> None:
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise LabError("the template and the tokenizer both add a BOS token: rows begin with two.")

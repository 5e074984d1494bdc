"""Conversations as Arrow columns: what the passes hand to each other and what a split holds.

A message is a struct of role, content and tool_calls; tool calls and tool definitions are JSON text,
since a struct would give every call the arguments of all others, filled with nulls.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from finelab.data.conversation import Conversation, Message
from finelab.data.duplicates import PERMUTATIONS
from finelab.data.tokens import Row
from finelab.data.xray import IGNORE

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.string())]))
CONVERSATION = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("score", pa.float64()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("tools", pa.string()),
        ("messages", MESSAGES),
    ]
)
# What is asked of a row before it is tokenised: its signature, and the reason of a filter that leaves it out.
READ = pa.schema([*CONVERSATION, ("signature", pa.binary(4 * PERMUTATIONS)), ("unwanted", pa.string())])
TOKENS = pa.list_(pa.int32())
SPLIT = pa.schema(
    [
        *CONVERSATION,
        ("input_ids", TOKENS),
        ("labels", TOKENS),
        ("length", pa.int32()),
        ("trained_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("cut_answer", pa.bool_()),
        ("heldout", pa.string()),
    ]
)


def to_batch(conversations: Iterable[Conversation], file: str) -> pa.RecordBatch:
    """The conversations of one file, a row each."""
    rows = [
        {
            "id": each.id,
            "source": each.source,
            "score": each.score,
            "file": file,
            "row": each.number,
            "tools": json.dumps(each.tools) if each.tools else None,
            "messages": [_to_struct(message) for message in each.messages],
        }
        for each in conversations
    ]
    return pa.RecordBatch.from_pylist(rows, CONVERSATION)


def content_hashes(ids: pa.Array) -> NDArray[np.uint64]:
    """The first 128 bits of content ids, in two columns."""
    digits = "".join(text[:32] for text in ids.to_pylist())
    return np.frombuffer(bytes.fromhex(digits), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def to_split(batch: pa.RecordBatch, made: Sequence[tuple[Row, str]]) -> pa.RecordBatch:
    """Conversations with the tokens and the side of the split that belong to each."""
    rows = [row for row, _ in made]
    return pa.RecordBatch.from_arrays(
        [
            *batch.columns,
            _token_lists([row.input_ids for row in rows]),
            _token_lists([row.labels for row in rows]),
            pa.array([len(row.input_ids) for row in rows], pa.int32()),
            pa.array([int(np.count_nonzero(row.labels != IGNORE)) for row in rows], pa.int32()),
            pa.array([row.truncated for row in rows], pa.bool_()),
            pa.array([row.cut_answer for row in rows], pa.bool_()),
            pa.array([side for _, side in made], pa.string()),
        ],
        schema=SPLIT,
    )


def conversation(row: Mapping[str, Any]) -> Conversation:
    """A row of a split, or of `to_batch`, as the conversation that it came from."""
    return Conversation(
        id=row["id"],
        messages=[_from_struct(message) for message in row["messages"]],
        source=row["source"],
        score=row["score"],
        number=row["row"],
        tools=json.loads(row["tools"]) if row["tools"] else None,
    )


def _token_lists(arrays: list[NDArray[np.int32]]) -> pa.Array:
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate([*arrays, np.empty(0, np.int32)]), type=TOKENS)


def _to_struct(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    return message | {"tool_calls": json.dumps(message["tool_calls"])}


def _from_struct(message: Message) -> Message:
    plain = {"role": message["role"], "content": message["content"]}
    if message["tool_calls"] is None:
        return plain
    return plain | {"tool_calls": json.loads(message["tool_calls"])}

"""Conversations as Arrow columns: what the passes hand to each other and what a split holds.

A message is a struct of role, content and tool_calls; tool calls and tool definitions are JSON text,
since a struct would give every call the arguments of all others, filled with nulls.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from finelab.data.conversation import Conversation, Message

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
TOKENS = pa.list_(pa.int32())


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


def _to_struct(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    return message | {"tool_calls": json.dumps(message["tool_calls"])}


def _from_struct(message: Message) -> Message:
    plain = {"role": message["role"], "content": message["content"]}
    if message["tool_calls"] is None:
        return plain
    return plain | {"tool_calls": json.loads(message["tool_calls"])}

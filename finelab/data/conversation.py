"""The canonical form of a conversation, which every dialect is brought to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

# role (system, user, assistant or tool) and content; an assistant that calls functions also has
# tool_calls: [{"type": "function", "function": {"name": str, "arguments": dict}}]
Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """One row in canonical form; `number` counts its source's rows from 1.

    `tools` are the JSON schemas of the functions that may be called, as chat templates take them.
    """

    id: str
    messages: list[Message]
    source: str
    score: float | None
    number: int
    tools: list[dict[str, Any]] | None = None


def content_id(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
    """A hash of what is said: the same conversation has the same id anywhere."""
    said: list[Any] = [(each["role"], each["content"]) for each in messages]
    calls = [each["tool_calls"] for each in messages if "tool_calls" in each]
    if calls or tools:
        said += [calls, tools]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()

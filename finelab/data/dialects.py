"""The forms in which people keep conversations, detected row by row, as one list of messages.

ShareGPT (`from`/`value`) and messages (`role`/`content`) in a column `conversations` or `messages`;
`prompt`/`completion`; Alpaca (`instruction`, `input`, `output`); Dolly (`instruction`, `context`,
`response`).
"""

from __future__ import annotations

from typing import Any

from finelab.data.conversation import Message

ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
}
COLUMNS = ("conversations", "messages")
TURN_KEYS = (("from", "value"), ("role", "content"))
PAIRS = (("instruction", "input", "output"), ("instruction", "context", "response"))  # Alpaca, Dolly


class Unusable(Exception):
    """A row that cannot be saved; the text is the reason it is counted under."""


def to_messages(row: Any) -> list[Message]:
    """A row's turns with the roles system, user and assistant; Unusable when it has none."""
    if isinstance(row, str):
        raise Unusable("not valid JSON")
    if not isinstance(row, dict):
        raise Unusable("not an object")
    for column in COLUMNS:
        if row.get(column) is not None:
            return _turns(row[column])
    if "prompt" in row and "completion" in row:
        return _side(row["prompt"], "user") + _side(row["completion"], "assistant")
    for instruction, context, answer in PAIRS:
        if instruction in row and answer in row:
            question = "\n\n".join(filter(None, (_text(row[instruction]), _text(row.get(context) or ""))))
            return [_message("user", question), _message("assistant", _text(row[answer]))]
    raise Unusable("no column conversations or messages")


def _turns(turns: Any) -> list[Message]:
    if not isinstance(turns, list):
        raise Unusable("conversation is not a list")
    if not turns:
        raise Unusable("empty conversation")
    return [_turn(turn) for turn in turns]


def _turn(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise Unusable("turn is not an object")
    for role_key, content_key in TURN_KEYS:
        if role_key in turn:
            return _message(_role(turn[role_key]), _text(turn.get(content_key)))
    raise Unusable("turn without from or role")


def _side(side: Any, role: str) -> list[Message]:
    """A prompt or a completion: text, or turns of its own."""
    return [_message(role, side)] if isinstance(side, str) else _turns(side)


def _role(role: Any) -> str:
    if not isinstance(role, str) or role.strip().lower() not in ROLES:
        raise Unusable(f"role {str(role)[:40]!r} is not known")
    return ROLES[role.strip().lower()]


def _text(content: Any) -> str:
    """Text as it is, or the text of a list of parts; a part that is no text cannot be rendered."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Unusable("content is not text")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise Unusable(f"content has a part that is not text ({str(kind)[:40]})")
    return "\n".join(part["text"] for part in content)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}

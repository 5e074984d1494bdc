"""The forms in which people keep conversations, detected row by row, as one list of messages.

Turns in a column `conversations`, `conversation` or `messages`: ShareGPT (`from`/`value`) or messages
(`role`/`content`), also mixed, also as the JSON text that a csv file holds. One question and one
answer in columns of their own: `prompt`/`completion`, `question`/`answer`, Alpaca, Dolly. Columns may be
written in capitals. Tool calls as OpenAI writes them, as bare objects, or as the text of a `function_call`
turn.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from finelab.data.conversation import Message

CALL = "function_call"  # the role of a turn that is nothing but tool calls
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bing", "bard", "ai"), "assistant"),
    **dict.fromkeys((CALL, "tool_call"), CALL),
    **dict.fromkeys(
        ("tool", "observation", "ipython", "function", "function_response", "tool_response"), "tool"
    ),
}
COLUMNS = ("conversations", "conversation", "messages")
# question, what belongs to it, answer
PAIRS = (
    ("prompt", None, "completion"),
    ("prompt", None, "response"),
    ("instruction", "input", "output"),  # Alpaca
    ("instruction", "context", "response"),  # Dolly
    ("question", None, "answer"),
    ("question", None, "response"),  # OpenOrca
    ("input", None, "output"),
)
MEDIA_COLUMNS = ("image", "images", "audio", "audios", "video", "videos")
MEDIA = ("image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url")
# What `str` makes of a list of turns, as pandas writes it into a csv file.
PYTHON = re.compile(r"\s*\[\s*\{\s*'(?:role|from|content|value)'\s*:.*\]\s*", re.DOTALL)
NAMED = 8  # columns that a reason names


class Unusable(Exception):
    """A row that cannot be saved; the text is the reason it is counted under."""


def to_messages(row: Any) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """A row's turns with the roles system, user, assistant and tool, and its tool definitions.

    The text is as it came; an answer may have `reasoning` beside it. Unusable when the row has no turns,
    one that cannot be read, or one that is not to be learned.
    """
    if isinstance(row, list):
        raise Unusable("row is a list, not an object; name a file that is one list .json")
    if not isinstance(row, dict):
        raise Unusable("row is not an object")
    row = by_name(row)
    for column in MEDIA_COLUMNS:
        if row.get(column):
            raise Unusable(f"the column {column} is filled, and only text can be learned")
    messages = _conversation(row)
    systems = [row.get("system"), row.get("system_prompt")]
    system = next((text for text in systems if isinstance(text, str) and text.strip()), None)
    if system and _message("system", system) != messages[0]:
        messages = [_message("system", system), *messages]
    return messages, _tools(row.get("tools")) or _tools(row.get("functions"))


def by_name(row: dict[str, Any]) -> dict[str, Any]:
    """The row's columns by name in small letters, without those that hold NaN, pandas' word for nothing."""
    small = {name.strip().lower(): value for name, value in row.items()}
    small |= {name: value for name, value in row.items() if name in small}  # written so, it comes first
    return {name: value for name, value in small.items() if not _is_nan(value)}


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _conversation(row: dict[str, Any]) -> list[Message]:
    for column in COLUMNS:
        if _is_filled(turns := row.get(column)):
            _refuse_python(turns, column)
            return _turns(_parsed(turns, "conversation is not JSON"))
    for question, context, answer in PAIRS:
        columns = [column for column in (question, context) if column and _is_filled(row.get(column))]
        asked = {column: row[column] for column in columns}
        if question in row and asked and _is_filled(row.get(answer)):
            return [*_history(row.get("history")), *_asked(asked), *_side(row[answer], answer, "assistant")]
    for question, _, _ in PAIRS:
        if _is_filled(row.get(question)):
            raise Unusable(f"{question} without an answer")
    filled = [repr(column[:40]) for column in row if _is_filled(row[column])]
    if not filled:
        raise Unusable("no column is filled")
    more = ", ..." if len(filled) > NAMED else ""
    raise Unusable(f"no conversation column among: {', '.join(filled[:NAMED])}{more}")


def _is_filled(value: Any) -> bool:
    """Whether there is something in the column: what a row lacks is null in Arrow, "" in csv, or []."""
    return value is not None and value not in ("", [])


def _refuse_python(value: Any, column: str) -> None:
    if isinstance(value, str) and PYTHON.fullmatch(value):
        raise Unusable(f"{column} holds turns written by Python, not JSON; save as .jsonl or .parquet")


def _first(mapping: dict[str, Any], *keys: str) -> Any:
    """The first value that is not null."""
    for key in keys:
        if (value := mapping.get(key)) is not None:
            return value
    return None


def _turns(turns: Any) -> list[Message]:
    if not isinstance(turns, list):
        raise Unusable("conversation is not a list")
    if not turns:
        raise Unusable("empty conversation")
    return [_turn(turn) for turn in turns]


def _turn(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise Unusable("turn is not an object")
    role = _role(_first(turn, "from", "role"))
    content = _first(turn, "value", "content")
    if role == CALL:
        return _calling("", _calls(content))
    if role == "tool":
        return _message(role, _result(content))
    return _answer(turn, content) if role == "assistant" else _message(role, _text(content))


def _answer(turn: dict[str, Any], content: Any) -> Message:
    if turn.get("weight") == 0:  # OpenAI's way to say so; labels here are on for every answer
        raise Unusable("an answer has weight 0, which says not to train on it")
    called = turn.get("tool_calls") or turn.get("function_call")
    if called:
        answer = _calling("" if content is None else _text(content), _calls(called))
    else:
        answer = _message("assistant", _text(content))
    reasoning = turn.get("reasoning_content")
    return answer | {"reasoning": reasoning} if reasoning else answer


def _role(role: Any) -> str:
    if role is None:
        raise Unusable("turn without from or role")
    if not isinstance(role, str):
        raise Unusable("role is not text")
    known = ROLES.get(role) or ROLES.get(role.strip().lower().replace("-", "_"))
    if known is None:
        raise Unusable(f"role {role[:40]!r} is not known")
    return known


def _asked(asked: dict[str, Any]) -> list[Message]:
    """The question with what belongs to it, by their columns; a prompt may be turns of its own."""
    if len(asked) == 1:
        [(column, side)] = asked.items()
        return _side(side, column, "user")
    return [_message("user", "\n\n".join(_text(each) for each in asked.values()))]


def _side(side: Any, column: str, role: str) -> list[Message]:
    """The turns of one side, also as the JSON text that a csv file holds, or its text as one turn."""
    if isinstance(side, (int, float)):
        raise Unusable(f"{column} is a number, not text")
    _refuse_python(side, column)
    turns = _written_turns(side) if isinstance(side, str) else side
    return _turns(turns) if isinstance(turns, list) else [_message(role, _text(side))]


def _written_turns(text: str) -> Any:
    """The turns that a text is JSON of; None for any other text, also for JSON of other things."""
    if not text.lstrip().startswith("["):
        return None
    try:
        turns = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return turns if turns and all(_is_turn(each) for each in turns) else None


def _is_turn(value: Any) -> bool:
    keys = value.keys() if isinstance(value, dict) else ()
    return any(key in keys for key in ("role", "from")) and any(
        key in keys for key in ("content", "value", "tool_calls")
    )


def _history(history: Any) -> list[Message]:
    """Alpaca's earlier exchanges: a list of pairs of question and answer."""
    pairs = _parsed(history, "history is not JSON") if history else []
    if not isinstance(pairs, list) or not all(isinstance(each, list) and len(each) == 2 for each in pairs):
        raise Unusable("history is not a list of pairs")
    sides = ("user", "assistant")
    return [_message(role, _text(text)) for pair in pairs for role, text in zip(sides, pair, strict=True)]


def _text(content: Any) -> str:
    """Text as it is, or a list of parts joined as the server does; a part that is no text is Unusable."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Unusable("content is not text")
    return "".join(part if isinstance(part, str) else _part(part) for part in content)


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if kind == "text" else None
    if not isinstance(text, str):
        name = repr(kind[:40]) if isinstance(kind, str) else "without a type"
        raise Unusable(f"content has a part that is not text ({name})")
    return text


def _result(content: Any) -> str:
    """What a tool gave back: text, text parts, or any other value as JSON."""
    if isinstance(content, str):
        return content
    if content is None:
        raise Unusable("content is not text")
    if isinstance(content, list) and content and all(_is_part(each) for each in content):
        return _text(content)
    return json.dumps(content, ensure_ascii=False, default=str)


def _is_part(value: Any) -> bool:
    kind = value.get("type") if isinstance(value, dict) else None
    return isinstance(kind, str) and (kind in MEDIA or (kind == "text" and "text" in value))


def _calls(called: Any) -> list[dict[str, Any]]:
    return [_call(each) for each in _objects(called, "tool call")]


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = _function(call)
    arguments = _first(function, "arguments", "parameters")  # Llama's own name for them
    arguments = _parsed(arguments, "tool call arguments are not a JSON object")
    if not isinstance(arguments, dict):
        raise Unusable("tool call arguments are not a JSON object")
    return _typed({"name": _name(function, "tool call"), "arguments": arguments})


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    """Tool definitions with the type and the envelope that chat templates expect."""
    definitions = [_function(each) for each in _objects(tools, "tool definition")] if tools else []
    return [_typed(each | {"name": _name(each, "tool definition")}) for each in definitions] or None


def _function(value: dict[str, Any]) -> dict[str, Any]:
    """The function in its envelope, or an object that came without one."""
    inner = value.get("function")
    return inner if isinstance(inner, dict) else value


def _typed(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": function}


def _name(function: dict[str, Any], what: str) -> str:
    name = function.get("name")
    name = name.strip() if isinstance(name, str) else ""
    if not name or not name.isprintable():
        raise Unusable(f"{what} without a name")
    return name


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    """The objects of a list, or a single one; any of them may be JSON text."""
    value = _parsed(value, f"{what} is not JSON")
    found = [_parsed(each, f"{what} is not JSON") for each in (value if isinstance(value, list) else [value])]
    if not all(isinstance(each, dict) for each in found):
        raise Unusable(f"{what} is not an object")
    return found


def _parsed(value: Any, reason: str) -> Any:
    """What the JSON text says; a value that is no text as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Unusable(reason) from None


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _calling(content: str, calls: list[dict[str, Any]]) -> Message:
    message = _message("assistant", content)
    return message | {"tool_calls": calls} if calls else message

"""Any row to one canonical form, every repair counted, every row that cannot be saved named.

What comes out: at most one system turn, then questions and answers in turn, the last one an answer.
Between a question and its answer may stand tool calls, each followed by its results.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from finelab.data.conversation import Conversation, Message, content_id
from finelab.data.dialects import Unusable, by_name, to_messages

if TYPE_CHECKING:
    from finelab.data.read import Row

# Control characters, lone surrogates, unassigned planes: a byte that a vocabulary lacks (SmolLM2's
# lacks 0x16) becomes its unknown token, which is a control token.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\U00040000-\U000dffff]")
# Zero-width characters stay inside a text (emoji and many scripts need them) but do not make one.
VISIBLE = re.compile("[^\\s\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
MAX_DEPTH = 100  # objects and lists inside each other in tool calls and definitions
# The turns that may follow each turn, by its letter: system, user, assistant, calling, tool.
FOLLOWING = {"start": "su", "s": "u", "u": "ac", "a": "u", "c": "t", "t": "act"}

# Where in the file the reader met an error; without it, equal errors are counted as one reason.
PLACE = re.compile(r"^line [\d,]+: |\bbyte [\d,]+ is | \(.*")

Repairs = dict[str, tuple[str, str]]  # one row's: kind -> the text before and after


class Dropped(NamedTuple):
    """A row that is not used: its number, why, and the row as it was read.

    For a row that could not be read the value is its `error` and what there is of its `text`.
    """

    number: int
    reason: str
    value: Any


class Example(NamedTuple):
    """A repair as it was made: the row's number, and the place before and after."""

    number: int
    before: str
    after: str


@dataclass
class Standardized:
    """The conversations kept, and what happened to the rest; row numbers count from 1.

    `repaired` counts the kept rows that needed each kind of repair, `examples` shows the first.
    """

    conversations: list[Conversation] = field(default_factory=list)
    rows_in: int = 0
    dropped: list[Dropped] = field(default_factory=list)
    repaired: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Example] = field(default_factory=dict)

    def add(self, later: Standardized) -> None:
        """Append the result of the rows that follow."""
        self.conversations += later.conversations
        self.rows_in += later.rows_in
        self.dropped += later.dropped
        self.repaired += later.repaired
        for kind, example in later.examples.items():
            self.examples.setdefault(kind, example)

    def _keep(self, conversation: Conversation, repairs: Repairs) -> None:
        self.conversations.append(conversation)
        self.repaired.update(repairs.keys())
        for kind, texts in repairs.items():
            if kind not in self.examples:
                self.examples[kind] = Example(conversation.number, *_excerpts(*texts))


def standardize(
    rows: Iterable[Row], control: re.Pattern[str] | Iterable[str], tool_calls: bool = True
) -> Standardized:
    """Bring every row to the canonical form, or drop it with a reason; never raises for a bad row.

    `control` are the tokenizer's `control_tokens`, or their `control_pattern`: their text in a row is
    broken up, so that nobody can forge a role. Without `tool_calls`, for a chat template that cannot
    render them, a call becomes the answer's text and tool definitions are left out.
    """
    pattern = control if isinstance(control, re.Pattern) else control_pattern(control)
    result = Standardized()
    for row in rows:
        result.rows_in += 1
        if row.error is not None:
            unread = {"error": row.error, "text": row.value}
            result.dropped.append(Dropped(row.number, PLACE.sub("", row.error), unread))
            continue
        repairs: Repairs = {}
        try:
            conversation = _conversation(row, pattern, tool_calls, repairs)
        except Unusable as reason:
            result.dropped.append(Dropped(row.number, str(reason), row.value))
        except RecursionError:
            result.dropped.append(Dropped(row.number, "nested too deeply", None))
        else:
            result._keep(conversation, repairs)
    return result


def control_tokens(tokenizer: Any) -> list[str]:
    """The text of every token that is not text, such as `<|im_end|>`."""
    added = tokenizer.added_tokens_decoder.values()
    return [token.content for token in added if token.special]


def control_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the control tokens in a text, by its first character.

    Only that one is matched, so that a token inside another is found too; a token of a single
    character cannot be broken up and is left out.
    """
    rests: defaultdict[str, list[str]] = defaultdict(list)
    for token in tokens:
        if len(token) > 1:
            rests[token[0]].append(re.escape(token[1:]))
    found = [f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items()]
    return re.compile("|".join(found) or r"(?!)")


def break_up(content: str, control: re.Pattern[str]) -> str:
    """The text with a space inside each control token, which makes it plain text: `< |im_end|>`."""
    return control.sub(lambda found: f"{found[0]} ", content)


def clean(content: str, control: re.Pattern[str]) -> str:
    """What a message's text becomes before it is rendered, in training and in chat alike."""
    return break_up(UNPRINTABLE.sub("", content).strip(), control)


def _conversation(row: Row, control: re.Pattern[str], tool_calls: bool, repairs: Repairs) -> Conversation:
    messages, tools = to_messages(row.value)
    messages = [_cleaned(message, control, repairs) for message in messages]
    if tools:
        tools = _safe_value(tools, control, repairs)
    if not tool_calls:
        messages = [_without_calls(message, repairs) for message in messages]
        if tools:
            repairs["tool definitions left out"] = (json.dumps(tools, ensure_ascii=False), "")
            tools = None
    messages = _repaired(messages, repairs)
    _check_order(messages, FOLLOWING if tool_calls else FOLLOWING | {"a": "ut"})
    columns = by_name(row.value)
    return Conversation(
        id=content_id(messages, tools),
        messages=messages,
        source=_source(columns.get("source")),
        score=_score(columns.get("score")),
        number=row.number,
        tools=tools,
    )


def _cleaned(message: Message, control: re.Pattern[str], repairs: Repairs) -> Message:
    safe = _safe(message["content"], control, repairs)
    content = safe.strip()
    if content != safe:
        repairs.setdefault("white space trimmed", (safe, content))
    cleaned: Message = {"role": message["role"], "content": content}
    if "reasoning" in message:
        repairs.setdefault("reasoning left out", (str(message["reasoning"]), ""))
    if "tool_calls" in message:
        cleaned["tool_calls"] = _safe_value(message["tool_calls"], control, repairs)
    return cleaned


def _safe(text: str, control: re.Pattern[str], repairs: Repairs) -> str:
    """The text as printable, plain text."""
    printable = UNPRINTABLE.sub("", text)
    if printable != text:
        repairs.setdefault("unprintable characters removed", (text, printable))
    plain = break_up(printable, control)
    if plain != printable:
        repairs.setdefault("control token broken up", (printable, plain))
    return plain


def _safe_value(value: Any, control: re.Pattern[str], repairs: Repairs, depth: int = 0) -> Any:
    """The JSON value with every text and key in it safe; Unusable when it is no JSON value."""
    if depth > MAX_DEPTH:
        raise Unusable("nested too deeply")
    if isinstance(value, str):
        return _safe(value, control, repairs)
    if isinstance(value, list):
        return [_safe_value(each, control, repairs, depth + 1) for each in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {
            _safe(key, control, repairs): _safe_value(each, control, repairs, depth + 1)
            for key, each in value.items()
        }
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise Unusable("tool call or definition with a value that is not JSON")


def _without_calls(message: Message, repairs: Repairs) -> Message:
    """The message with its tool calls written as text, one a line."""
    if "tool_calls" not in message:
        return message
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message["tool_calls"]]
    content = "\n".join(filter(None, [message["content"], *calls]))
    repairs.setdefault("tool call written as text", (message["content"], content))
    return {"role": message["role"], "content": content}


def _repaired(messages: list[Message], repairs: Repairs) -> list[Message]:
    """The turns from the first question to the last answer, none empty, no role twice in a row."""
    messages = _merged(_without_empty_turns(messages, repairs), repairs)
    system = messages[:1] if messages and messages[0]["role"] == "system" else []
    turns = messages[len(system) :]
    if any(turn["role"] == "system" for turn in turns):
        raise Unusable("system turn in the middle")
    if turns and turns[0]["role"] == "assistant":
        repairs["leading answer dropped"] = (turns[0]["content"], "")
        turns = list(itertools.dropwhile(lambda turn: turn["role"] != "user", turns))
    while turns and turns[-1]["role"] != "assistant":
        what = "question" if turns[-1]["role"] == "user" else "tool result"
        repairs[f"trailing {what} dropped"] = (turns[-1]["content"], "")
        turns = turns[:-1]
    if not turns:
        raise Unusable("no answer to a question")
    return system + turns


def _without_empty_turns(messages: list[Message], repairs: Repairs) -> list[Message]:
    """Drop turns with nothing to see; with an empty answer goes its question, which nobody answered.

    A turn that calls a tool says something, and a tool may give back nothing.
    """
    kept: list[Message] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool" or "tool_calls" in message or VISIBLE.search(content):
            kept.append(message)
            continue
        repairs.setdefault(f"empty {role} turn dropped", (content, ""))
        while role == "assistant" and kept and kept[-1]["role"] == "user":
            kept.pop()
    return kept


def _merged(messages: list[Message], repairs: Repairs) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        if merged and _letter(merged[-1]) == _letter(message) in ("s", "u", "a"):
            before = merged[-1]["content"]
            joined = f"{before}\n\n{message['content']}"
            repairs.setdefault("same role merged", (before, joined))
            merged[-1] = {"role": message["role"], "content": joined}
        else:
            merged.append(message)
    return merged


def _check_order(messages: list[Message], following: dict[str, str]) -> None:
    """Unusable when a turn follows one that it must not follow."""
    letters = map(_letter, messages)
    for before, after in itertools.pairwise(itertools.chain(["start"], letters)):
        if after not in following[before]:
            raise Unusable(_disorder(before, after))


def _disorder(before: str, after: str) -> str:
    if after == "t":
        return "tool result without a tool call"
    if before == "c":
        return "tool call without a result"
    return "tool result without an answer" if before == "t" else "tool call behind an answer"


def _letter(message: Message) -> str:
    role: str = message["role"]
    return "c" if "tool_calls" in message else role[0]


def _source(value: Any) -> str:
    text = UNPRINTABLE.sub("", value).strip() if isinstance(value, str) else ""
    return text or "unknown"


def _score(value: Any) -> float | None:
    """The number, also as text; None for what is no finite number."""
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None


def _excerpts(before: str, after: str, length: int = 80) -> tuple[str, str]:
    """Both texts from a little before the place in which they differ."""
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
    start = max(0, sum(1 for _ in shared) - length // 4)
    return before[start : start + length], after[start : start + length]

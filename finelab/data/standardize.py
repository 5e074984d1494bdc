"""Any row to one canonical form, every repair counted, every row that cannot be saved named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from finelab.data.conversation import Conversation, Message, content_id
from finelab.data.dialects import Unusable, to_messages
from finelab.errors import LabError

# Control characters, lone surrogates, unassigned planes: a byte that a vocabulary lacks (SmolLM2's
# lacks 0x16) becomes its unknown token, which is a control token.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\U00040000-\U000dffff]")


@dataclass
class Standardized:
    """The conversations kept, and what happened to the rest; row numbers count from 1."""

    conversations: list[Conversation] = field(default_factory=list)
    rows_in: int = 0
    dropped: list[tuple[int, str]] = field(default_factory=list)
    repaired: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def dropped_counts(self) -> Counter[str]:
        """How many rows were dropped for each reason."""
        return Counter(reason for _, reason in self.dropped)

    def repair(self, kind: str, before: str, after: str) -> None:
        """Count a repair and keep its first example."""
        self.repaired[kind] += 1
        self.examples.setdefault(kind, (before, after))


def standardize(
    rows: Iterable[dict[str, Any] | str],
    control: Iterable[str],
    max_dropped_share: float = 1.0,
) -> Standardized:
    """Bring every row to user / assistant turns that end with an answer.

    `control` are the tokenizer's `control_tokens`: their text inside a message is broken up, so
    that nobody can forge a role. LabError when more than `max_dropped_share` of the rows are lost.
    """
    result = Standardized()
    pattern = control_pattern(control)
    for number, row in enumerate(rows, start=1):
        result.rows_in += 1
        try:
            messages = _repaired(to_messages(row), pattern, result)
        except Unusable as reason:
            result.dropped.append((number, str(reason)))
            continue
        assert isinstance(row, dict)
        result.conversations.append(
            Conversation(
                id=content_id(messages),
                messages=messages,
                source=_text_or(row.get("source"), "unknown"),
                score=row["score"] if isinstance(row.get("score"), float) else None,
                number=number,
            )
        )
    _gate(result, max_dropped_share)
    return result


def control_tokens(tokenizer: Any) -> list[str]:
    """The text of every token that is not text, such as `<|im_end|>`."""
    added = tokenizer.added_tokens_decoder.values()
    return [token.content for token in added if token.special]


def control_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the control tokens in a text."""
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


def break_up(content: str, control: re.Pattern[str]) -> str:
    """The text with a space inside each control token, which makes it plain text: `< |im_end|>`."""
    return control.sub(lambda found: f"{found[0][0]} {found[0][1:]}", content)


def clean(content: str, control: re.Pattern[str]) -> str:
    """What a message's text becomes before it is rendered, in training and in chat alike."""
    return break_up(UNPRINTABLE.sub("", content).strip(), control)


def limit(conversations: list[Conversation], rows: int | None) -> list[Conversation]:
    """`rows` conversations picked by content hash, in their old order; all of them without a limit."""
    if rows is None or len(conversations) <= rows:
        return conversations
    picked = {each.id for each in sorted(conversations, key=lambda each: each.id)[:rows]}
    return [each for each in conversations if each.id in picked][:rows]


def _repaired(messages: list[Message], control: re.Pattern[str], result: Standardized) -> list[Message]:
    """The messages after every repair, in an order in which one repair cannot undo another."""
    messages = [_clean(message, control, result) for message in messages]
    messages = _without_empty_turns(messages, result)
    messages = _merged(messages, result)
    system = messages[:1] if messages and messages[0]["role"] == "system" else []
    turns = messages[len(system) :]
    if any(turn["role"] == "system" for turn in turns):
        raise Unusable("system turn in the middle")
    while turns and turns[0]["role"] == "assistant":
        result.repair("leading answer dropped", turns[0]["content"][:80], "")
        turns = turns[1:]
    if turns and turns[-1]["role"] == "user":
        result.repair("trailing question dropped", turns[-1]["content"][:80], "")
        turns = turns[:-1]
    if not turns:
        raise Unusable("no answer to a question")
    return system + turns


def _clean(message: Message, control: re.Pattern[str], result: Standardized) -> Message:
    printable = UNPRINTABLE.sub("", message["content"])
    if printable != message["content"]:
        result.repair("unprintable characters removed", message["content"][:40], printable[:40])
    content = printable.strip()
    if content != printable:
        result.repair("white space trimmed", printable[:40], content[:40])
    safe = break_up(content, control)
    if safe != content:
        result.repair("control token broken up", content[:80], safe[:80])
    return {"role": message["role"], "content": safe}


def _without_empty_turns(messages: list[Message], result: Standardized) -> list[Message]:
    """Drop empty turns; with an empty answer goes its question, which nobody answered."""
    kept: list[Message] = []
    for message in messages:
        if message["content"]:
            kept.append(message)
            continue
        result.repair(f"empty {message['role']} turn dropped", "", "")
        if message["role"] == "assistant" and kept and kept[-1]["role"] == "user":
            kept.pop()
    return kept


def _merged(messages: list[Message], result: Standardized) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"]:
            joined = f"{merged[-1]['content']}\n\n{message['content']}"
            result.repair("same role merged", message["content"][:80], joined[:80])
            merged[-1] = {"role": message["role"], "content": joined}
        else:
            merged.append(message)
    return merged


def _text_or(value: Any, default: str) -> str:
    return value if isinstance(value, str) and value else default


def _gate(result: Standardized, max_dropped_share: float) -> None:
    lost = len(result.dropped)
    if not result.conversations or lost > max_dropped_share * result.rows_in:
        reasons = ", ".join(f"{n} x {why}" for why, n in result.dropped_counts.most_common(5))
        raise LabError(
            f"{lost} of {result.rows_in} rows cannot be used ({reasons}); expected `conversations` "
            "with from/value, `messages` with role/content, prompt/completion or instruction/output. "
            f"The limit is data.max_dropped_share = {max_dropped_share}."
        )

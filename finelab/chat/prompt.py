"""A chat prompt: rendered as in training, so that the model sees what it learned on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from finelab.data import conversation, render
from finelab.data.conversation import Message
from finelab.data.standardize import clean, control_pattern, control_tokens


def render_prompt(
    tokenizer: Any, messages: list[Message], date_string: str, add_generation_prompt: bool = True
) -> str:
    """The text the model sees: the trained template, with control tokens inside the messages broken up."""
    control = control_pattern(control_tokens(tokenizer))
    safe = [{"role": each["role"], "content": clean(each["content"], control)} for each in messages]
    return render(tokenizer, safe, date_string, add_generation_prompt)


def plain_rows(
    rows: Iterable[Mapping[str, Any]], per_source: int
) -> Iterator[tuple[Mapping[str, Any], list[Message]]]:
    """The first rows of each source and their messages, without those that were cut or that have tools."""
    taken: Counter[str] = Counter()
    for row in rows:
        if taken[row["source"]] == per_source or row.get("truncated"):
            continue
        said = conversation(row)
        if not said.tools and all(set(each) == {"role", "content"} for each in said.messages):
            taken[row["source"]] += 1
            yield row, said.messages

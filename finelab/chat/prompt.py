"""A chat prompt: rendered as in training, so that the model sees what it learned on."""

from __future__ import annotations

from typing import Any

from finelab.data import render
from finelab.data.conversation import Message
from finelab.data.standardize import clean, control_pattern, control_tokens


def render_prompt(
    tokenizer: Any, messages: list[Message], date_string: str, add_generation_prompt: bool = True
) -> str:
    """The text the model sees: the trained template, with control tokens inside the messages broken up."""
    control = control_pattern(control_tokens(tokenizer))
    safe = [{"role": each["role"], "content": clean(each["content"], control)} for each in messages]
    return render(tokenizer, safe, date_string, add_generation_prompt)

"""The model's own chat template: rendered text, and where in it the answers stand.

Training and serving render with the same function, so a served prompt is a trained prompt.
"""

from __future__ import annotations

from typing import Any

from finelab.data.conversation import Message
from finelab.errors import LabError


def render(
    tokenizer: Any, messages: list[Message], date_string: str, add_generation_prompt: bool = False
) -> str:
    """The conversation as text. `date_string` fixes the date that Llama's template would take from today."""
    text: str = tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        date_string=date_string,
    )
    return text


def trained_spans(
    tokenizer: Any, messages: list[Message], date_string: str
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered text and, for each answer, the characters to learn: its content and end token.

    An answer begins where the prompt for it ends: the template is asked for both, so this holds for
    any template in which they agree, and LabError says when they do not.
    """
    text = render(tokenizer, messages, date_string)
    end_token = tokenizer.eos_token
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:index], date_string, add_generation_prompt=True)
        end = text.find(end_token, len(prompt)) + len(end_token)
        trained = text[len(prompt) : end]
        if not text.startswith(prompt) or trained != message["content"].strip() + end_token:
            raise LabError(
                "the chat template does not put the answer right behind its own prompt, so it is "
                f"unknown what to train on: expected {message['content'][:40]!r} and {end_token!r} "
                f"after the prompt, found {trained[:60]!r}."
            )
        spans.append((len(prompt), end))
    return text, spans

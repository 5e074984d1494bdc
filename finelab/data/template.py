"""The model's own chat template: rendered text, and where in it the answers stand.

Training and serving render with the same function, so a served prompt is a trained prompt.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from jinja2 import TemplateError

from finelab.data.conversation import Message
from finelab.data.dialects import Unusable
from finelab.data.standardize import control_pattern, control_tokens
from finelab.errors import LabError

Span = tuple[int, int]  # characters of a text, from and to

# Odd text: a template that would change any of it cannot be used.
ODD = '{{ x }} {% if y %} <think>no</think> {"a": [1]}\n\n  - ```py\n\tb\n``` \\n 👋🏽 שלום 你好。'
SYSTEM: Message = {"role": "system", "content": ODD}
QUESTION: Message = {"role": "user", "content": ODD}
ANSWER: Message = {"role": "assistant", "content": f"Well. {ODD}"}
PROBES = ([QUESTION, ANSWER], [QUESTION, ANSWER] * 3, [SYSTEM, QUESTION, ANSWER, QUESTION, ANSWER])

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Kyiv"}}}
CALL_PARTS = ("weather", "city", "Kyiv")
CALL_PROBE: list[Message] = [
    QUESTION,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain"},
    ANSWER,
]


def render(
    tokenizer: Any,
    messages: list[Message],
    date_string: str,
    add_generation_prompt: bool = False,
    tools: list[dict[str, Any]] | None = None,
) -> str:
    """The conversation as text. `date_string` fixes the date that Llama's template would take from today."""
    text: str = tokenizer.apply_chat_template(
        messages,
        tools=tools,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        date_string=date_string,
    )
    return text


def with_date(tokenizer: Any, date_string: str) -> Any:
    """A copy of the tokenizer whose template sets the date: servers pass none, and Llama's takes today's."""
    dated = copy.copy(tokenizer)
    if isinstance(tokenizer.chat_template, str) and "date_string" in tokenizer.chat_template:
        fixed = json.dumps(date_string, ensure_ascii=False)
        dated.chat_template = f"{{%- set date_string = {fixed} %}}{tokenizer.chat_template}"
    return dated


def trained_spans(
    tokenizer: Any, messages: list[Message], date_string: str, tools: list[dict[str, Any]] | None = None
) -> tuple[str, list[Span]]:
    """The rendered text and, for each answer, the characters to learn: its content and end token.

    An answer begins where the prompt for it ends: the template is asked for both, so this holds for
    any template in which they agree, and LabError says when they do not. It renders once for every
    answer; `ChatTemplate` finds the same with one rendering.
    """
    text = render(tokenizer, messages, date_string, tools=tools)
    end_token = tokenizer.eos_token
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:index], date_string, add_generation_prompt=True, tools=tools)
        end = text.find(end_token, len(prompt)) + len(end_token)
        trained = text[len(prompt) : end]
        if not text.startswith(prompt) or not _is_answer(trained, message, end_token):
            if other := _other_end(tokenizer, text, prompt, message):
                raise LabError(
                    f"the chat template ends answers with {other!r}, but the tokenizer's eos_token is "
                    f"{end_token!r}, so no end would be learned; take a model in which they are the same, or "
                    f"a copy of this one whose tokenizer_config.json has {other!r} for its eos_token."
                )
            raise LabError(
                "the chat template does not put the answer right behind its own prompt, so it is "
                f"unknown what to train on: expected {message['content'][:40]!r} and {end_token!r} "
                f"after the prompt, found {trained[:60]!r}."
            )
        spans.append((len(prompt), end))
    return text, spans


def _other_end(tokenizer: Any, text: str, prompt: str, message: Message) -> str | None:
    """The control token that stands right behind an answer."""
    said = prompt + message["content"].strip()
    behind = text[len(said) :].lstrip() if text.startswith(said) else ""
    return next(filter(behind.startswith, control_tokens(tokenizer)), None)


class ChatTemplate:
    """A tokenizer's chat template at one date, with the header that it writes before each answer.

    LabError for a template that changes what is said or whose answers cannot be told from the rest.
    `renders_tool_calls` says whether it writes tool calls down, to be learned like any answer,
    `renders_system` whether it writes a system turn or refuses it, rather than leave it out.
    """

    def __init__(self, tokenizer: Any, date_string: str) -> None:
        self.tokenizer = tokenizer
        self.date_string = date_string
        self.end_token: str = tokenizer.eos_token
        self.renders_system = True
        try:
            self.header = _answer_header(tokenizer, date_string)
            for probe in PROBES:
                self._check(probe)
        except TemplateError as error:
            raise LabError(f"the chat template does not take a plain conversation: {error}.") from error
        self.renders_tool_calls = self._renders_tool_calls()

    def spans(
        self, messages: list[Message], tools: list[dict[str, Any]] | None = None
    ) -> tuple[str, list[Span]]:
        """What `trained_spans` gives, from a single rendering, for messages as `standardize` makes them.

        These hold no control token, so a header in the text is always the template's own. Unusable
        when the template refuses the conversation, leaves out its system turn or does not write an answer
        as it is.
        """
        if messages[0]["role"] == "system" and not self.renders_system:
            raise Unusable("the chat template leaves out the system turn")
        try:
            text = render(self.tokenizer, messages, self.date_string, tools=tools)
        except TemplateError as error:
            raise Unusable(f"the chat template refuses it: {error}") from error
        spans = self._find(text, messages)
        if spans is None:
            raise Unusable("the chat template changes an answer or leaves out a part of it")
        return text, spans

    def _find(self, text: str, messages: list[Message]) -> list[Span] | None:
        """Every answer behind its header; None when headers and answers do not match."""
        spans = []
        start = end = 0
        for message in messages:
            if message["role"] != "assistant":
                continue
            start = text.find(self.header, end) + len(self.header)
            end = text.find(self.end_token, start) + len(self.end_token)
            if start < len(self.header) or not _is_answer(text[start:end], message, self.end_token):
                return None
            spans.append((start, end))
        return spans if text.find(self.header, end) < 0 else None

    def _check(self, probe: list[Message]) -> None:
        """LabError unless both ways to the answers agree; a template need not take a system turn."""
        try:
            text, spans = trained_spans(self.tokenizer, probe, self.date_string)
        except TemplateError:
            if probe[0] is SYSTEM:
                return
            raise
        if self._find(text, probe) != spans:
            raise LabError(
                f"the chat template does not write {self.header!r} before every answer and only there, "
                "so it is unknown what to train on; take another model or mend its chat template."
            )
        if text.count(ODD) < len(probe) - (probe[0] is SYSTEM):
            raise LabError(
                "the chat template leaves out or changes a part of a question, so it is unknown what is "
                "answered; take another model or mend its chat template."
            )
        self.renders_system &= text.count(ODD) >= len(probe)

    def _renders_tool_calls(self) -> bool:
        try:
            text, spans = trained_spans(self.tokenizer, CALL_PROBE, self.date_string)
        except (TemplateError, LabError):
            return False
        call = text[slice(*spans[0])]
        return self._find(text, CALL_PROBE) == spans and all(part in call for part in CALL_PARTS)


def _answer_header(tokenizer: Any, date_string: str) -> str:
    """What the template writes between a question and its answer, with a control token in it."""
    if not tokenizer.chat_template:
        raise LabError("the tokenizer has no chat template; take the model's Instruct version.")
    question = render(tokenizer, [QUESTION], date_string)
    prompt = render(tokenizer, [QUESTION], date_string, add_generation_prompt=True)
    if not prompt.startswith(question):
        raise LabError(
            "the chat template writes a question otherwise when an answer is to follow, so it is unknown "
            "where the answer begins; take another model or mend its chat template."
        )
    header = prompt.removeprefix(question)
    control = control_tokens(tokenizer)
    if tokenizer.eos_token not in control or not control_pattern(control).search(header):
        raise LabError(
            f"the chat template writes {header[-60:]!r} before an answer and the tokenizer ends it with "
            f"{tokenizer.eos_token!r}; expected control tokens in both, which no text can forge."
        )
    return header


def _is_answer(trained: str, message: Message, end_token: str) -> bool:
    """Whether a span's text is what the message says: its content, or its tool calls and what is beside them.

    Llama's template leaves out what is beside a call.
    """
    content = message["content"].strip()
    if "tool_calls" in message:
        said = [content, *(call["function"]["name"] for call in message["tool_calls"])]
        return trained.endswith(end_token) and all(text in trained for text in said)
    return bool(trained == content + end_token)

"""Answers in OpenAI's shapes, whole or as chunks of a stream, by the types of OpenAI's own client."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion_choice import Logprobs
from openai.types.completion_usage import PromptTokensDetails

from finelab.chat.engine import Answer
from finelab.chat.sampling import Token


@dataclass
class Choice:
    """What has come of one answer."""

    answer: Answer
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None


@dataclass(frozen=True)
class TokenText:
    """Tokens as text and bytes."""

    tokenizer: Any

    def text(self, id_: int) -> str:
        """The token's text; a part of a character is the replacement sign."""
        return str(self.tokenizer.decode([id_], clean_up_tokenization_spaces=False))

    def bytes(self, id_: int) -> list[int]:
        """The token's own bytes, also where it is only a part of a character."""
        letters = str(self.tokenizer.convert_ids_to_tokens(id_))
        if all(letter in self._byte for letter in letters):
            return [self._byte[letter] for letter in letters]
        return list(self.text(id_).encode())

    @cached_property
    def _byte(self) -> dict[str, int]:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        return {letter: byte for byte, letter in bytes_to_unicode().items()}


class Chat:
    """The shapes of `/v1/chat/completions`."""

    prefix = "chatcmpl"

    def __init__(self, model: str, fingerprint: str, words: TokenText) -> None:
        self.words = words
        self.head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, choices: Sequence[Choice], usage: CompletionUsage) -> dict[str, Any]:
        """The whole answer."""
        shaped = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "finish_reason": choice.finish,
                "logprobs": self.logprobs(choice.answer, choice.tokens),
            }
            for index, choice in enumerate(choices)
        ]
        return dumped(
            ChatCompletion(**self.head, object="chat.completion", choices=shaped, usage=usage)  # type: ignore[arg-type]
        )

    def first(self, index: int, choice: Choice) -> dict[str, Any]:
        """The chunk that names the role."""
        return self._chunk([{"index": index, "delta": {"role": "assistant", "content": ""}}])

    def more(self, index: int, choice: Choice, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        """A chunk of text."""
        shaped = {"index": index, "delta": {"content": text}}
        return self._chunk([shaped | {"logprobs": self.logprobs(choice.answer, tokens)}])

    def last(self, index: int, choice: Choice) -> dict[str, Any]:
        """The chunk that says why the answer ended."""
        return self._chunk([{"index": index, "delta": {}, "finish_reason": choice.finish}])

    def usage(self, usage: CompletionUsage) -> dict[str, Any]:
        """The chunk with the counts."""
        return self._chunk([], usage)

    def logprobs(self, answer: Answer, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """The tokens with their log-probabilities, if they were asked for."""
        if answer.sampling.logprobs is None:
            return None
        content = [
            self._token(each.id, each.logprob)
            | {"top_logprobs": [self._token(id_, value) for id_, value in each.top]}
            for each in tokens
        ]
        return {"content": content, "refusal": None}

    def _token(self, id_: int, logprob: float | None) -> dict[str, Any]:
        return {"token": self.words.text(id_), "bytes": self.words.bytes(id_), "logprob": logprob}

    def _chunk(self, choices: list[Any], usage: CompletionUsage | None = None) -> dict[str, Any]:
        choices = [{"finish_reason": None, "logprobs": None} | choice for choice in choices]
        counts = {"usage": usage} if usage else {}
        return dumped(
            ChatCompletionChunk(**self.head, object="chat.completion.chunk", choices=choices, **counts)  # type: ignore[arg-type]
        )


class Text(Chat):
    """The shapes of `/v1/completions`, where a chunk looks like the whole."""

    prefix = "cmpl"

    def __init__(self, model: str, fingerprint: str, words: TokenText, echo: bool) -> None:
        super().__init__(model, fingerprint, words)
        self.echo = echo

    def whole(self, choices: Sequence[Choice], usage: CompletionUsage) -> dict[str, Any]:
        """The whole answer."""
        shaped = [
            self._choice(index, choice, self._opening(choice) + choice.text, choice.tokens, choice.finish)
            for index, choice in enumerate(choices)
        ]
        return self._completion(shaped, usage)

    def first(self, index: int, choice: Choice) -> dict[str, Any]:
        """The chunk with the prompt if it is echoed, else with nothing."""
        return self._completion([self._choice(index, choice, self._opening(choice), ())])

    def more(self, index: int, choice: Choice, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        """A chunk of text."""
        return self._completion([self._choice(index, choice, text, tokens)])

    def last(self, index: int, choice: Choice) -> dict[str, Any]:
        """The chunk that says why the answer ended."""
        return self._completion([self._choice(index, choice, "", (), choice.finish)])

    def usage(self, usage: CompletionUsage) -> dict[str, Any]:
        """The chunk with the counts."""
        return self._completion([], usage)

    def _opening(self, choice: Choice) -> str:
        return str(self.words.tokenizer.decode(choice.answer.prompt)) if self.echo else ""

    def _choice(
        self, index: int, choice: Choice, text: str, tokens: Sequence[Token], finish: str | None = None
    ) -> dict[str, Any]:
        logprobs = None
        if choice.answer.sampling.logprobs is not None:
            logprobs = self._columns(choice, tokens)
        return {"index": index, "text": text, "finish_reason": finish, "logprobs": logprobs}

    def _columns(self, choice: Choice, tokens: Sequence[Token]) -> Logprobs:
        """Tokens, log-probabilities and places in the text, as lists of their own."""
        texts = [self.words.text(each.id) for each in tokens]
        seen = choice.tokens[: len(choice.tokens) - len(tokens)] if tokens else choice.tokens
        place = sum(len(self.words.text(each.id)) for each in seen)
        offsets = []
        for text in texts:
            offsets.append(place)
            place += len(text)
        tops = [{self.words.text(id_): value for id_, value in each.top} for each in tokens]
        values = [each.logprob for each in tokens]
        return Logprobs(tokens=texts, token_logprobs=values, top_logprobs=tops, text_offset=offsets)  # type: ignore[arg-type]

    def _completion(self, choices: list[Any], usage: CompletionUsage | None = None) -> dict[str, Any]:
        counts = {"usage": usage} if usage else {}
        # A chunk has no finish_reason yet, which the type does not foresee.
        shape = Completion.model_construct(
            None, **self.head, object="text_completion", choices=choices, **counts
        )  # type: ignore[arg-type]
        return dumped(shape)


def usage(choices: Sequence[Choice]) -> CompletionUsage:
    """The tokens read and made; a prompt that several answers share counts once."""
    prompts = {id(choice.answer.prompt): len(choice.answer.prompt) for choice in choices}
    cached = {id(choice.answer.prompt): choice.answer.cached for choice in choices}
    read, made = sum(prompts.values()), sum(choice.answer.generated for choice in choices)
    return CompletionUsage(
        prompt_tokens=read,
        completion_tokens=made,
        total_tokens=read + made,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(cached.values())),
    )


def dumped(shape: Any) -> dict[str, Any]:
    """A shape as JSON values, without what was never set."""
    return shape.model_dump(mode="json", exclude_unset=True)  # type: ignore[no-any-return]

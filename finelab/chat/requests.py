"""What clients may ask: OpenAI's fields with vLLM's additions, checked; unknown fields are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from finelab.chat.sampling import Sampling
from finelab.data.conversation import Message

Stop = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[list[int], Field(min_length=1)]


class ApiError(Exception):
    """What a client did wrong, as OpenAI's API says it."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class Request(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    seed: int | None = None
    stop: Stop | list[Stop] | None = None
    n: int | None = Field(None, ge=1, le=8)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, choice: int, vocabulary: int, logprobs: int | None, **defaults: float) -> Sampling:
        """How the tokens of choice number `choice` are drawn; what was left out is the default."""
        names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty")
        asked = {name: getattr(self, name) for name in (*names, "repetition_penalty", "min_tokens")}
        given = {name: value for name, value in asked.items() if value is not None}
        return Sampling(
            **defaults | given,  # type: ignore[arg-type]
            seed=None if self.seed is None else self.seed + choice,
            logit_bias=self._biases(vocabulary),
            logprobs=logprobs,
            ignore_eos=bool(self.ignore_eos),
        )

    def check(self) -> None:
        """ApiError for what is known and not offered here, and for fields that contradict each other."""
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "invalid_value", "stream_options needs stream: true", "stream_options")
        if len(self.stops) > 4:
            raise ApiError(400, "invalid_value", f"at most 4 stop strings, not {len(self.stops)}", "stop")

    def _biases(self, vocabulary: int) -> dict[int, float]:
        for key in self.logit_bias or {}:
            if not (key.isascii() and key.isdigit() and int(key) < vocabulary):
                message = f"logit_bias has the key {key!a}; expected a token id from 0 to {vocabulary - 1}"
                raise ApiError(400, "invalid_value", message, "logit_bias")
        return {int(key): value for key, value in (self.logit_bias or {}).items()}


class StreamOptions(BaseModel):
    """What a stream holds beside the text."""

    include_usage: bool | None = False


class TextPart(BaseModel):
    """A part of a message."""

    type: str
    text: str = ""


class ChatMessage(BaseModel):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None

    def plain(self, place: int) -> Message:
        """The turn as the template takes it; ApiError for parts that are not text."""
        param = f"messages.{place}.content"
        if self.content is None and self.role != "assistant":
            raise ApiError(400, "invalid_value", f"{param} is null; expected text", param)
        parts = self.content if isinstance(self.content, list) else []
        for part in parts:
            if part.type != "text":
                message = f"{param} has a part of type {part.type!a}; this model reads text only"
                raise ApiError(400, "unsupported", message, param)
        text = "".join(part.text for part in parts) if parts else self.content or ""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": encodable(text, param)}  # type: ignore[arg-type]


class ChatRequest(Request):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: Any = None
    response_format: dict[str, Any] | None = None

    def check(self) -> None:
        """As `Request.check`."""
        super().check()
        refuse("tools", self.tools, "this server calls no tools")
        refuse("functions", self.functions, "this server calls no functions")
        refuse("tool_choice", self.tool_choice not in (None, "none", "auto"), "this server calls no tools")
        asked = (self.response_format or {}).get("type", "text")
        refuse("response_format", asked != "text", "answers are free text here, without a schema")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "invalid_value", "top_logprobs needs logprobs: true", "top_logprobs")

    @property
    def turns(self) -> list[Message]:
        """The messages as the template takes them."""
        return [message.plain(place) for place, message in enumerate(self.messages)]


class CompletionRequest(Request):
    """`POST /v1/completions`."""

    prompt: str | TokenIds | Annotated[list[str] | list[TokenIds], Field(min_length=1)]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def check(self) -> None:
        """As `Request.check`."""
        super().check()
        refuse("suffix", self.suffix, "this server continues a text and cannot fill a gap")
        refuse("best_of", self.best_of not in (None, 1), "ask for n answers and choose one")
        refuse("echo", self.echo and self.logprobs is not None, "echo and logprobs do not go together here")

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class TokenizeRequest(BaseModel):
    """`POST /tokenize`, as vLLM has it: messages, or a prompt."""

    model_config = ConfigDict(strict=True)

    model: str
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    add_generation_prompt: bool = True
    prompt: str | None = None


def refuse(param: str, given: Any, reason: str) -> None:
    """ApiError when a field is given that this server does not offer."""
    if given:
        raise ApiError(400, "unsupported", f"{param} is not supported: {reason}; leave it out", param)


def encodable(text: str, param: str) -> str:
    """The text; ApiError when it holds half a surrogate pair, which is no character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        message = f"{param} holds half a surrogate pair, which is no text"
        raise ApiError(400, "invalid_value", message, param) from None
    return text

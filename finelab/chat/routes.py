"""What each route does: from a checked request to prompts, and to answers in the API's shapes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from jinja2 import TemplateError

import finelab
from finelab.chat import requests as asked
from finelab.chat.engine import Answer, Engine
from finelab.chat.metrics import Metrics
from finelab.chat.prompt import render_prompt
from finelab.chat.requests import ApiError
from finelab.chat.responses import Chat, Choice, Text, TokenText
from finelab.chat.work import EventStream, Work, unless_gone
from finelab.data.conversation import Message

FINGERPRINT = f"finelab-{finelab.__version__}"


@dataclass(frozen=True)
class Served:
    """What a server answers with: the engine, and the facts of each model under its id."""

    engine: Engine
    models: dict[str, dict[str, Any]]
    max_model_len: int
    date_string: str
    defaults: dict[str, float] = field(default_factory=dict)
    gallery: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that all its models share."""
        return self.engine.tokenizer


class Routes:
    """The routes' functions."""

    def __init__(self, served: Served, metrics: Metrics) -> None:
        self.served = served
        self.metrics = metrics
        self.words = TokenText(served.tokenizer)
        self.started = int(time.time())

    async def health(self) -> Response:
        """Whether the engine lives; asked without a key."""
        if self.served.engine.alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "failed"}, 503)

    async def models(self) -> dict[str, Any]:
        """The base model and its adapters."""
        return {"object": "list", "data": [self._entry(name) for name in self.served.models]}

    async def model(self, id: str) -> dict[str, Any]:
        """One of them."""
        return self._entry(self._known(id, None))

    async def gallery(self) -> dict[str, Any]:
        """Held-out prompts of the run, with the data set's own answers."""
        return {"object": "list", "data": self.served.gallery}

    async def metrics_text(self) -> Response:
        """The counters, for Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def tokenize(self, body: asked.TokenizeRequest) -> dict[str, Any]:
        """The exact text that a model would see, and its tokens."""
        self._known(body.model)
        text, ids = await run_in_threadpool(self._tokenized, body)
        names = self.served.tokenizer.convert_ids_to_tokens(ids)
        count = {"count": len(ids), "max_model_len": self.served.max_model_len}
        return {**count, "tokens": ids, "token_strs": names, "prompt": text}

    async def chat(self, body: asked.ChatRequest, request: Request) -> Response:
        """An answer to a conversation."""
        body.check()
        model = self._known(body.model)
        self._require_places(body, 1)
        prompt = await run_in_threadpool(self._chat_prompt, body)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        shape = Chat(model, FINGERPRINT, self.words)
        limit = body.max_completion_tokens or body.max_tokens
        return await self._answer(body, [prompt], limit, logprobs, shape, request)

    async def completions(self, body: asked.CompletionRequest, request: Request) -> Response:
        """A text continued, without a template."""
        body.check()
        model = self._known(body.model)
        self._require_places(body, len(body.prompts))
        prompts = await run_in_threadpool(lambda: [self._text_prompt(each) for each in body.prompts])
        shape = Text(model, FINGERPRINT, self.words, bool(body.echo))
        limit = body.max_tokens or 16  # OpenAI's default for this endpoint
        return await self._answer(body, prompts, limit, body.logprobs, shape, request)

    async def _answer(
        self,
        body: asked.Request,
        prompts: list[list[int]],
        limit: int | None,
        logprobs: int | None,
        shape: Chat,
        request: Request,
    ) -> Response:
        param = "messages" if isinstance(body, asked.ChatRequest) else "prompt"
        size, defaults, state = len(self.served.tokenizer), self.served.defaults, request.state
        samplings = [body.sampling(number, size, logprobs, **defaults) for number in range(body.n or 1)]
        choices = [
            Choice(
                Answer(body.model, prompt, sampling, self._room(prompt, limit, param), body.stops, state.key)
            )
            for prompt in prompts
            for sampling in samplings
        ]
        work = Work(self.served.engine, self.metrics, choices, state.facts)
        work.start()
        if body.stream:
            return EventStream(work.events(shape, body.with_usage), work)
        return await unless_gone(request.receive, work.whole(shape), work.stop)

    def _entry(self, name: str) -> dict[str, Any]:
        entry = {"id": name, "object": "model", "created": self.started, "owned_by": "finelab"}
        return {**entry, "max_model_len": self.served.max_model_len, **self.served.models[name]}

    def _known(self, name: str, param: str | None = "model") -> str:
        if name not in self.served.models:
            known = ", ".join(self.served.models)
            raise ApiError(404, "model_not_found", f"there is no model {name!a}; there are: {known}", param)
        return name

    def _require_places(self, body: asked.Request, prompts: int) -> None:
        """ApiError for more answers than the server ever takes: to come again later would not help."""
        engine = self.served.engine
        most, answers = engine.max_concurrency + engine.max_queue, prompts * (body.n or 1)
        if answers > most:
            message = f"the request asks for {answers} answers (prompts times n); at most {most} fit here"
            raise ApiError(400, "invalid_value", message, "n" if prompts == 1 else "prompt")

    def _chat_prompt(self, body: asked.ChatRequest) -> list[int]:
        return self._ids(self._rendered(body.turns), False)

    def _rendered(self, turns: list[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; ApiError when the template refuses it, as some do a system prompt."""
        served = self.served
        try:
            return render_prompt(served.tokenizer, turns, served.date_string, add_generation_prompt)
        except TemplateError as error:
            message = f"the model's chat template refuses the messages: {error}"
            raise ApiError(400, "invalid_value", message, "messages") from error

    def _tokenized(self, body: asked.TokenizeRequest) -> tuple[str, list[int]]:
        if (body.messages is None) == (body.prompt is None):
            raise ApiError(400, "invalid_value", "expected either messages or prompt", "messages")
        if body.prompt is not None:
            return body.prompt, self._text_prompt(body.prompt)
        turns = [message.plain(place) for place, message in enumerate(body.messages or [])]
        text = self._rendered(turns, body.add_generation_prompt)
        return text, self._ids(text, False)

    def _text_prompt(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            ids = self._ids(asked.encodable(prompt, "prompt"), True)
            if not ids:
                raise ApiError(400, "invalid_value", "the prompt is empty; expected some text", "prompt")
            return ids
        size = len(self.served.tokenizer)
        if wrong := [id_ for id_ in prompt if not 0 <= id_ < size]:
            message = f"the prompt holds the token id {wrong[0]}; expected ids from 0 to {size - 1}"
            raise ApiError(400, "invalid_value", message, "prompt")
        return prompt

    def _ids(self, text: str, special: bool) -> list[int]:
        return self.served.tokenizer(text, add_special_tokens=special)["input_ids"]  # type: ignore[no-any-return]

    def _room(self, prompt: list[int], limit: int | None, param: str) -> int:
        """How many tokens may follow the prompt; ApiError when the context is too short for it."""
        room = self.served.max_model_len - len(prompt)
        if room < (limit or 1):
            message = f"the context is {self.served.max_model_len} tokens; the prompt has {len(prompt)}"
            message += f" and max_tokens asks for {limit}" if limit else ""
            raise ApiError(400, "context_length_exceeded", message, param)
        return limit or room

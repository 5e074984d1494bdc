"""The OpenAI-compatible server: base and adapters of one loaded model, for the page and for any client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from openai.types import Completion
from openai.types.chat import ChatCompletion
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import finelab
from finelab.chat import requests as asked
from finelab.chat.engine import Answer, Engine, Piece, QueueFull
from finelab.chat.guard import Guard, Receive, Scope, Send, error_response, too_large
from finelab.chat.metrics import Metrics
from finelab.chat.prompt import render_prompt
from finelab.chat.requests import ApiError
from finelab.chat.responses import Chat, Choice, Text, TokenText, usage

KEEP_ALIVE = 15.0  # seconds of silence after which a stream sends a comment, so that proxies keep it open
DONE = "data: [DONE]\n\n"


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


class ErrorDetail(BaseModel):
    """What went wrong, and in which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


def build_app(
    served: Served,
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
    hosts: Sequence[str] = (),
    page: Path | None = None,
) -> FastAPI:
    """The application; `hosts` are the names it answers to (all when empty), `page` a folder served at /."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with served.engine:
            yield

    app = FastAPI(title="finelab", version=finelab.__version__, lifespan=lifespan, redoc_url=None)
    metrics = Metrics(served.engine)
    _add_routes(app, Routes(served, metrics))
    app.add_middleware(Guard, keys=keys, hosts=hosts, metrics=metrics)  # type: ignore[arg-type]
    if origins:
        methods, headers = ["GET", "POST"], ["Authorization", "Content-Type"]
        shown = ["X-Request-Id", "Retry-After"]
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=methods,
            allow_headers=headers,
            expose_headers=shown,
        )
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)
    if page is not None:
        app.mount("/", StaticFiles(directory=page, html=True))
    return app


def _add_routes(app: FastAPI, routes: Routes) -> None:
    errors: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
    bearer = [Security(HTTPBearer(auto_error=False))]
    table: list[tuple[str, str, Any, Any]] = [
        ("GET", "/v1/models", routes.models, None),
        ("GET", "/v1/models/{id}", routes.model, None),
        ("POST", "/v1/chat/completions", routes.chat, ChatCompletion),
        ("POST", "/v1/completions", routes.completions, Completion),
        ("POST", "/tokenize", routes.tokenize, None),
        ("GET", "/v1/gallery", routes.gallery, None),
        ("GET", "/metrics", routes.metrics_text, None),
    ]
    for method, path, function, shape in table:
        responses = errors | ({200: {"model": shape}} if shape else {})
        app.add_api_route(
            path, function, methods=[method], response_model=None, dependencies=bearer, responses=responses
        )
    app.add_api_route("/health", routes.health, response_model=None, responses=errors)


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
        prompt = await run_in_threadpool(self._chat_prompt, body)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        shape = Chat(model, self._fingerprint(model), self.words)
        limit = body.max_completion_tokens or body.max_tokens
        return await self._answer(body, [prompt], limit, logprobs, shape, request)

    async def completions(self, body: asked.CompletionRequest, request: Request) -> Response:
        """A text continued, without a template."""
        body.check()
        model = self._known(body.model)
        prompts = await run_in_threadpool(lambda: [self._text_prompt(each) for each in body.prompts])
        shape = Text(model, self._fingerprint(model), self.words, bool(body.echo))
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
        came: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        choices: list[Choice] = []
        for prompt in prompts:
            longest = self._room(prompt, limit)
            for number in range(body.n or 1):
                index = len(choices)
                sampling = body.sampling(number, len(self.served.tokenizer), logprobs, **self.served.defaults)
                choices.append(
                    Choice(
                        Answer(body.model, prompt, _sender(loop, came, index), sampling, longest, body.stops)
                    )
                )
        work = Work(self, choices, came, request.state.facts)
        work.start()
        if body.stream:
            return EventStream(work.events(shape, body.with_usage), work)
        return await unless_gone(request.receive, work.whole(shape), work)

    def _entry(self, name: str) -> dict[str, Any]:
        entry = {"id": name, "object": "model", "created": self.started, "owned_by": "finelab"}
        return {**entry, "max_model_len": self.served.max_model_len, **self.served.models[name]}

    def _known(self, name: str, param: str | None = "model") -> str:
        if name not in self.served.models:
            known = ", ".join(self.served.models)
            raise ApiError(404, "model_not_found", f"there is no model {name!a}; there are: {known}", param)
        return name

    def _fingerprint(self, model: str) -> str:
        return f"finelab-{finelab.__version__}"

    def _chat_prompt(self, body: asked.ChatRequest) -> list[int]:
        return self._ids(render_prompt(self.served.tokenizer, body.turns, self.served.date_string), False)

    def _tokenized(self, body: asked.TokenizeRequest) -> tuple[str, list[int]]:
        if (body.messages is None) == (body.prompt is None):
            raise ApiError(400, "invalid_value", "expected either messages or prompt", "messages")
        if body.prompt is not None:
            return body.prompt, self._text_prompt(body.prompt)
        turns = [message.plain(place) for place, message in enumerate(body.messages or [])]
        text = render_prompt(self.served.tokenizer, turns, self.served.date_string)
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

    def _room(self, prompt: list[int], limit: int | None) -> int:
        """How many tokens may follow the prompt; ApiError when the context is too short for it."""
        room = self.served.max_model_len - len(prompt)
        if room < (limit or 1):
            message = f"the context is {self.served.max_model_len} tokens; the prompt has {len(prompt)}"
            message += f" and max_tokens asks for {limit}" if limit else ""
            raise ApiError(400, "context_length_exceeded", message, "messages")
        return limit or room


class Work:
    """The answers to one request: started, coming in pieces, and cancelled when the client goes."""

    def __init__(
        self,
        routes: Routes,
        choices: list[Choice],
        came: asyncio.Queue[tuple[int, Piece]],
        facts: dict[str, Any],
    ) -> None:
        self.engine = routes.served.engine
        self.metrics = routes.metrics
        self.choices = choices
        self.came = came
        self.facts = facts
        self.begun = time.perf_counter()

    def start(self) -> None:
        """Queue the answers; ApiError when the queue is full."""
        try:
            self.engine.submit([choice.answer for choice in self.choices])
        except QueueFull:
            message = f"{self.engine.waiting} answers are waiting already; try again a little later"
            raise ApiError(429, "queue_full", message) from None

    def stop(self) -> None:
        """End what is unfinished, and count what was done."""
        self.engine.cancel([choice.answer for choice in self.choices if choice.finish is None])
        answers = [choice.answer for choice in self.choices]
        counts, model = usage(self.choices), answers[0].model
        self.metrics.prompt_tokens.labels(model).inc(counts.prompt_tokens)
        self.metrics.generated_tokens.labels(model).inc(counts.completion_tokens)
        self.metrics.cached_tokens.inc(sum(answer.cached for answer in answers))
        self.facts["model"] = model
        self.facts["prompt_tokens"] = counts.prompt_tokens
        self.facts["completion_tokens"] = counts.completion_tokens
        self.facts["finish"] = [choice.finish or "cancelled" for choice in self.choices]

    async def pieces(self) -> AsyncIterator[tuple[int, Piece] | None]:
        """The pieces with their choice's number until all are finished; None after a long silence."""
        while any(choice.finish is None for choice in self.choices):
            try:
                index, piece = await asyncio.wait_for(self.came.get(), KEEP_ALIVE)
            except TimeoutError:
                yield None
                continue
            if piece.error:
                raise ApiError(500, "engine_failed", f"{piece.error}; try again")
            if "first_token_s" not in self.facts:
                self.facts["first_token_s"] = round(time.perf_counter() - self.begun, 3)
                self.metrics.first_token_seconds.observe(self.facts["first_token_s"])
            choice = self.choices[index]
            choice.text += piece.text
            choice.tokens += piece.tokens
            choice.finish = piece.finish
            yield index, piece

    async def whole(self, shape: Chat) -> Response:
        """The whole answer."""
        async for _ in self.pieces():
            pass
        return JSONResponse(shape.whole(self.choices, usage(self.choices)))

    async def events(self, shape: Chat, with_usage: bool) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        for index, choice in enumerate(self.choices):
            yield _event(shape.first(index, choice))
        try:
            async for came in self.pieces():
                if came is None:
                    yield ": keep-alive\n\n"
                    continue
                index, piece = came
                choice = self.choices[index]
                if piece.text or (piece.tokens and choice.answer.sampling.logprobs is not None):
                    yield _event(shape.more(index, choice, piece.text, piece.tokens))
                if piece.finish:
                    yield _event(shape.last(index, choice))
        except ApiError as error:
            yield _event(json.loads(error_response(error).body))
            return
        if with_usage:
            yield _event(shape.usage(usage(self.choices)))
        yield DONE


class EventStream(Response):
    """A stream that ends its work as soon as the client goes, also while it has nothing to send."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], work: Work) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events = events
        self.work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        await unless_gone(receive, self._send(send), self.work)

    async def _send(self, send: Send) -> Response:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self.events:
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return self


async def unless_gone(receive: Receive, answering: Coroutine[Any, Any, Response], work: Work) -> Response:
    """What `answering` gives; when the client goes first, its work ends and nobody reads the response."""
    answer, gone = asyncio.create_task(answering), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else Response(status_code=499)
    finally:
        answer.cancel()
        gone.cancel()
        work.stop()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _sender(loop: asyncio.AbstractEventLoop, came: asyncio.Queue[tuple[int, Piece]], index: int) -> Any:
    return lambda piece: loop.call_soon_threadsafe(came.put_nowait, (index, piece))


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)  # type: ignore[no-any-return]


def _invalid(_: Request, error: Exception) -> Response:
    """A field that is not as it should be: the first one, in the words of pydantic."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return error_response(ApiError(400, "invalid_json", "the body is not valid JSON"))  # type: ignore[no-any-return]
    param = ".".join(str(part) for part in first["loc"][1:])
    message = f"{param or 'the body'}: {first['msg'][:200]}"
    return error_response(ApiError(400, "invalid_value", message, param or None))  # type: ignore[no-any-return]


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = ascii(request.url.path[:100])
    known = {
        404: ApiError(404, "route_not_found", f"there is nothing at {path}; /docs shows what there is"),
        405: ApiError(405, "method_not_allowed", f"{path} does not take {request.method}"),
        413: too_large(request.url.path),
    }
    other = ApiError(error.status_code, "invalid_request", "the body cannot be read")
    return error_response(known.get(error.status_code, other))  # type: ignore[no-any-return]


def _failed(_: Request, error: Exception) -> Response:
    return error_response(ApiError(500, "internal", "this is the server's fault; its log says more"))  # type: ignore[no-any-return]

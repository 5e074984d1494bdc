"""A request's answers while they are made: pieces, events, and the end when the client goes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

from fastapi.responses import JSONResponse, Response

from finelab.chat.engine import Engine, Piece, QueueFull
from finelab.chat.guard import Receive, Scope, Send, error_response
from finelab.chat.metrics import Metrics
from finelab.chat.requests import ApiError
from finelab.chat.responses import Chat, Choice, usage

KEEP_ALIVE = 15.0  # seconds of silence after which a stream sends a comment, so that proxies keep it open
DONE = "data: [DONE]\n\n"


class Work:
    """The answers to one request: started, coming in pieces, and cancelled when the client goes."""

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        choices: list[Choice],
        facts: dict[str, Any],
    ) -> None:
        self.engine = engine
        self.metrics = metrics
        self.choices = choices
        self.facts = facts
        self.begun = time.perf_counter()
        self._came: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        for index, choice in enumerate(choices):
            choice.answer.emit = partial(self._receive, loop, index)

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

    def _receive(self, loop: asyncio.AbstractEventLoop, index: int, piece: Piece) -> None:
        """Called from the engine's thread."""
        loop.call_soon_threadsafe(self._came.put_nowait, (index, piece))

    async def pieces(self) -> AsyncIterator[tuple[int, Piece] | None]:
        """The pieces with their choice's number until all are finished; None after a long silence."""
        while any(choice.finish is None for choice in self.choices):
            try:
                async with asyncio.timeout(KEEP_ALIVE):  # wait_for of Python 3.11 may forget a cancellation
                    index, piece = await self._came.get()
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
        await unless_gone(receive, self._send(send), self.work.stop)

    async def _send(self, send: Send) -> Response:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self.events:
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return self


async def unless_gone(
    receive: Receive, answering: Coroutine[Any, Any, Response], stop: Callable[[], None]
) -> Response:
    """What `answering` gives; when the client goes first, nobody reads the response. `stop` ends the work."""
    answer, gone = asyncio.create_task(answering), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else Response(status_code=499)
    finally:
        answer.cancel()
        gone.cancel()
        stop()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"

"""What stands before every route: keys, hosts, origins, sizes; and each request's id, count and log line."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from finelab.chat.metrics import Metrics
from finelab.chat.requests import ApiError

OPEN = ("/health", "/docs", "/openapi.json")
CLOSED = ("/v1/", "/tokenize", "/metrics")
BODY_LIMIT = 1_000_000  # bytes; a context of 128,000 tokens is half of it
AUDIO_LIMIT = 25_000_000  # bytes, as OpenAI's

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger("finelab.serve")


class Guard:
    """Pure ASGI: Starlette's BaseHTTPMiddleware would hide from the routes that a client has gone."""

    def __init__(
        self, app: Any, keys: Sequence[str], origins: Sequence[str], hosts: Sequence[str], metrics: Metrics
    ) -> None:
        self.app = app
        self.keys = [_digest(key.encode()) for key in keys]
        self.origins = origins
        self.hosts = hosts
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand over to the routes."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        facts: dict[str, Any] = {"id": uuid.uuid4().hex, "status": 500}
        scope.setdefault("state", {}).update(facts=facts, key=b"")

        async def numbered(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts["status"] = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", facts["id"].encode())]
            await send(message)

        try:
            self.check(scope)
            await self.app(scope, limited(scope, receive), numbered)
        except ApiError as error:
            await error_response(error)(scope, receive, numbered)
        finally:
            self.note(scope, facts, time.perf_counter() - started)

    def check(self, scope: Scope) -> None:
        """ApiError for a foreign host or page, a missing key, or a body that says it is too large."""
        headers, path = dict(scope["headers"]), scope["path"]
        if self.hosts and _host(headers.get(b"host", b"")) not in self.hosts:
            message = "this server has no key and answers its own machine only; set a key to use another name"
            raise ApiError(421, "wrong_host", message)
        if not self.keys:
            self._check_origin(headers.get(b"origin", b""), headers.get(b"host", b""))
        elif path.startswith(CLOSED) and scope["method"] != "OPTIONS":
            scope["state"]["key"] = self._known_key(headers.get(b"authorization", b""))
        if int(headers.get(b"content-length") or 0) > limit(path):
            raise too_large(path)

    def note(self, scope: Scope, facts: dict[str, Any], seconds: float) -> None:
        """Count the request, and log what it was: never a prompt, an answer or a key."""
        route = getattr(scope.get("route"), "path", "none")
        self.metrics.requests.labels(route, facts["status"]).inc()
        self.metrics.request_seconds.observe(seconds)
        log.info(
            json.dumps({**facts, "method": scope["method"], "route": route, "seconds": round(seconds, 3)})
        )

    def _check_origin(self, header: bytes, host: bytes) -> None:
        # A page elsewhere cannot read an answer, but its form would be worked on without a preflight.
        origin = header.decode("latin-1").lower()
        own = origin.partition("://")[2] == host.decode("latin-1").lower()
        if origin and not own and {origin, "*"}.isdisjoint(self.origins):
            message = (
                "this server has no key and answers its own page only; --allow-origin URL lets another in"
            )
            raise ApiError(403, "wrong_origin", message)

    def _known_key(self, header: bytes) -> bytes:
        """The digest of the key that was sent."""
        scheme, _, key = header.partition(b" ")
        offered = _digest(key.strip())
        # All keys are compared, each in constant time, so that the time tells nothing.
        known = sum(hmac.compare_digest(offered, each) for each in self.keys)
        if scheme.lower() != b"bearer" or not known:
            said = "no API key was given" if not header else "this API key is not known here"
            raise ApiError(401, "invalid_api_key", f"{said}; send the header Authorization: Bearer KEY")
        return offered


def limit(path: str) -> int:
    """The most bytes that a body may have."""
    return AUDIO_LIMIT if path.startswith("/v1/audio/") else BODY_LIMIT


def too_large(path: str) -> ApiError:
    """The error for a larger one."""
    return ApiError(413, "request_too_large", f"the body is larger than {limit(path) / 1e6:.0f} MB")


def limited(scope: Scope, receive: Receive) -> Receive:
    """`receive`, which stops at a body that grows too large without having said so."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit(scope["path"]):
            from starlette.exceptions import HTTPException

            raise HTTPException(413, str(too_large(scope["path"])))
        return message

    return counted


def error_response(error: ApiError) -> Any:
    """An error in OpenAI's shape."""
    from starlette.responses import JSONResponse

    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    message = str(error).encode("utf-8", "replace").decode()
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "2"}, 503: {"Retry-After": "5"}}
    shaped = {"message": message, "type": kind, "param": error.param, "code": error.code}
    return JSONResponse({"error": shaped}, error.status, headers.get(error.status))


def _host(header: bytes) -> str | None:
    try:
        return urlsplit(f"//{header.decode('latin-1')}").hostname
    except ValueError:
        return None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

"""What the deployed server answers: these routes and nothing else, behind a key.

`vllm serve --middleware gate.Gate` puts it in front of vLLM, whose own key guards only what begins with
/v1, /v2, /inference or /cohere: anybody could ask for a completion at /invocations. It also speaks CORS in
front of the key, so that a browser can read a refusal. Read from the environment: VLLM_API_KEY, and
FINELAB_ALLOWED_ORIGINS, the pages that may call from a browser, with commas between them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import uuid

from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = {"/health": "GET"}
WITH_KEY = {"/v1/models": "GET", "/v1/chat/completions": "POST", "/v1/completions": "POST"}
FOR_SNAPSHOTS = {"/sleep": "POST", "/wake_up": "POST"}
MAX_BODY_BYTES = 1_000_000


class Gate:
    """The outermost layer: CORS, then `Guard`, then vLLM."""

    def __init__(self, app: ASGIApp) -> None:
        origins = os.environ.get("FINELAB_ALLOWED_ORIGINS", "").split(",")
        self.app = CORSMiddleware(
            Guard(app, os.environ["VLLM_API_KEY"]),
            allow_origins=[origin.strip().rstrip("/") for origin in origins if origin.strip()],
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # openai's JavaScript client sends a dozen of its own
            expose_headers=["Retry-After", "X-Request-Id"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on, as ASGI does."""
        await self.app(scope, receive, send)


class Guard:
    """Route, method, key and size of each request, checked in this order; ValueError for an empty key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        if not key.strip():
            raise ValueError("VLLM_API_KEY is empty")
        self.app = app
        # A secret made from a file ends with the end of a line, which no header can hold.
        self.key_hash = hashlib.sha256(key.strip().encode()).digest()
        # vLLM has /sleep and /wake_up, and much worse, only in this mode; see SNAPSHOT in modal_inference.py
        snapshots = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"
        self.routes = OPEN | WITH_KEY | (FOR_SNAPSHOTS if snapshots else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on a request whose body is here."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif refused := self.refusal(scope):
            await refused(scope, receive, send)
        elif (body := await read_body(scope, receive)) is None:
            await error(413, f"the body is over {MAX_BODY_BYTES:,} bytes", "request_too_large")(
                scope, receive, send
            )
        else:
            await self.app(scope, replayed(body, receive), send)

    def refusal(self, scope: Scope) -> JSONResponse | None:
        """The answer to a request that may not pass."""
        path, method = scope["path"], scope["method"]
        if path not in self.routes:
            return error(404, f"there is no {path} here", "not_found")
        if method != self.routes[path]:
            allowed = self.routes[path]
            return error(405, f"{path} takes {allowed}, not {method}", "method_not_allowed", Allow=allowed)
        if path not in OPEN and not self.has_key(scope):
            message = "wrong or missing key: send it as `Authorization: Bearer KEY`"
            return error(401, message, "invalid_api_key", **{"WWW-Authenticate": "Bearer"})
        return None

    def has_key(self, scope: Scope) -> bool:
        """Whether the bearer key is the right one, in a time that does not depend on how much is right."""
        scheme, _, key = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(
            hashlib.sha256(key).digest(), self.key_hash
        )


async def read_body(scope: Scope, receive: Receive) -> bytes | None:
    """The whole body; None when it is too long, whatever its Content-Length says."""
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
        return None
    body, more = b"", True
    while more and len(body) <= MAX_BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return None if more or len(body) > MAX_BODY_BYTES else body


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first, then what the client does next, such as going away."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Message:
        return waiting.pop() if waiting else await receive()

    return give


def error(status: int, message: str, code: str, **headers: str) -> JSONResponse:
    """An answer in the form that OpenAI's clients read."""
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return JSONResponse(body, status, headers | {"X-Request-Id": uuid.uuid4().hex})

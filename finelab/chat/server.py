"""The OpenAI-compatible server: base and adapters of one loaded model, for the page and for any client."""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from openai.types import Completion
from openai.types.chat import ChatCompletion
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import finelab
from finelab.chat import docs_page, voice
from finelab.chat.guard import Guard, error_response, too_large
from finelab.chat.metrics import Metrics
from finelab.chat.requests import ApiError
from finelab.chat.routes import Routes, Served

# Browsers run no module and no style sheet of another type, and Windows takes types from its registry.
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
PAGE_HEADERS = {
    "Cache-Control": "no-cache",  # asked for anew, by its ETag: no old script under new HTML
    "Content-Security-Policy": "frame-ancestors 'none'",  # the rest of the policy is in index.html
    "X-Content-Type-Options": "nosniff",
}


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

    app = FastAPI(
        title="finelab", version=finelab.__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.add_route("/docs", docs_page.show, include_in_schema=False)  # FastAPI's runs scripts of a CDN
    metrics = Metrics(served.engine)
    _add_routes(app, Routes(served, metrics))
    app.add_middleware(Guard, keys=keys, origins=origins, hosts=hosts, metrics=metrics)  # type: ignore[arg-type]
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # openai's JavaScript client sends a dozen of its own
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)
    if page is not None:
        _add_page(app, page)
    return app


def _add_page(app: FastAPI, page: Path) -> None:
    """The page's files under their own names: one mount at / would answer for every unknown route."""
    for suffix, kind in TYPES.items():
        mimetypes.add_type(kind, suffix)
    files = PageFiles(directory=page, html=True)
    for path in page.iterdir():
        if path.is_dir():
            app.mount(f"/{path.name}", PageFiles(directory=path))
        else:
            app.add_route(f"/{path.name}", files)  # type: ignore[arg-type]  # an application of its own
    app.add_route("/", files)  # type: ignore[arg-type]


class PageFiles(StaticFiles):
    """Files with `PAGE_HEADERS`."""

    def file_response(self, *values: Any, **keywords: Any) -> Response:
        """The file, or 304 when the browser has it."""
        response = super().file_response(*values, **keywords)
        response.headers.update(PAGE_HEADERS)
        return response


def _add_routes(app: FastAPI, routes: Routes) -> None:
    errors: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
    bearer = [Security(HTTPBearer(auto_error=False))]
    stream: dict[str, Any] = {"content": {"text/event-stream": {}}}
    table: list[tuple[str, str, Any, Any]] = [
        ("GET", "/v1/models", routes.models, None),
        ("GET", "/v1/models/{id}", routes.model, None),
        ("POST", "/v1/chat/completions", routes.chat, {"model": ChatCompletion, **stream}),
        ("POST", "/v1/completions", routes.completions, {"model": Completion, **stream}),
        ("POST", "/tokenize", routes.tokenize, None),
        ("GET", "/v1/gallery", routes.gallery, None),
        ("GET", "/metrics", routes.metrics_text, {"content": {"text/plain": {}}}),
    ]
    for method, path, function, shape in table:
        responses = errors | ({200: shape} if shape else {})
        app.add_api_route(
            path, function, methods=[method], response_model=None, dependencies=bearer, responses=responses
        )
    app.add_api_route("/health", routes.health, response_model=None, responses=errors)
    app.include_router(voice.router(errors), dependencies=bearer)


def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)  # type: ignore[no-any-return]


def _invalid(request: Request, error: Exception) -> Response:
    """A field that is not as it should be: the first one, in the words of pydantic."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    form = request.url.path == voice.TRANSCRIPTIONS_PATH
    wanted = "multipart/form-data" if form else "application/json"
    if kind != wanted:
        message = f"the body must be {'a form' if form else 'JSON'}: Content-Type: {wanted}"
        return error_response(ApiError(415, "wrong_content_type", message))  # type: ignore[no-any-return]
    if first["type"] == "json_invalid":
        return error_response(ApiError(400, "invalid_json", "the body is not valid JSON"))  # type: ignore[no-any-return]
    param = ".".join(str(part) for part in first["loc"][1:])
    message = f"{param or 'the body'}: {first['msg'][:200]}"
    return error_response(ApiError(400, "invalid_value", message, param or None))  # type: ignore[no-any-return]


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = ascii(request.url.path[:100])
    known = {
        404: ApiError(404, "not_found", f"there is nothing at {path}; /docs shows what there is"),
        405: ApiError(405, "method_not_allowed", f"{path} does not take {request.method}"),
        413: too_large(request.url.path),
    }
    other = ApiError(error.status_code, "invalid_request", "the body cannot be read")
    response = error_response(known.get(error.status_code, other))
    response.headers.update(error.headers or {})
    return response  # type: ignore[no-any-return]


def _failed(_: Request, error: Exception) -> Response:
    return error_response(ApiError(500, "internal", "this is the server's fault; its log says more"))  # type: ignore[no-any-return]

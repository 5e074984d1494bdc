"""The page at /docs: what the server answers, without a script and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse

POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<h1>{title}</h1>
<p>Every field of every request and answer: <a href="openapi.json">openapi.json</a></p>
<table>
<tr><th>Method<th>Path<th>What it does
{rows}
</table>
"""


async def show(request: Request) -> HTMLResponse:
    """The routes of the application, as a table."""
    document = request.app.openapi()
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}")
    rows = "\n".join(
        f"<tr><td>{escape(method.upper())}<td><code>{escape(path)}</code><td>{escape(told)}"
        for method, path, told in operations(document)
    )
    return HTMLResponse(PAGE.format(title=title, rows=rows), headers={"Content-Security-Policy": POLICY})


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(method, path, what it does) of everything in an OpenAPI document."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation.get("description") or operation["summary"]

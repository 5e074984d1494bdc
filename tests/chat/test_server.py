"""What the server shows in a browser: the page's files, and its own page of routes."""

import mimetypes

import pytest
from fastapi.testclient import TestClient

from finelab.chat.engine import Engine
from finelab.chat.routes import Served
from finelab.chat.server import build_app
from tests import tiny


@pytest.fixture(scope="module")
def served():
    return Served(Engine(tiny.base_model(), tiny.tokenizer()), {"base": {}}, 100, "")


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".js", "text/javascript"),
        (".css", "text/css"),
        (".svg", "image/svg+xml"),
        (".html", "text/html"),
    ],
)
def test_the_pages_files_have_the_types_that_browsers_ask_for(served, tmp_path, monkeypatch, suffix, kind):
    mimetypes.init()
    monkeypatch.setitem(mimetypes.types_map, suffix, "text/plain")  # as a Windows registry may have it
    for folder in (tmp_path, tmp_path / "vendor"):
        folder.mkdir(exist_ok=True)
        (folder / f"file{suffix}").write_text("1", encoding="utf-8")
    client = TestClient(build_app(served, page=tmp_path))
    for path in (f"/file{suffix}", f"/vendor/file{suffix}"):
        assert client.get(path).headers["content-type"].split(";")[0] == kind


def test_a_page_that_was_changed_is_seen_and_one_that_was_not_is_not_sent_again(served, tmp_path):
    (tmp_path / "index.html").write_text("old", encoding="utf-8")
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "file.js").write_text("1", encoding="utf-8")
    client = TestClient(build_app(served, page=tmp_path))
    seen = {}
    for path in ("/", "/index.html", "/vendor/file.js"):
        first = client.get(path)
        assert first.headers["cache-control"] == "no-cache"
        assert first.headers["content-security-policy"] == "frame-ancestors 'none'"
        assert first.headers["x-content-type-options"] == "nosniff"
        seen[path] = {"If-None-Match": first.headers["etag"]}
        assert client.get(path, headers=seen[path]).status_code == 304
    (tmp_path / "index.html").write_text("the new one", encoding="utf-8")
    assert client.get("/", headers=seen["/"]).text == "the new one"


def test_the_docs_list_every_route(served):
    client = TestClient(build_app(served))
    text = client.get("/docs").text
    assert 'href="openapi.json"' in text
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            assert f"<td>{method.upper()}<td><code>{path}</code>" in text
    assert "An answer to a conversation." in text


def test_the_docs_load_nothing_and_run_nothing(served):
    response = TestClient(build_app(served)).get("/docs")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not [sign for sign in ("//", "<script", "src=", "<link") if sign in response.text]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_a_conversation_that_the_template_refuses_is_the_clients_mistake(path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    app = build_app(Served(Engine(tiny.base_model(), tokenizer), {"base": {}}, 100, ""))
    asked = {"model": "base", "messages": [{"role": "system", "content": "Be brief."}]}
    response = TestClient(app, raise_server_exceptions=False).post(path, json=asked)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_value", "messages")
    assert error["message"] == "the model's chat template refuses the messages: System role not supported"


def test_what_a_route_says_of_itself_is_no_html(served):
    def compare():
        """Whether 1 < 2 & <b>so</b> on."""

    app = build_app(served)
    app.add_api_route("/<i>", compare)
    text = TestClient(app).get("/docs").text
    assert "<code>/&lt;i&gt;</code><td>Whether 1 &lt; 2 &amp; &lt;b&gt;so&lt;/b&gt; on." in text

"""The Gradio Space: what it asks of the server, and, where gradio is installed, what it shows."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from tests.browser.scripted import Fail, Say

SPACE = Path(__file__).parents[2] / "deployment" / "space"


@pytest.fixture
def space(server, monkeypatch):
    """app.py with the scripted server; a stand-in for gradio, since CI does not install its 367 MB."""
    monkeypatch.setenv("FINELAB_URL", server.url + "/")
    monkeypatch.setenv("FINELAB_API_KEY", "space-key")
    monkeypatch.setitem(sys.modules, "gradio", MagicMock())
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_models_are_asked_with_the_same_prompt_and_seed(space, server):
    server.key = "space-key"
    server.by_model = {"base": Say("one two"), "tuned": Say("three four")}
    shown = list(space.both("hello", 0.5, 7))
    assert shown == [("one", ""), ("one two", ""), ("one two", "three"), ("one two", "three four")]
    first, second = server.chats()
    assert (first.pop("model"), second.pop("model")) == ("base", "tuned")
    assert first == second
    assert (first["messages"], first["temperature"], first["seed"]) == (
        [{"role": "user", "content": "hello"}],
        0.5,
        7,
    )


def test_an_error_is_said_and_never_holds_the_key(space, server):
    server.by_model = {"base": Fail(401, "invalid_api_key", "Wrong key."), "tuned": Say("fine")}
    base, tuned = list(space.both("hello", 0.5, 7))[-1]
    assert "did not answer to the end: status 401" in base
    assert "space-key" not in base
    assert tuned == "fine"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (lambda url: Fail(404, "not_found", f"no function behind {url}"), "status 404"),
        (lambda url: Say("one two", error=f"upstream {url} broke"), "APIError"),
    ],
    ids=["refused", "broken off"],
)
def test_an_error_never_holds_the_servers_address(space, server, capsys, reply, said):
    server.by_model = {"base": reply(server.url), "tuned": reply(server.url)}
    base, tuned = list(space.both("hello", 0.5, 7))[-1]
    for shown in (base, tuned):
        assert shown.endswith(f"[The server did not answer to the end: {said}]")
        assert "127.0.0.1" not in shown
    assert server.url in capsys.readouterr().err  # the Space's log, for its owner


def test_the_front_matter_names_the_app_and_a_version():
    front = (SPACE / "README.md").read_text("utf-8").split("---")[1]
    assert {"sdk: gradio", "app_file: app.py"} <= set(front.split("\n"))
    assert re.search(r"^sdk_version: \d+\.\d+\.\d+$", front, re.MULTILINE)


@pytest.mark.slow
def test_the_space_runs_in_a_browser(page, server):
    pytest.importorskip("gradio", reason="gradio is 367 MB, which CI leaves out: pip install gradio==6.31.0")
    from playwright.sync_api import expect

    evil = '<img src="x" onerror="window.pwned=1">'
    server.by_model = {"base": Say(evil), "tuned": Say("three four")}
    command = [sys.executable, "-u", str(SPACE / "app.py")]
    env = {"FINELAB_URL": server.url, "GRADIO_ANALYTICS_ENABLED": "False", "PATH": "/usr/bin"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    try:
        url = next(found[0] for line in process.stdout if (found := re.search(r"http://127\S+", line)))
        page.goto(url)
        page.get_by_label("Prompt").fill("hello")
        page.get_by_role("button", name="Ask both").click()
        expect(page.get_by_label("base", exact=True)).to_have_value(evil)
        expect(page.get_by_label("tuned", exact=True)).to_have_value("three four")
        assert page.evaluate("window.pwned") is None
    finally:
        process.terminate()
        process.wait()

"""A server that was started again meanwhile, with other models."""

import threading

import pytest

from tests import needs
from tests.browser.scripted import Fail, Say, model
from tests.browser.test_chat import ask, ended
from tests.browser.test_states import kept

expect = needs.playwright().expect
pytestmark = pytest.mark.slow


def test_the_models_of_a_server_that_was_started_again_are_asked(chat, server):
    server.models = [model("base"), model("hers", "base")]
    server.replies += [Fail(404, "model_not_found", "there is no model 'tuned'"), Say("From hers.")]
    ask(chat, "hello")
    expect(chat.locator(".state")).to_contain_text("does not have this model")
    expect(chat.get_by_label("Model", exact=True)).to_have_value("hers")
    chat.locator(".state").get_by_role("button", name="Try again").click()
    ended(chat)
    expect(chat.locator(".reply .body")).to_have_text("From hers.")
    assert [each["model"] for each in server.chats()] == ["tuned", "hers"]


def test_a_server_that_was_away_is_asked_for_its_models_again(chat, server):
    away = True
    chat.route("**/v1/*", lambda route: route.abort() if away else route.fallback())
    chat.route("**/v1/chat/completions", lambda route: route.abort() if away else route.fallback())
    ask(chat, "hello")
    state = chat.locator(".turn .state")
    expect(state).to_contain_text("No server answers")
    expect(chat.get_by_label("Model", exact=True)).to_have_count(0)
    state.get_by_role("button", name="Try again").click()
    expect(chat.locator("#status")).to_contain_text("No server answers.")
    away = False
    server.models = [model("base"), model("hers", "base")]
    state.get_by_role("button", name="Try again").click()
    ended(chat)
    assert [each["model"] for each in server.chats()] == ["hers"]


def keep(page, prompt, answer):
    """Leave a chat of one turn in the browser."""
    said = {"model": "tuned", "content": answer, "finish": "stop", "seed": 1, "tokens": 3}
    turn = {"prompt": prompt, "answer": said | {"first_s": 0.1, "tokens_per_s": 9}}
    chat = {"id": prompt, "created": 1, "mode": "chat", "system": "", "given": [], "turns": [turn]}
    page.evaluate("chat => localStorage.setItem('finelab.chat ' + chat.id, JSON.stringify(chat))", chat)


def open_chat(page, prompt):
    page.get_by_role("button", name="Chats", exact=True).click()
    page.locator(".entry", has_text=prompt).click()


@pytest.mark.parametrize("asked", ["again", "more"])
def test_a_chat_that_is_opened_while_the_server_wakes_is_not_changed(page, server, asked):
    awake = threading.Event()
    server.before_models += [Fail(404, "not_found"), awake]
    page.goto(server.url)
    page.locator(".state").wait_for()
    for prompt in ("mine", "hers"):
        keep(page, prompt, f"Answer to {prompt}.")
    before = kept(page)
    open_chat(page, "mine")
    if asked == "again":
        page.get_by_role("button", name="Regenerate").click()
    else:
        ask(page, "a question about mine")
    open_chat(page, "hers")
    page.get_by_role("button", name="Prompts").click()
    awake.set()
    expect(page.get_by_role("dialog")).to_contain_text("the fine-tune never saw them")  # it is connected
    page.get_by_role("button", name="Close").click()
    expect(page.locator(".reply .body")).to_have_text(["Answer to hers."])
    expect(page.get_by_label("Message")).to_have_value("" if asked == "again" else "a question about mine")
    assert kept(page) == before
    assert server.chats() == []

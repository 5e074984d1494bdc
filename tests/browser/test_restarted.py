"""A server that was started again meanwhile, with other models."""

import pytest

from tests import needs
from tests.browser.scripted import Fail, Say, model
from tests.browser.test_chat import ask, ended

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

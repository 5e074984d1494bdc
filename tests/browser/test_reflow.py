"""Very small screens, such as 1280 x 1024 at 400 % zoom: one column, which scrolls down only."""

import pytest

from tests import needs
from tests.browser.scripted import Say
from tests.browser.test_chat import ask, ended

expect = needs.playwright().expect
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mode", ["Chat", "Compare"])
@pytest.mark.parametrize("size", [(320, 256), (280, 640)], ids=["low", "narrow"])
def test_nothing_is_cut_off_sideways(chat, size, mode):
    chat.set_viewport_size({"width": size[0], "height": size[1]})
    chat.get_by_role("button", name=mode, exact=True).click()
    ask(chat, "hello")
    ended(chat)
    assert chat.evaluate("document.documentElement.scrollWidth") == size[0]
    assert chat.evaluate("document.getElementById('main').scrollWidth") <= size[0]


def test_on_a_low_screen_the_whole_page_scrolls_and_follows_the_answer(chat, server):
    chat.set_viewport_size({"width": 320, "height": 256})
    held = Say("word " * 200, hold_after=150)
    server.replies.append(held)
    ask(chat, "hello")
    expect(chat.locator(".reply .body")).to_contain_text("word")
    chat.wait_for_function("document.documentElement.scrollTop > 300")
    expect(chat.get_by_role("button", name="Stop")).to_be_in_viewport()
    expect(chat.get_by_text("A small language model often errs.")).to_be_hidden()
    chat.evaluate("""() => new Promise((heard) => {
        document.addEventListener("scroll", heard, { once: true, capture: true });
        document.documentElement.scrollTop = 0;
    })""")  # the page has heard of it too: the browser tells of a scroll with its next frame
    held.more.set()
    ended(chat)
    assert chat.evaluate("document.documentElement.scrollTop") == 0  # who has scrolled away is left there

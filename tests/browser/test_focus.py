"""Where the focus is after a button that goes away, and what a screen reader is told."""

import pytest

from tests import needs
from tests.browser.test_chat import ask, ended

expect = needs.playwright().expect
pytestmark = pytest.mark.slow


@pytest.fixture
def chats(chat):
    """The dialog of three chats."""
    for prompt in ("first", "second", "third"):
        chat.get_by_role("button", name="New chat").click()
        ask(chat, prompt)
        ended(chat)
    chat.get_by_role("button", name="Chats", exact=True).click()
    return chat.get_by_role("dialog", name="Chats")


def test_after_a_chat_is_deleted_the_next_can_be(chats, page):
    for deleted, focused in (("second", "first"), ("first", "third")):
        chats.get_by_role("button", name=f"Delete: {deleted}").press("Enter")
        expect(chats.get_by_role("status")).to_have_text(f"Deleted: {deleted}")
        expect(chats.get_by_role("button", name=f"Delete: {focused}")).to_be_focused()
    page.keyboard.press("Enter")
    expect(chats.get_by_text("No chats yet.")).to_be_visible()
    expect(chats.get_by_role("heading", name="Chats")).to_be_focused()


def test_after_all_chats_are_deleted_the_focus_is_in_the_dialog(chats, page):
    page.on("dialog", lambda asked: asked.accept())
    chats.get_by_role("button", name="Delete all chats").press("Enter")
    expect(chats.get_by_role("status")).to_have_text("Deleted: 3 chats")
    expect(chats.get_by_role("heading", name="Chats")).to_be_focused()


def test_after_the_settings_are_reset_the_focus_is_in_the_dialog(chat):
    chat.get_by_role("button", name="Settings").click()
    chat.get_by_role("button", name="Reset answers").press("Enter")
    expect(chat.get_by_role("heading", name="Settings")).to_be_focused()

"""Keys, themes, screen readers, motion and small screens."""

import pytest

from tests import needs
from tests.browser.scripted import Say
from tests.browser.test_chat import ask, ended

expect = needs.playwright().expect
pytestmark = pytest.mark.slow


def test_enter_sends_and_shift_enter_does_not(chat, server):
    box = chat.get_by_label("Message")
    box.fill("one")
    box.press("Shift+Enter")
    box.press_sequentially("two")
    assert server.chats() == []
    box.press("Enter")
    ended(chat)
    assert server.chats()[0]["messages"][0]["content"] == "one\ntwo"
    expect(box).to_be_focused()


def test_no_key_counts_while_an_input_method_composes(chat, server):
    chat.get_by_label("Message").fill("にほ")
    for init in ("{key: 'Enter', isComposing: true}", "{key: 'Enter', keyCode: 229}"):
        taken = chat.evaluate(
            f"""() => !document.querySelector("#text").dispatchEvent(
                new KeyboardEvent("keydown", {{bubbles: true, cancelable: true, ...{init}}}))"""
        )
        assert not taken
    expect(chat.get_by_label("Message")).to_have_value("にほ")
    assert server.chats() == []


def test_up_takes_the_last_message_back_and_escape_gives_it_up(chat, server):
    ask(chat, "first")
    ended(chat)
    chat.get_by_label("Message").press("ArrowUp")
    expect(chat.get_by_label("Message")).to_have_value("first")
    expect(chat.locator("#status")).to_contain_text("Editing")
    chat.keyboard.press("Escape")
    expect(chat.get_by_label("Message")).to_have_value("")
    ask(chat, "second")
    expect(chat.locator(".bubble")).to_have_text(["first", "second"])


def test_up_in_a_text_moves_the_cursor(chat):
    ask(chat, "first")
    ended(chat)
    chat.get_by_label("Message").fill("draft")
    chat.get_by_label("Message").press("ArrowUp")
    expect(chat.get_by_label("Message")).to_have_value("draft")


def test_the_focus_stays_at_hand_when_regenerate_is_pressed_and_goes(chat, server):
    ask(chat, "first")
    ended(chat)
    held = Say("one two", hold_after=1)
    server.replies.append(held)
    chat.get_by_role("button", name="Regenerate").press("Enter")
    expect(chat.locator("#stop")).to_be_focused()
    held.more.set()
    ended(chat)
    expect(chat.locator("#send")).to_be_focused()


def test_control_shift_o_begins_anew(chat, server):
    ask(chat, "first")
    ended(chat)
    chat.keyboard.press("Control+Shift+O")
    expect(chat.locator(".turn")).to_have_count(0)
    expect(chat.get_by_label("Message")).to_be_focused()
    expect(chat.get_by_role("heading", name="Talk to what you trained")).to_be_visible()


def test_a_new_chat_stops_the_running_one(chat, server):
    held = Say("one two", hold_after=1)
    server.replies.append(held)
    ask(chat, "first")
    expect(chat.locator(".reply .body")).to_have_text("one")
    chat.keyboard.press("Control+Shift+O")
    assert held.left.wait(10)
    expect(chat.locator(".turn")).to_have_count(0)


def test_everything_can_be_reached_by_tab(chat):
    chat.get_by_label("Message").focus()
    seen = []
    for _ in range(25):
        chat.keyboard.press("Tab")
        seen.append(chat.evaluate("document.activeElement.ariaLabel ?? document.activeElement.textContent"))
    for name in (
        "Skip to the message box",
        "Chats",
        "Compare",
        "New chat",
        "Settings",
        "Model",
        "Prompts",
        "Send",
    ):
        assert name in seen


def test_the_theme_follows_the_system_until_it_is_chosen(page, server):
    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.emulate_media(color_scheme="light")
    page.goto(server.url)
    light = paper()
    page.emulate_media(color_scheme="dark")
    dark = paper()
    assert dark != light
    page.get_by_role("button", name="Dark theme").click()
    assert paper() == light
    page.reload()
    assert paper() == light


def test_screen_readers_are_told_of_replies_and_states(chat, server):
    log = chat.get_by_role("log", name="Conversation")
    expect(log).to_have_attribute("aria-live", "polite")
    held = Say("one two", hold_after=1)
    server.replies.append(held)
    ask(chat, "hello")
    expect(log.locator("article[aria-busy=true]")).to_have_count(1)
    held.more.set()
    expect(log.locator("article[aria-busy=true]")).to_have_count(0)
    expect(chat.get_by_role("status").first).to_be_attached()


def test_nothing_moves_for_who_wants_no_motion(page, server):
    page.emulate_media(reduced_motion="reduce")
    page.goto(server.url)
    server.replies.append(Say("one two", hold_after=1))
    ask(page, "hello")
    expect(page.locator(".dots")).to_be_visible()
    assert page.evaluate("document.getAnimations().length") == 0


@pytest.mark.parametrize("mode", ["Chat", "Compare"])
def test_a_phone_shows_everything_without_scrolling_sideways(page, server, mode):
    page.set_viewport_size({"width": 320, "height": 640})
    wide = "word " * 30 + "\n\n```\n" + "x" * 300 + "\n```\n\n" + "y" * 300
    server.by_model = {"base": Say(wide), "tuned": Say(wide)}
    page.goto(server.url)
    page.get_by_label("Model", exact=True).wait_for()
    page.get_by_role("button", name=mode, exact=True).click()
    ask(page, "z" * 200)
    ended(page)
    for element in ("document.documentElement", "document.querySelector('main')"):
        assert page.evaluate(f"{element}.scrollWidth <= {element}.clientWidth")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_in_viewport()


def test_a_finger_sends_with_the_button_and_enter_is_a_new_line(browser, server):
    context = browser.new_context(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 780})
    page = context.new_page()
    page.goto(server.url)
    page.get_by_label("Model", exact=True).wait_for()
    expect(page.get_by_label("Message")).to_have_attribute("enterkeyhint", "enter")
    page.get_by_label("Message").fill("one")
    page.get_by_label("Message").press("Enter")
    assert server.chats() == []
    page.get_by_role("button", name="Send", exact=True).tap()
    ended(page)
    context.close()

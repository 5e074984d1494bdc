"""Chat: what streams, stops, is asked again, edited, copied and remembered."""

import re

import pytest

from tests import needs
from tests.browser.scripted import Fail, Say

expect = needs.playwright().expect
pytestmark = pytest.mark.slow


def ask(page, text):
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def ended(page, words="complete"):
    expect(page.locator(".facts").last).to_contain_text(words)


def test_a_reply_streams_and_says_how_it_came(chat, server):
    held = Say("one two three four", hold_after=2)
    server.replies.append(held)
    ask(chat, "count")
    expect(chat.locator(".reply .body")).to_have_text("one two")
    expect(chat.locator(".reply")).to_have_attribute("aria-busy", "true")
    held.more.set()
    ended(chat)
    expect(chat.locator(".reply .body")).to_have_text("one two three four")
    expect(chat.locator(".reply")).to_have_attribute("aria-busy", "false")
    expect(chat.locator(".facts")).to_have_text(
        re.compile(r"^4 tokens · \d+\.\d tokens/s · first token \d\.\d\d s · complete · seed \d+$")
    )


def test_a_reply_at_the_token_limit_says_so(chat, server):
    server.replies.append(Say("and then", finish="length"))
    ask(chat, "tell me all")
    ended(chat, "cut at the token limit")


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_reaches_the_server_and_keeps_what_came(chat, server, how):
    held = Say("one two three four", hold_after=2)
    server.replies.append(held)
    ask(chat, "count")
    expect(chat.locator(".reply .body")).to_have_text("one two")
    if how == "button":
        chat.get_by_role("button", name="Stop").click()
    else:
        chat.keyboard.press("Escape")
    assert held.left.wait(10)
    ended(chat, "stopped by you")
    expect(chat.locator(".reply .body")).to_have_text("one two")
    expect(chat.get_by_role("button", name="Send", exact=True)).to_be_visible()


def test_regenerate_replaces_the_last_reply_with_another_seed(chat, server):
    server.replies += [Say("first"), Say("second")]
    ask(chat, "hello")
    ended(chat)
    chat.get_by_role("button", name="Regenerate").click()
    expect(chat.locator(".reply .body")).to_have_text("second")
    ended(chat)
    first, second = server.chats()
    assert first["messages"] == second["messages"] == [{"role": "user", "content": "hello"}]
    assert first["seed"] != second["seed"]


def test_what_was_said_is_sent_along(chat, server):
    server.replies += [Say("Hi."), Say("Fine.")]
    ask(chat, "hello")
    ended(chat)
    ask(chat, "how are you?")
    expect(chat.locator(".facts").nth(1)).to_contain_text("complete")
    assert server.chats()[1]["messages"] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "how are you?"},
    ]


def test_an_edited_message_replaces_what_followed_it(chat, server):
    for text in ("one", "two"):
        ask(chat, text)
        ended(chat)
        expect(chat.locator(".turn")).to_have_count(1 if text == "one" else 2)
        expect(chat.get_by_role("button", name="Send", exact=True)).to_be_visible()
    chat.get_by_role("button", name="Edit and send again").first.click()
    expect(chat.get_by_label("Message")).to_have_value("one")
    ask(chat, "uno")
    expect(chat.locator(".bubble")).to_have_text(["uno"])
    ended(chat)
    assert server.chats()[-1]["messages"] == [{"role": "user", "content": "uno"}]


@pytest.mark.parametrize("how", ["refused", "stopped"])
def test_an_answer_stays_until_there_is_another(chat, server, how):
    ask(chat, "hello")
    ended(chat)
    chat.get_by_role("button", name="Good answer").click()
    held = Say("never", hold_after=0)
    server.replies.append(Fail(500, "internal_error", "out of memory") if how == "refused" else held)
    chat.get_by_role("button", name="Regenerate").click()
    if how == "refused":
        expect(chat.locator(".state")).to_contain_text("out of memory")
    else:
        expect(chat.locator(".reply")).to_have_attribute("aria-busy", "true")
        chat.keyboard.press("Escape")
    expect(chat.locator(".reply .body")).to_have_text("Hello there.")
    expect(chat.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "true")
    chat.reload()
    chat.get_by_role("button", name="Chats", exact=True).click()
    chat.get_by_role("button", name="hello", exact=False).first.click()
    expect(chat.locator(".reply .body")).to_have_text("Hello there.")
    expect(chat.get_by_role("button", name="Good answer")).to_have_attribute("aria-pressed", "true")


def test_an_edit_that_is_not_answered_replaces_nothing_and_can_be_sent_again(chat, server):
    server.replies += [Say("One."), Say("Two."), Fail(500, "internal_error"), Say("Uno.")]
    for number, text in enumerate(("one", "two")):
        ask(chat, text)
        expect(chat.locator(".facts").nth(number)).to_contain_text("complete")
    chat.get_by_role("button", name="Edit and send again").first.click()
    ask(chat, "uno")
    expect(chat.locator(".state")).to_contain_text("The server refused")
    expect(chat.locator(".reply .body")).to_have_text(["One.", "Two."])
    expect(chat.get_by_label("Message")).to_have_value("uno")
    chat.locator(".state").get_by_role("button", name="Try again").click()
    expect(chat.locator(".reply .body")).to_have_text(["Uno."])
    expect(chat.locator(".bubble")).to_have_text(["uno"])
    expect(chat.get_by_label("Message")).to_have_value("")


def test_stop_leaves_a_message_that_is_being_edited(chat, server):
    held = Say("one two", hold_after=1)
    server.replies.append(held)
    ask(chat, "hello")
    expect(chat.locator(".reply .body")).to_have_text("one")
    chat.get_by_role("button", name="Edit and send again").click()
    chat.get_by_label("Message").fill("hello again")
    chat.get_by_role("button", name="Stop").click()
    assert held.left.wait(10)
    expect(chat.get_by_label("Message")).to_have_value("hello again")
    chat.get_by_label("Message").press("Enter")
    expect(chat.locator(".bubble")).to_have_text(["hello again"])


def test_settings_and_system_prompt_reach_the_server(chat, server):
    chat.get_by_role("button", name="Settings").click()
    for label, value in {
        "system prompt": "Be brief.",
        "temperature": "0.3",
        "top p": "0.9",
        "max tokens": "50",
        "seed": "7",
    }.items():
        chat.get_by_label(label).fill(value)
    chat.get_by_role("button", name="Close").click()
    ask(chat, "hello")
    ended(chat)
    sent = server.chats()[0]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"], sent["seed"]) == (0.3, 0.9, 50, 7)
    assert (sent["model"], sent["stream"]) == ("tuned", True)


def test_settings_left_alone_are_the_servers(chat, server):
    ask(chat, "hello")
    ended(chat)
    assert {"temperature", "top_p", "max_tokens"}.isdisjoint(server.chats()[0])


def test_markdown_code_tables_and_formulas_are_shown(chat, server):
    text = (
        "# Title\n\nSome **bold** and `code`, $5 and $6, and $x^2$.\n\n$$\\frac{1}{2}$$\n\n\\[y\\]\n\n"
        "```python\nprint(1)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n- [x] done"
    )
    server.replies.append(Say(text))
    ask(chat, "show all")
    ended(chat)
    body = chat.locator(".reply .body")
    expect(body.locator("math")).to_have_count(3)
    expect(body.locator("p").first).to_contain_text("$5 and $6")
    expect(body.locator("h1, strong, table, ul")).to_have_count(4)
    expect(body.locator(".code-bar")).to_contain_text("python")


def test_a_code_block_and_a_reply_are_copied_as_they_are(chat, server):
    server.replies.append(Say("Take **this**:\n\n```\na < b\n```"))
    ask(chat, "code")
    ended(chat)
    chat.evaluate("() => { window.setTimeout = () => 0; }")  # else it is said for 1.5 s only
    chat.locator(".code").get_by_role("button", name="Copy").click()
    expect(chat.locator(".code-bar button")).to_have_text("Copied")
    assert chat.evaluate("navigator.clipboard.readText()") == "a < b"
    chat.locator(".foot").get_by_role("button", name="Copy").click()
    expect(chat.locator(".foot .done")).to_be_visible()
    assert chat.evaluate("navigator.clipboard.readText()") == "Take **this**:\n\n```\na < b\n```"


def test_what_is_written_from_right_to_left_is_shown_so_and_code_is_not(chat, server):
    table = "| א | b |\n|---|---|\n| 1 | 2 |"
    code = "```\nא = 1\n```"
    server.replies.append(Say(f"שלום *world*\n\n- אחת\n- two\n\n> ציטוט\n\n{table}\n\n{code}\n\nHello"))
    chat.get_by_label("Message").fill("שלום")
    expect(chat.get_by_label("Message")).to_have_css("direction", "rtl")
    chat.get_by_label("Message").press("Enter")
    ended(chat)
    body = chat.locator(".reply .body")
    for shown in ("p >> text=שלום", "li >> nth=0", "ul", "blockquote", "table"):
        expect(body.locator(shown)).to_have_css("direction", "rtl")
    for shown in ("pre", "p >> text=Hello"):
        expect(body.locator(shown)).to_have_css("direction", "ltr")


DOCUMENTS = [
    "plain",
    "para\n***\nnext",
    "para\n***bold***\nmore",
    "para\n---\nafter",
    "- a\n- b\n\n  still b\n\nend",
    "1. a\n\n   ```\n   code\n\n   more\n   ```\n2. b\n\n> quote\n> more\n\nlast",
    "```js\nlet a;\n\nlet b;\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\ntail",
    "text\n| a | b |\n|---|---|\n| 1 | 2 |\n",
    "$$\nx\n$$\n\nThen $y$ and \\(z\\).\n\n\\[\nw\n\\]\n\nend",
    "<div>\n\nin\n\n</div>\n\nout",
    "# A\ntext\n## B\n\n* x\n* y\n\n\n\nz",
    "half ```open",
    "one\r\n\r\ntwo\rlines\r\n\r\n```\r\ncode\r\n\r\nmore\r\n```\r\n\r\n- a\r\n- b\r\n\r\n# end\r\n",
]


def test_what_streamed_in_looks_as_if_it_had_come_at_once(chat):
    pairs = chat.evaluate(
        """async (texts) => {
            const { LiveMarkdown, elements } = await import("./markdown.js");
            return texts.map((text) => {
                const live = new LiveMarkdown();
                for (let end = 1; end <= text.length; end++) live.show(text.slice(0, end));
                const box = document.createElement("div");
                box.append(elements(text));
                live.tail.replaceWith(...live.tail.childNodes);
                return [live.element, box].map((each) => each.innerHTML.replaceAll(/>\\s+</g, "><").trim());
            });
        }""",
        DOCUMENTS,
    )
    for streamed, whole in pairs:
        assert streamed == whole

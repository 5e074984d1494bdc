"""The page is small, and stays responsive while two replies stream."""

import gzip
from urllib.parse import urlsplit

import pytest

from tests.browser.scripted import PAGE, Say
from tests.browser.test_chat import ask

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = pytest.mark.slow

WORDS = "Some *words* of a reply, with `code` and 3 numbers. "
BLOCK = WORDS * 6 + "\n\n- one\n- two\n\n```python\nfor i in range(3):\n    print(i)\n```\n\n"


def test_all_files_together_are_under_250_kb_compressed_and_come_from_one_host(page, server):
    asked = []
    page.on("request", lambda request: asked.append(urlsplit(request.url)))
    page.goto(server.url)
    server.replies.append(Say("$x$"))  # also what is fetched only for formulas
    ask(page, "math")
    expect(page.locator("math")).to_be_visible()
    files = {PAGE / (url.path.lstrip("/") or "index.html") for url in asked}
    found = [path for path in files if path.is_file()]
    assert len(found) > 20
    assert sum(len(gzip.compress(path.read_bytes())) for path in found) < 250_000
    assert {url.netloc for url in asked} == {urlsplit(server.url).netloc}


@pytest.mark.parametrize("text", [BLOCK * 30, "word " * 2000], ids=["blocks", "one paragraph"])
def test_two_streams_of_2000_tokens_leave_the_page_responsive(chat, server, text):
    """In one of three tries: other programs use this machine too."""

    def responsive():
        blocked = blocked_ms(chat, server, text)
        return sum(blocked) < 1000 and max(blocked, default=0) < 200  # in a stream of at least 4 s

    assert any(responsive() for _ in range(3))


def blocked_ms(chat, server, text):
    """How long the main thread was blocked, each time, while two replies streamed and somebody typed."""
    chat.goto(server.url)
    chat.get_by_role("button", name="Compare", exact=True).click()
    chat.evaluate(
        """() => {
            window.long = [];
            new PerformanceObserver((list) => {
                window.long.push(...list.getEntries().map((each) => each.duration));
            }).observe({type: "longtask"});
        }"""
    )
    streams = {"base": Say(text, pause_s=0.002), "tuned": Say(text, pause_s=0.002)}
    assert all(len(say.pieces) >= 2000 for say in streams.values())
    server.by_model = streams
    ask(chat, "much")
    chat.get_by_label("Message").press_sequentially("typed meanwhile")
    expect(chat.get_by_role("button", name="Stop")).to_be_visible()  # they still stream
    expect(chat.get_by_role("group", name="Which answer is better?")).to_be_visible(timeout=60_000)
    expect(chat.get_by_label("Message")).to_have_value("typed meanwhile")
    return chat.evaluate("window.long")


def test_rendering_grows_with_the_text_and_not_with_its_square(chat):
    short, long = chat.evaluate(
        """async (block) => {
            const { LiveMarkdown } = await import("./markdown.js");
            const lexed = (count) => {
                const live = new LiveMarkdown();
                const text = block.repeat(count);
                let work = 0;
                for (let end = 50; end <= text.length; end += 50) {
                    live.show(text.slice(0, end));
                    work += end - live.settled;
                }
                return work;
            };
            return [lexed(10), lexed(40)];
        }""",
        BLOCK,
    )
    assert long < 4.5 * short

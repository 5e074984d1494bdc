"""The page is small, and takes what is typed while two replies stream."""

import gzip
from urllib.parse import urlsplit

import pytest

from tests import needs
from tests.browser.scripted import PAGE, Say
from tests.browser.test_chat import ask

expect = needs.playwright().expect
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
def test_what_is_typed_comes_while_two_replies_of_2000_tokens_stream(chat, server, text):
    chat.get_by_role("button", name="Compare", exact=True).click()
    last = len(Say(text).pieces) - 1
    assert last >= 1999
    streams = {name: Say(text, pause_s=0.002, hold_after=last) for name in ("base", "tuned")}
    server.by_model = streams
    ask(chat, "much")
    chat.get_by_label("Message").press_sequentially("typed meanwhile")
    expect(chat.get_by_label("Message")).to_have_value("typed meanwhile")
    expect(chat.get_by_role("button", name="Stop")).to_be_visible()
    for say in streams.values():
        say.more.set()
    expect(chat.get_by_role("group", name="Which answer is better?")).to_be_visible(timeout=60_000)
    expect(chat.get_by_label("Message")).to_have_value("typed meanwhile")


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

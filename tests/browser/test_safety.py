"""What a model or a server says is untrusted text: nothing of it runs, nothing leaves the origin."""

import re
from urllib.parse import urlsplit

import pytest

from tests import needs
from tests.browser.hostile import HOSTILE
from tests.browser.scripted import PAGE, Say, model
from tests.browser.test_chat import ask, ended

expect = needs.playwright().expect
pytestmark = pytest.mark.slow

DANGEROUS = (
    "script, img, svg, iframe, object, embed, style, link, meta, base, form, input, video, audio, "
    "dialog, details"
)


@pytest.fixture
def hosts(page):
    """Every host that the page asks for anything."""
    asked = set()
    page.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
    return asked


def nothing_ran(page, inside):
    assert page.evaluate("window.pwned") is None
    found = page.evaluate(
        """([inside, dangerous]) => [...document.querySelectorAll(inside)].flatMap((root) =>
            [...root.querySelectorAll("*")].filter((element) => element.matches(dangerous)
                || [...element.attributes].some(({name, value}) =>
                    name.startsWith("on") || /^\\s*(javascript|data|vbscript):/i.test(value))
                || element.id || element.hasAttribute("name")).map((element) => element.outerHTML))""",
        [inside, DANGEROUS],
    )
    assert found == []


def test_there_are_forty():
    assert len(set(HOSTILE)) == 40


def test_no_reply_runs_or_calls_anybody(chat, server, hosts):
    server.replies += [Say(text, piece=7) for text in HOSTILE]
    for number, text in enumerate(HOSTILE):
        ask(chat, "go")
        expect(chat.locator(".facts").nth(number)).to_contain_text("complete")
        body = chat.locator(".reply .body").nth(number)
        for link in body.locator("a[href]").all():
            assert re.match(r"(https?|mailto):", link.get_attribute("href")), text
            assert link.get_attribute("rel") == "noopener noreferrer nofollow"
    nothing_ran(chat, ".reply .body")
    chat.mouse.move(400, 400)
    chat.reload()
    chat.get_by_role("button", name="Chats", exact=True).click()
    chat.locator(".entry").first.click()
    expect(chat.locator(".facts")).to_have_count(len(HOSTILE))
    nothing_ran(chat, ".reply .body")
    assert hosts == {urlsplit(server.url).netloc}


def test_the_page_stays_whole_under_hostile_replies(chat, server):
    server.replies += [Say(text) for text in HOSTILE[-2:]]
    for number in range(2):
        ask(chat, "go")
        expect(chat.locator(".facts").nth(number)).to_contain_text("complete")
    chat.get_by_role("button", name="Settings").click()
    expect(chat.get_by_role("dialog", name="Settings")).to_be_visible()


@pytest.mark.parametrize("text", [">" * 4000, "> " * 4000, "- " * 4000 + "end"])
def test_a_reply_too_deep_for_markdown_is_shown_as_it_stands(chat, server, text):
    server.replies += [Say(text, piece=500), Say("And on.")]
    ask(chat, "go")
    ended(chat)
    expect(chat.locator(".reply .body").first).to_contain_text(text.strip()[-100:])
    ask(chat, "go on")
    expect(chat.locator(".reply .body").last).to_have_text("And on.")


def test_prompts_names_facts_and_tokens_are_text_too(page, server, hosts):
    evil = '<img src="https://evil.invalid/x" onerror="window.pwned=1">'
    server.models = [
        model("base"),
        model(evil, "base", {"run": evil, "base_model": evil, "recipe": {"r": evil}}),
    ]
    server.gallery = [
        {"source": evil, "messages": [{"role": "user", "content": evil}], "reference": evil},
    ]
    server.replies.append(Say("fine"))
    page.goto(server.url)
    page.locator(".suggestion", has_text="onerror").wait_for()  # the run's prompts have come
    page.get_by_role("button", name="Prompts").click()
    page.get_by_role("dialog").locator(".choice button").click()
    page.get_by_label("Message").press("Enter")
    ended(page)
    page.get_by_role("button", name="What the model saw").click()
    expect(page.locator(".raw")).to_contain_text("onerror")
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="About this run").click()
    expect(page.get_by_role("dialog")).to_contain_text("onerror")
    assert page.evaluate("window.pwned") is None
    assert page.locator("img").count() == 0
    assert hosts == {urlsplit(server.url).netloc}


def test_the_difference_view_shows_hostile_text_as_text(chat, server, hosts):
    server.by_model = {"base": Say(HOSTILE[3] + " a"), "tuned": Say(HOSTILE[0] + " b")}
    chat.get_by_role("button", name="Compare", exact=True).click()
    ask(chat, "go")
    chat.get_by_role("button", name="Show differences").click()
    expect(chat.locator("del")).to_contain_text(["onerror"])
    nothing_ran(chat, ".reply .body")
    assert hosts == {urlsplit(server.url).netloc}


def test_the_policy_lets_nothing_in_but_this_folder():
    policy = re.search(
        r'Content-Security-Policy" content="([^"]+)"', (PAGE / "index.html").read_text("utf-8")
    )[1]
    rules = dict(part.strip().partition(" ")[::2] for part in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self' http: https:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "dompurify",
    }


def test_the_policy_is_enforced(context, server):
    page = context.new_page()
    page.goto(server.url)
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.append("window.pwned = 1");
            document.body.append(script);
        }"""
    )
    assert page.evaluate("window.pwned") is None
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>x</b>'")


def test_no_file_of_ours_writes_html_or_evaluates_text():
    for path in PAGE.glob("*.js"):
        code = path.read_text("utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", code
        ), path
        assert "http://" not in code.replace("http://www.w3.org/2000/svg", ""), path

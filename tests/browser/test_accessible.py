"""axe-core finds nothing at WCAG 2.2 AA, in any theme, size and state."""

import hashlib
from pathlib import Path

import pytest

from tests import needs
from tests.browser.scripted import Fail, Say
from tests.browser.test_chat import ask, ended

expect = needs.playwright().expect
pytestmark = pytest.mark.slow

AXE = Path(__file__).parent / "vendor" / "axe.js"  # axe-core 4.14.1, unchanged
SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
REPLY = (
    "# Title\n\nA [link](https://example.org), `code` and $x$.\n\n```python\nprint(1)\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n> quote\n\n1. one\n2. two"
)


def test_axe_is_the_released_one():
    assert hashlib.sha256(AXE.read_bytes()).hexdigest() == SHA256


@pytest.fixture(params=["light", "dark"])
def theme(request):
    return request.param


@pytest.fixture(params=[(390, 780), (1200, 800)], ids=["phone", "desktop"])
def screen(request):
    return request.param


@pytest.fixture
def shown(page, server, theme, screen):
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": screen[0], "height": screen[1]})
    page.goto(server.url)
    page.get_by_label("Model", exact=True).wait_for()
    page.evaluate(AXE.read_text("utf-8"))
    return page


def violations(page):
    found = page.evaluate("(tags) => axe.run({runOnly: {type: 'tag', values: tags}})", RULES)
    assert len(found["passes"]) > 15
    return [(each["id"], [node["html"][:150] for node in each["nodes"]]) for each in found["violations"]]


def test_chat(shown, server):
    expect(shown.locator(".suggestion").first).to_be_visible()
    assert violations(shown) == []
    server.replies += [Say(REPLY), Say("one two", hold_after=1)]
    ask(shown, "show")
    ended(shown)
    expect(shown.locator("math")).to_be_visible()
    shown.get_by_role("button", name="Good answer").click()
    ask(shown, "wait")
    expect(shown.locator(".body").last).to_have_text("one")
    assert violations(shown) == []


def test_compare(shown, server):
    server.by_model = {"base": Say("the cat sat"), "tuned": Say("the dog sat")}
    shown.get_by_role("button", name="Compare", exact=True).click()
    shown.get_by_label("Blind").check()
    ask(shown, "go")
    shown.get_by_role("button", name="A", exact=True).wait_for()
    assert violations(shown) == []
    shown.get_by_role("button", name="A", exact=True).click()
    shown.get_by_role("button", name="Show differences").click()
    assert violations(shown) == []


def test_dialogs(shown, server):
    ask(shown, "hello")
    ended(shown)
    for name in ("Chats", "About this run", "Settings", "Prompts", "What the model saw"):
        shown.get_by_role("button", name=name, exact=True).click()
        expect(shown.get_by_role("dialog", name=name)).to_be_visible()
        assert violations(shown) == []
        shown.keyboard.press("Escape")


def test_errors(shown, server):
    server.replies += [Say("One."), Fail(400, "context_length_exceeded", "Too long."), Say("")]
    for number in range(3):
        ask(shown, "hello")
        expect(shown.get_by_role("button", name="Send", exact=True)).to_be_visible()
        expect(shown.locator(".turn")).to_have_count(number + 1)
    expect(shown.locator(".state")).to_have_count(2)
    assert violations(shown) == []
    server.key = "k"
    shown.reload()
    shown.evaluate(AXE.read_text("utf-8"))
    expect(shown.locator(".welcome .state")).to_contain_text("wants a key")
    assert violations(shown) == []

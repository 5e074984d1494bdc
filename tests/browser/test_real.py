"""The page on the lab's own server, with the embedded model."""

import re

import pytest

from tests import needs
from tests.browser.test_chat import ask, ended
from tests.conformance.server import Address, generated, load_of, wait_for

expect = needs.playwright().expect
pytestmark = pytest.mark.slow


@pytest.fixture
def real(page, lab_server):
    page.goto(lab_server)
    page.get_by_label("Model", exact=True).wait_for(timeout=30_000)
    return page


def set_answers(page, **values):
    page.get_by_role("button", name="Settings").click()
    for label, value in values.items():
        page.get_by_label(label.replace("_", " ")).fill(str(value))
    page.get_by_role("button", name="Close").click()


def test_the_embedded_model_answers(real):
    set_answers(real, temperature=0, max_tokens=16)
    real.get_by_label("Model", exact=True).select_option("base")
    ask(real, "What is the capital of France? Answer in one sentence.")
    expect(real.locator(".reply .body")).to_contain_text("Paris", timeout=60_000)
    ended(real, "tokens/s")
    real.get_by_role("button", name="What the model saw").click()
    expect(real.locator(".raw")).to_contain_text("<|im_start|>user\nWhat is the capital of France?")
    expect(real.locator(".raw")).to_contain_text(re.compile(r"<\|im_start\|>assistant\s*$"))
    assert real.locator(".tokens span").count() > 10


def test_base_and_tuned_answer_side_by_side(real):
    set_answers(real, temperature=0, max_tokens=12)
    real.get_by_role("button", name="Compare", exact=True).click()
    ask(real, "Name three colours.")
    expect(real.get_by_role("group", name="Which answer is better?")).to_be_visible(timeout=60_000)
    base, tuned = real.locator(".reply .body").all_inner_texts()
    assert base != tuned
    real.get_by_role("button", name="Show differences").click()
    expect(real.locator("del").first).to_be_visible()


def test_stop_ends_the_servers_work(real, lab_server):
    address, most = Address(lab_server), 3000  # tokens, which take minutes
    set_answers(real, max_tokens=most)
    real.get_by_label("Model", exact=True).select_option("base")
    before = generated(address)
    ask(real, "Write a very long story about a llama.")
    expect(real.locator(".reply .body")).to_contain_text(re.compile(r"\w+ \w+"), timeout=60_000)
    assert load_of(address) == (1, 0)
    real.keyboard.press("Escape")
    wait_for(lambda: load_of(address) == (0, 0))
    assert generated(address) - before < most
    ended(real, "stopped by you")

"""The page on the lab's own server, with the embedded model."""

import re
import time
import urllib.request

import pytest

from tests.browser.test_chat import ask, ended

expect = pytest.importorskip("playwright.sync_api").expect
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


def running(url):
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    return float(re.search(r"^finelab_running (\S+)", text, re.MULTILINE)[1])


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


def test_stop_ends_the_servers_work_within_half_a_second(real, lab_server):
    """In one of three tries: other programs use this machine too."""
    real.get_by_label("Model", exact=True).select_option("base")
    assert any(seconds_to_stop(real, lab_server) < 0.5 for _ in range(3))


def seconds_to_stop(real, lab_server):
    real.get_by_role("button", name="New chat").click()
    ask(real, "Write a very long story about a llama.")
    expect(real.locator(".reply .body")).to_contain_text(re.compile(r"\w+ \w+"), timeout=60_000)
    assert running(lab_server) == 1
    real.keyboard.press("Escape")
    stopped = time.monotonic()
    while running(lab_server):
        assert time.monotonic() - stopped < 30
    seconds = time.monotonic() - stopped
    ended(real, "stopped by you")
    return seconds

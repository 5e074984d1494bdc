"""A real Chromium, one for all browser tests; each test has its own profile and its own scripted server."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs
from tests.browser.scripted import serving

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
# a name that isn't localhost for this machine: such a page, over http, has no secure context
FLAGS.append("--host-resolver-rules=MAP lab.invalid 127.0.0.1")


@pytest.fixture(scope="package")  # its event loop runs in this thread, where later tests start kernels
def playwright():
    api = needs.playwright()
    if not CHROMIUM.exists():
        pytest.skip(needs.lacking_program("chromium"))
    api.expect.set_options(timeout=20_000)  # the page shares two cores with the other tests
    with api.sync_playwright() as started:
        yield started


@pytest.fixture(scope="package")
def browser(playwright):
    started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
    yield started
    started.close()


@pytest.fixture
def server():
    with serving() as script:
        yield script


@pytest.fixture(scope="session")
def lab_server(embedded_folder, tokenizer, tmp_path_factory):
    """The lab's own server with the embedded model and an adapter that moved; gives its address."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tests import tiny

    adapter = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(embedded_folder, dtype="float32")
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=tiny.MODULES, init_lora_weights=False))
    tuned.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    command = [sys.executable, "-m", "finelab", "serve", "--port", "0", "--dtype", "float32"]
    command += ["--model", str(embedded_folder), "--adapter", f"tuned={adapter}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    said = next(filter(None, (re.search(r"Serving (http://\S+)", line) for line in process.stdout)), None)
    assert said, "the server ended before it served"
    yield said[1]
    process.terminate()
    process.wait(30)


@pytest.fixture
def context(browser):
    made = browser.new_context(viewport={"width": 1100, "height": 800}, locale="en-GB")
    made.grant_permissions(["clipboard-read", "clipboard-write"])
    made.set_default_timeout(30_000)
    yield made
    made.close()


@pytest.fixture
def page(context):
    """A page whose uncaught errors and policy violations fail the test."""
    opened = context.new_page()
    problems = watch(opened)
    yield opened
    assert problems == []


def watch(page):
    """What the page throws, and what its Content-Security-Policy refuses."""
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda said: (
            problems.append(said.text)
            if re.search(r"Content.Security.Policy|TrustedHTML|Refused to", said.text)
            else None
        ),
    )
    return problems


@pytest.fixture
def chat(page, server):
    """The page, connected to the scripted server."""
    page.goto(server.url)
    page.get_by_label("Model", exact=True).wait_for()
    return page

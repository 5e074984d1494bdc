"""README's pictures of the chat page, taken from a running server: every answer in them is the model's own.

    python lab.py serve &
    python benchmarks/screenshots.py http://127.0.0.1:8000

Needs the package playwright and Debian's chromium.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

PICTURES = Path(__file__).parents[1] / "deployment" / "page" / "pictures"
QUESTION = "I have these numbers: 64, 12, 181 and 33. List them from smallest to largest."
DESKTOP, PHONE = {"width": 1100, "height": 860}, {"width": 390, "height": 780}
LIMIT_BYTES = 200_000
# Greedy and short, so that the same run gives the same pictures.
SETTINGS = '{"temperature": "0", "max_tokens": "80", "seed": "3407"}'


def opened(browser: Any, url: str, scheme: str, size: dict[str, int]) -> Any:
    """The page, connected, in a profile of its own."""
    context = browser.new_context(color_scheme=scheme, viewport=size, locale="en-GB")
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.add_init_script(f"localStorage['finelab.settings'] ??= '{SETTINGS}'")
    page.goto(url)
    page.locator(".suggestion").first.wait_for()
    return page


def ask(page: Any, prompt: str, models: int = 1) -> None:
    """Send a prompt and wait for its answers to end."""
    page.get_by_label("Message").fill(prompt)
    page.get_by_role("button", name="Send", exact=True).click()
    page.locator(".turn").last.locator(".facts", has_text="tokens").nth(models - 1).wait_for()


def save(page: Any, name: str) -> None:
    """Keep the picture, if it is small enough for a README."""
    path = PICTURES / f"{name}.png"
    page.screenshot(path=path)
    if path.stat().st_size > LIMIT_BYTES:
        raise SystemExit(
            f"{path.name} has {path.stat().st_size:,} bytes; at most {LIMIT_BYTES:,} are wanted."
        )
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB")


def main() -> None:
    """Take the four pictures."""
    parser = argparse.ArgumentParser(description="Take README's pictures of the chat page.")
    parser.add_argument("url", help="a running server, such as http://127.0.0.1:8000")
    url = parser.parse_args().url
    from playwright.sync_api import sync_playwright

    PICTURES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = opened(browser, url, "light", DESKTOP)
        save(page, "light")
        page.get_by_role("button", name="Compare", exact=True).click()
        ask(page, QUESTION, models=2)
        page.get_by_role("button", name="Show differences").click()
        save(page, "compare")
        page = opened(browser, url, "dark", DESKTOP)
        for prompt in ("What is a GPU good for?", "Write a Python function that adds two numbers."):
            ask(page, prompt)
        save(page, "dark")
        page = opened(browser, url, "light", PHONE)
        ask(page, QUESTION)
        save(page, "phone")
        browser.close()


if __name__ == "__main__":
    main()

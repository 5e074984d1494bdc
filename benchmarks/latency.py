"""How soon the server and its page obey, each beside the limit that was set for it.

bash .ci/run                    adds what it needs: a browser, its driver, a voice, a sound device
python benchmarks/latency.py    writes benchmarks/results/latency.json; some minutes on 2 quiet cores

The lab's own server answers with the embedded model; OpenAI's client and a real Chromium ask. A ratio is the
limit by the slowest round. That the server is idle is asked every 5 ms. What sounds is what the sound device
plays, recorded, which adds up to 50 ms.
"""

import argparse
import array
import json
import os
import platform
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import openai
from playwright.sync_api import Browser, Page, sync_playwright

from finelab import machine
from finelab.embedded.model import embedded_model
from finelab.files import write_json
from tests.browser import sound
from tests.browser.conftest import CHROMIUM, FLAGS
from tests.conformance.server import Address, Server, load_of, wait_for

RESULT = Path(__file__).parent / "results" / "latency.json"
LIMITS = {
    "client gone, server idle": 0.5,
    "Stop, server idle": 0.5,
    "Escape, speech ended": 0.05,
    "Escape, sound ended": 0.5,
    "longest task of the page while an answer streams": 0.2,
}
PROMPT = "Write a very long story about a llama."
NEVER_REACHED = 3000  # tokens, which take minutes
STREAMED = 128
SILENCED = """async () => {
    const began = performance.now();
    document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}));
    while (speechSynthesis.speaking || speechSynthesis.pending) {
        await new Promise((resolve) => setTimeout(resolve, 1));
    }
    return (performance.now() - began) / 1000;
}"""


def main() -> None:
    """Measure every wait several times, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    if name := sound.missing():
        raise SystemExit(f"the program {name} is not installed; as root, bash .ci/run adds it")
    with (
        tempfile.TemporaryDirectory() as folder,
        Server("--model", embedded_model()) as server,
        sound.null_sink(Path(folder)) as env,
        chromium(env) as browser,
    ):
        runs = measure(server.address, browser, env, rounds)
    result = summary(runs)
    write_json(RESULT, result)
    for name, limit in LIMITS.items():
        each = result["details"]["waits"][name]
        print(f"{name:50} median {each['median_s']:.3f} s, most {each['most_s']:.3f} s, limit {limit} s")
    print(json.dumps(result))


def summary(runs: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and the slowest round of each wait, and the limit by the latter: over 1 it was kept."""
    waits = {
        name: {
            "limit_s": LIMITS[name],
            "median_s": statistics.median(each),
            "most_s": max(each),
            "runs_s": each,
        }
        for name, each in runs.items()
    }
    return {
        "benchmark": "latency",
        "ratios": {name: round(each["limit_s"] / each["most_s"], 2) for name, each in waits.items()},
        "limit_share": None,
        "details": {
            "waits": waits,
            "load_average": os.getloadavg(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "versions": machine.versions(),
        },
    }


def measure(address: Address, browser: Browser, env: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Every wait in turn, so many times; the first round warms up."""
    runs: dict[str, list[float]] = {name: [] for name in LIMITS}
    for number in range(rounds + 1):
        found = [client_gone(address), stopped(address, browser)]
        found += [*silenced(address, browser, env), longest_task(address, browser)]
        if number:
            for name, seconds in zip(LIMITS, found, strict=True):
                runs[name].append(round(seconds, 4))
    return runs


def client_gone(address: Address) -> float:
    """OpenAI's client closes a stream in the middle."""
    messages: list[Any] = [{"role": "user", "content": PROMPT}]
    with openai.OpenAI(base_url=f"{address.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="base", messages=messages, max_tokens=NEVER_REACHED, stream=True
        )
        next(chunk for chunk in stream if chunk.choices[0].delta.content)
        return until_idle(address, stream.close)


def stopped(address: Address, browser: Browser) -> float:
    """A click on the page's Stop."""
    with asked(address, browser, NEVER_REACHED) as page:
        return until_idle(address, page.get_by_role("button", name="Stop").click)


def until_idle(address: Address, action: Callable[[], None]) -> float:
    """Seconds from before the action until the server's one answer has ended."""
    assert load_of(address) == (1, 0)
    began = time.monotonic()
    action()
    wait_for(lambda: load_of(address) == (0, 0))
    return time.monotonic() - began


def silenced(address: Address, browser: Browser, env: dict[str, str]) -> tuple[float, float]:
    """Escape while an answer is read aloud: until the browser says that it ended, until nothing sounds."""
    ear = sound.Ear(env)
    with asked(address, browser, NEVER_REACHED) as page:
        assert ear.hears(True, within_s=60)
        heard = Heard(ear)
        began = time.monotonic()
        ended_s = page.evaluate(SILENCED)
        time.sleep(1)  # what still sounds then does not count as an answer to the key
    ear.process.terminate()
    heard.thread.join()
    return ended_s, max(0.0, heard.last - began)


class Heard:
    """The time of the last sound, in pieces of a hundredth of a second."""

    def __init__(self, ear: sound.Ear) -> None:
        self.last = 0.0
        self.thread = threading.Thread(target=self._listen, args=(ear.process.stdout,))
        self.thread.start()

    def _listen(self, stream: IO[bytes]) -> None:
        while piece := stream.read(2 * sound.RATE // 100):
            if max(map(abs, array.array("h", piece))) > sound.LOUD:
                self.last = time.monotonic()


def longest_task(address: Address, browser: Browser) -> float:
    """The longest that a page's main thread was busy at a stretch, as Chromium traces it."""
    with asked(address, browser, STREAMED) as page:
        browser.start_tracing(categories=["disabled-by-default-devtools.timeline", "__metadata"])
        page.locator(".facts", has_text="tokens/s").wait_for()
        events = json.loads(browser.stop_tracing())["traceEvents"]
    threads = {
        (each["pid"], each["tid"])
        for each in events
        if each["name"] == "thread_name" and each["args"]["name"] == "CrRendererMain"
    }
    tasks = [each for each in events if each["name"] == "RunTask" and "dur" in each]
    return max(each["dur"] / 1e6 for each in tasks if (each["pid"], each["tid"]) in threads)


@contextmanager
def asked(address: Address, browser: Browser, tokens: int) -> Iterator[Page]:
    """The page in a profile of its own, once an answer streams and is read aloud."""
    context = browser.new_context(locale="en-GB")
    context.set_default_timeout(600_000)
    page = context.new_page()
    settings = json.dumps({"max_tokens": str(tokens), "aloud": True})
    page.add_init_script(f"localStorage['finelab.settings'] = '{settings}'")
    page.goto(address.url)
    page.locator(".suggestion").first.wait_for()
    page.get_by_label("Message").fill(PROMPT)
    page.get_by_label("Message").press("Enter")
    page.locator(".reply .body", has_text=re.compile(r"\w+ \w+")).wait_for()
    yield page
    context.close()
    wait_for(lambda: load_of(address) == (0, 0))


@contextmanager
def chromium(env: dict[str, str]) -> Iterator[Browser]:
    """A browser with a voice."""
    flags = [*FLAGS, "--enable-speech-dispatcher"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags, env=env)
        yield browser
        browser.close()


if __name__ == "__main__":
    main()

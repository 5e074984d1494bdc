"""Four clients at once for minutes: whole answers, streams, clients that leave, requests that make no sense.

`python -m tests.conformance.load --minutes 5` starts the lab's server on the embedded model and prints one
line of JSON; a wrong answer is one that differs from what the server says when it is asked that alone.
"""

import argparse
import json
import random
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import httpx
import psutil

from finelab.embedded.model import embedded_model
from tests.conformance.server import load_of, serving, wait_for

CLIENTS = 4
MODELS = ("base", "tuned", "other")
QUESTIONS = (
    "Tell me about the moon.",
    "What is a llama?",
    "Count from one to ten.",
    "Write a short poem. 🌙",
)
LENGTHS = (4, 16, 40)
BAD = (
    {"temperature": 9},
    {"messages": []},
    {"n": 0},
    {"model": "nobody"},
    {"stop": [""]},
    {"max_tokens": 10**9},
)
STUCK = 60.0  # seconds without an answer


class Load:
    """The clients' work and what came of it."""

    def __init__(self, address):
        self.address = address
        self.counts = Counter()
        self.faults = []
        self.lock = threading.Lock()
        self.alone = {}

    def ask_alone(self):
        """Every question's answer while nobody else asks; the longest, since greedy ones begin alike."""
        with self.address.http(timeout=STUCK) as http:
            for model in MODELS:
                for question in QUESTIONS:
                    body = chat_body(model, question, max(LENGTHS))
                    tokens = answer_of(http.post("/v1/chat/completions", json=body))
                    self.alone[model, question] = tokens

    def ended(self):
        """How many requests have, whatever came of them."""
        return sum(self.counts[name] for name in ("requests", "errors", "stuck"))

    def seconds(self):
        """How long the clients have been at it."""
        return time.monotonic() - self.began

    def run(self, process, so_far, warm, end):
        """Keep the clients at it until `so_far()` is `end`; gives the server's memory at `warm` and then."""
        self.began = time.monotonic()
        threads = [
            threading.Thread(target=self._client, args=(number, lambda: so_far() < end))
            for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: so_far() >= warm, seconds=600)
        before = process.memory_info().rss
        for thread in threads:
            thread.join()
        wait_for(lambda: load_of(self.address) == (0, 0))
        return before, process.memory_info().rss

    def _client(self, number, goes_on):
        draw = random.Random(number)
        with self.address.http(timeout=STUCK) as http:
            while goes_on():
                kind = draw.choices((self._whole, self._stream, self._leave, self._bad), (3, 4, 2, 2))[0]
                try:
                    kind(http, draw)
                    self._count("requests")
                except (httpx.HTTPError, AssertionError, ValueError, KeyError) as error:
                    kind_of_error = "stuck" if isinstance(error, httpx.TimeoutException) else "errors"
                    self._count(kind_of_error)
                    self.faults.append(f"{kind.__name__}: {error!r}"[:300])

    def _whole(self, http, draw):
        key, body = self._drawn(draw)
        self._compare(key, body, answer_of(http.post("/v1/chat/completions", json=body)))

    def _stream(self, http, draw):
        key, body = self._drawn(draw)
        with http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
            assert response.status_code == 200
            self._compare(key, body, tokens_of(chunks_of(response)))

    def _leave(self, http, draw):
        """Close the connection at once, or after a few chunks."""
        _, body = self._drawn(draw)
        if draw.random() < 0.5:
            with closing(self.address.send("/v1/chat/completions", body)):
                pass
        else:
            with http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
                for _ in zip(range(draw.randint(1, 5)), response.iter_lines(), strict=False):
                    pass
        self._count("aborts")

    def _bad(self, http, draw):
        body = chat_body("base", QUESTIONS[0], 4) | draw.choice(BAD)
        response = http.post("/v1/chat/completions", json=body)
        assert response.status_code in (400, 404), response.text
        assert response.json()["error"]["message"]

    def _drawn(self, draw):
        model, question, length = draw.choice(MODELS), draw.choice(QUESTIONS), draw.choice(LENGTHS)
        return (model, question), chat_body(model, question, length)

    def _compare(self, key, body, tokens):
        expected = self.alone[key][: body["max_tokens"]]
        self._count("tokens", len(tokens))
        if tokens != expected:
            self._count("wrong")
            self.faults.append(f"{key}: {''.join(tokens)!r} instead of {''.join(expected)!r}")

    def _count(self, name, more=1):
        with self.lock:
            self.counts[name] += more


def chat_body(model, question, length):
    asked = {"temperature": 0, "logprobs": True, "max_tokens": length}
    return {"model": model, "messages": [{"role": "user", "content": question}], **asked}


def answer_of(response):
    assert response.status_code == 200, response.text
    return tokens_of(response.json()["choices"])


def tokens_of(choices):
    return [token["token"] for each in choices if each["logprobs"] for token in each["logprobs"]["content"]]


def chunks_of(response):
    """The choices of a stream's chunks; an error in it, or an end without [DONE], is an AssertionError."""
    line = ""
    for line in filter(None, response.iter_lines()):
        if line.startswith("data: {"):
            chunk = json.loads(line[6:])
            assert "error" not in chunk, line
            yield from chunk["choices"]
    assert line == "data: [DONE]"


def measure(server, so_far, warm, end):
    """Run the load on a server until `so_far(load)` is `end`; gives the counts, the faults and the memory."""
    load = Load(server.address)
    load.ask_alone()
    before, after = load.run(psutil.Process(server.process.pid), lambda: so_far(load), warm, end)
    names = ("requests", "tokens", "aborts", "errors", "stuck", "wrong")
    result = {name: load.counts[name] for name in names}
    return result | {"rss_warm_bytes": before, "rss_end_bytes": after, "faults": load.faults[:5]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5)
    seconds = parser.parse_args().minutes * 60
    with tempfile.TemporaryDirectory() as folder, serving(embedded_model(), Path(folder)) as server:
        result = measure(server, Load.seconds, warm=min(60, seconds / 4), end=seconds)
        print(json.dumps({"seconds": seconds, **result}))


if __name__ == "__main__":
    main()

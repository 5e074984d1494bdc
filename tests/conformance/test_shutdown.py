"""How the server starts and stops."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPException

import httpx
import pytest

from finelab.__main__ import main
from tests.conformance.conftest import EXTERNAL
from tests.conformance.server import Server, load_of, wait_for

pytestmark = [
    pytest.mark.skipif(EXTERNAL is not None, reason="starts and stops servers of its own"),
    pytest.mark.skipif(os.name == "nt", reason="signals"),
]
LONG = {"model": "base", "prompt": "a", "ignore_eos": True, "temperature": 0}


@pytest.fixture
def server(tiny_base):
    """It waits for answers under way as long as they take."""
    limits = ("--max-concurrency=1", "--max-model-len=16000", "--shutdown-timeout=600")
    with Server("--model", tiny_base, "--dtype=float32", *limits) as server:
        yield server


@pytest.mark.slow
def test_a_stopping_server_finishes_what_it_took(server):
    """A stream, and one that waits behind it, are answered; a new request is not; then it ends with 0."""
    address = server.address
    whole = {**LONG, "max_tokens": 600}
    longer = {**LONG, "max_tokens": 2000}  # it still runs when the other one waits behind it
    with ThreadPoolExecutor() as pool, address.http() as kept, closing(address.connection()) as stream:
        kept.get("/health")
        headers = {"Content-Type": "application/json"}
        stream.request("POST", "/v1/completions", json.dumps(longer | {"stream": True}), headers)
        response = stream.getresponse()
        waiting = pool.submit(httpx.post, f"{address.url}/v1/completions", json=whole, timeout=60)
        wait_for(lambda: load_of(address) == (1, 1))
        server.process.send_signal(signal.SIGTERM)
        refused_when_stopping(kept)
        events = response.read().decode().split("\n\n")
        assert waiting.result().json()["usage"]["completion_tokens"] == 600
    assert events[-2] == "data: [DONE]"
    reasons = [json.loads(event[6:])["choices"][0]["finish_reason"] for event in events[:-2]]
    assert reasons[-1] == "length"
    assert server.process.wait(30) == 0


def refused_when_stopping(kept):
    """A new request is not taken, on a kept connection either."""

    def stopping():
        try:
            kept.get("/health")
        except httpx.TransportError:
            return True
        return False

    wait_for(stopping)


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(server):
    """It would have finished the answer after the first."""
    address = server.address
    body = {**LONG, "max_tokens": 8000, "stream": True}
    with address.http() as kept, closing(address.send("/v1/completions", body)) as asked:
        answer = asked.getresponse()
        kept.get("/health")
        server.process.send_signal(signal.SIGTERM)
        refused_when_stopping(kept)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises((HTTPException, ConnectionError)):
            answer.read()
    server.process.wait(30)


def test_a_model_that_is_not_there_is_one_sentence(tmp_path, capsys):
    assert main(["serve", "--port=0", f"--model={tmp_path / 'nothing'}"]) == 2
    assert "nothing is no model that transformers can load" in capsys.readouterr().err

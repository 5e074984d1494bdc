"""How the server starts and stops."""

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest

from tests.conformance.conftest import EXTERNAL
from tests.conformance.server import Server, command, load_of, wait_for

pytestmark = [
    pytest.mark.skipif(EXTERNAL is not None, reason="starts and stops servers of its own"),
    pytest.mark.skipif(os.name == "nt", reason="signals"),
]
LONG = {"model": "base", "prompt": "a", "ignore_eos": True, "temperature": 0}


@pytest.fixture
def server(tiny_base):
    with Server(
        "--model", tiny_base, "--dtype=float32", "--max-concurrency=1", "--max-model-len=16000"
    ) as server:
        yield server


@pytest.mark.slow
def test_a_stopping_server_finishes_what_it_took(server):
    """A stream, and one that waits behind it, are answered; a new request is not; then it ends with 0."""
    address = server.address
    whole = {**LONG, "max_tokens": 600}
    with ThreadPoolExecutor() as pool, address.http() as kept, closing(address.connection()) as stream:
        kept.get("/health")
        headers = {"Content-Type": "application/json"}
        stream.request("POST", "/v1/completions", json.dumps(whole | {"stream": True}), headers)
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
            kept.post("/v1/completions", json={**LONG, "max_tokens": 1})
        except httpx.TransportError:
            return True
        return False

    wait_for(stopping)


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(server):
    address = server.address
    body = {**LONG, "max_tokens": 8000}
    with closing(address.send("/v1/completions", body)):
        wait_for(lambda: load_of(address)[0] == 1)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(0.5)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(15)


def refusal(*arguments, keys=""):
    """How a server that cannot start ends: (exit code, what it says)."""
    environment = os.environ | {"FINELAB_API_KEYS": keys}
    ended = subprocess.run(
        command(*arguments), env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr.strip().splitlines()[-1]


def test_a_public_address_needs_a_key(tiny_base):
    code, sentence = refusal("--model", tiny_base, "--host=0.0.0.0")
    assert code == 2
    assert "key" in sentence


@pytest.mark.slow
def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    code, sentence = refusal("--model", tmp_path / "nothing")
    assert code == 2
    assert "nothing" in sentence

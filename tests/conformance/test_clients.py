"""Clients that leave, wait, do not read, or are too many."""

import json
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, suppress

import openai
import pytest

from tests.conformance.conftest import error_of
from tests.conformance.server import load_of, wait_for

LONG = {"ignore_eos": True, "temperature": 0, "max_tokens": 3000}
STOPPED_S = 10.0  # the embedded model's 3,000 tokens take it minutes: only a stopped answer ends so soon


@pytest.fixture(scope="module")
def long_chat(base):
    return {
        "model": base,
        "messages": [{"role": "user", "content": "Tell me a story."}],
        **LONG,
    }


@pytest.fixture(scope="module")
def soon(small):
    """Seconds in which the tiny model cannot end `LONG` by itself, as busy as this machine is."""
    with small.http() as http:
        began = time.monotonic()
        http.post("/v1/completions", json={"model": "base", "prompt": "a", **LONG}).raise_for_status()
        return (time.monotonic() - began) / 3


def frees_soon(address, leave, seconds=STOPPED_S):
    """Whether so many seconds are enough in one of three tries: other programs use this machine too."""
    for _ in range(3):
        wait_for(lambda: load_of(address) == (0, 0))
        leave()
        with suppress(AssertionError):
            wait_for(lambda: load_of(address) == (0, 0), seconds)
            return True
    return False


@pytest.mark.parametrize(
    "change",
    [{}, {"stream": True}, {"n": 3}, {"n": 3, "stream": True}],
    ids=["whole", "stream", "choices", "stream of choices"],
)
def test_a_client_that_leaves_frees_the_engine(address, long_chat, change):
    def leave():
        with closing(address.send("/v1/chat/completions", long_chat | change)):
            wait_for(lambda: load_of(address)[0] > 0)

    assert frees_soon(address, leave)


def test_a_client_that_leaves_while_its_prompt_is_read_frees_the_engine(address, long_chat):
    """Not the whole prompt is read, only the piece of 192 tokens that is being computed: an eighth of it."""

    def reading(word):
        return long_chat | {"messages": [{"role": "user", "content": word * 1500}], "max_tokens": 1}

    def leave():
        with closing(address.send("/v1/chat/completions", reading("Hi "))):
            wait_for(lambda: load_of(address)[0] > 0)

    with closing(address.send("/v1/chat/completions", reading("Ho "))):
        wait_for(lambda: load_of(address)[0] > 0)
        whole = wait_for(lambda: load_of(address) == (0, 0), 60)
    assert frees_soon(address, leave, whole / 3)


def test_a_client_that_leaves_in_mid_stream_frees_the_engine(chat, address):
    def leave():
        with chat(stream=True, max_tokens=3000, extra_body={"ignore_eos": True}) as stream:
            for _ in range(3):
                next(stream)

    assert frees_soon(address, leave)


def test_a_client_that_gives_up_frees_the_engine(client, base, address):
    """The openai client's own timeout, as a user meets it."""
    asked = {"model": base, "max_tokens": 3000, "extra_body": {"ignore_eos": True}}

    def leave():
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=1.0).completions.create(prompt="Once upon a time", **asked)

    assert frees_soon(address, leave)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_the_queue_is_forgotten(small, soon, stream):
    body = {"model": "base", "prompt": "a", **LONG}
    with ExitStack() as running:
        for _ in range(2):
            running.enter_context(closing(small.send("/v1/completions", body)))
        wait_for(lambda: load_of(small) == (2, 0))
        with closing(small.send("/v1/completions", body | {"stream": stream})):
            wait_for(lambda: load_of(small) == (2, 1))
        wait_for(lambda: load_of(small) == (2, 0), soon)
    wait_for(lambda: load_of(small) == (0, 0), soon)


def test_a_queue_that_is_full_says_when_to_come_again(small, soon):
    """Two at once and two waiting: the fourth is taken, the fifth is not."""
    body = {"model": "base", "prompt": "a", **LONG}
    client = openai.OpenAI(base_url=f"{small.url}/v1", api_key="none", max_retries=0)
    with client, small.http() as http, ExitStack() as asked:
        for taken in range(1, 5):
            asked.enter_context(closing(small.send("/v1/completions", body)))
            wait_for(lambda taken=taken: load_of(small) == (min(taken, 2), max(taken - 2, 0)))
        response = http.post("/v1/completions", json=body)
        assert (response.status_code, error_of(response)["code"]) == (429, "queue_full")
        assert error_of(response)["type"] == "rate_limit_error"
        assert int(response.headers["retry-after"]) >= 1
        assert http.post("/v1/completions", json=body | {"stream": True}).status_code == 429
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="base", prompt="a")
        assert caught.value.code == "queue_full"
        assert http.get("/health").status_code == 200
    wait_for(lambda: load_of(small) == (0, 0), soon)
    with small.http() as http:
        assert http.post("/v1/completions", json=body | {"max_tokens": 1}).status_code == 200


def test_choices_that_do_not_fit_together_are_all_refused(small):
    body = {"model": "base", "prompt": "a", "max_tokens": 1, "n": 5}
    with small.http() as http:
        assert http.post("/v1/completions", json=body).status_code == 429
        assert http.post("/v1/completions", json=body | {"n": 4}).status_code == 200


def test_requests_sent_at_once_are_counted_exactly(small):
    """Both rows are taken and two places are left: of seven, five are refused, however close they come."""
    body = {"model": "base", "prompt": "a", **LONG}

    def ask(_):
        with small.http() as http:
            return http.post("/v1/completions", json=body | {"max_tokens": 1}).status_code

    with ThreadPoolExecutor(7) as pool, ExitStack() as running:
        for taken in (1, 2):
            running.enter_context(closing(small.send("/v1/completions", body)))
            wait_for(lambda taken=taken: load_of(small) == (taken, 0))
        asked = as_completed(pool.submit(ask, number) for number in range(7))
        assert [next(asked).result() for _ in range(5)] == [429] * 5
        assert load_of(small) == (2, 2)
        running.close()
        assert [each.result() for each in asked] == [200, 200]


def test_the_queue_is_first_come_first_served(small):
    """One row is taken for long; the other takes what waits, one after another."""
    body = {"model": "base", "prompt": "a", **LONG}
    ended = []

    def ask(number):
        with small.http() as http:
            assert http.post("/v1/completions", json=body | {"max_tokens": 300}).status_code == 200
        ended.append(number)

    with ThreadPoolExecutor(3) as pool, closing(small.send("/v1/completions", body)):
        wait_for(lambda: load_of(small) == (1, 0))
        for number in (1, 2, 3):
            pool.submit(ask, number)
            wait_for(lambda number=number: sum(load_of(small)) + len(ended) > number)
        wait_for(lambda: len(ended) == 3)
    assert ended == [1, 2, 3]


def test_a_client_that_reads_nothing_holds_nobody_up(small, soon):
    """20 log-probabilities a token: megabytes that it leaves lying."""
    body = {"model": "base", "prompt": "a", **LONG, "stream": True, "logprobs": 20}
    with closing(small.send("/v1/completions", body)), small.http() as http:
        wait_for(lambda: load_of(small)[0] == 1)
        for _ in range(3):
            response = http.post("/v1/completions", json={"model": "base", "prompt": "b", "max_tokens": 20})
            assert response.status_code == 200
    wait_for(lambda: load_of(small) == (0, 0), soon)


def test_a_connection_serves_a_hundred_requests(address):
    connection = address.connection()
    connection.connect()
    socket = connection.sock
    for place in range(100):
        connection.request("GET", ("/health", "/v1/models", "/no-such")[place % 3], headers=address.headers)
        response = connection.getresponse()
        response.read()
        assert response.status in (200, 404)
        assert connection.sock is socket, f"closed after request {place}"
    connection.close()


def test_a_connection_goes_on_after_a_stream_and_an_error(address, base):
    connection = address.connection()
    headers = {"Content-Type": "application/json"} | address.headers
    asked = json.dumps({"model": base, "prompt": "Hi", "max_tokens": 2, "stream": True})
    for body, status in [(asked, 200), ("{", 400), (asked, 200)]:
        connection.request("POST", "/v1/completions", body, headers)
        socket = connection.sock
        response = connection.getresponse()
        response.read()
        assert (response.status, connection.sock) == (status, socket)
    connection.close()


def test_a_body_that_never_comes_whole_holds_nobody_up(address, chat):
    connections = []
    for _ in range(8):
        connection = address.connection()
        connection.putrequest("POST", "/v1/chat/completions")
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": "100",
            **address.headers,
        }.items():
            connection.putheader(name, value)
        connection.endheaders(b'{"model"')
        connections.append(connection)
    assert chat(max_tokens=1).usage.completion_tokens == 1
    for connection in connections:
        connection.close()
    assert load_of(address) == (0, 0)

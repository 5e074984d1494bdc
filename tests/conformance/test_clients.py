"""Clients that leave, wait, do not read, or are too many."""

import json
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager

import openai
import pytest

from tests.conformance.conftest import error_of
from tests.conformance.server import generated, load_of, wait_for

MOST = 3000  # tokens; nobody waits for so many
LONG = {"ignore_eos": True, "temperature": 0, "max_tokens": MOST}


@pytest.fixture(scope="module")
def long_chat(base):
    return {
        "model": base,
        "messages": [{"role": "user", "content": "Tell me a story."}],
        **LONG,
    }


@contextmanager
def cut_short(address, tokens=MOST):
    """What is asked within ends before it has made so many tokens, because nobody waits for them."""
    wait_for(lambda: load_of(address) == (0, 0))
    before = generated(address)
    yield
    wait_for(lambda: load_of(address) == (0, 0))
    assert generated(address) - before < tokens


@pytest.mark.parametrize(
    "change",
    [{}, {"stream": True}, {"n": 3}, {"n": 3, "stream": True}],
    ids=["whole", "stream", "choices", "stream of choices"],
)
def test_a_client_that_leaves_frees_the_engine(address, long_chat, change):
    with cut_short(address), closing(address.send("/v1/chat/completions", long_chat | change)):
        wait_for(lambda: load_of(address)[0] > 0)


def test_a_client_that_leaves_while_its_prompt_is_read_frees_the_engine(address, long_chat):
    """The prompt is read in pieces of 192 tokens; asked again, those that were not read are not cached."""
    words = [{"role": "user", "content": "Hi " * 1500}]
    body = long_chat | {"messages": words, "max_tokens": 1}
    with cut_short(address, 1), closing(address.send("/v1/chat/completions", body)):
        wait_for(lambda: load_of(address)[0] > 0)
    with address.http() as http:
        usage = http.post("/v1/chat/completions", json=body).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"] - 192


def test_a_client_that_leaves_in_mid_stream_frees_the_engine(chat, address):
    asked = {"stream": True, "max_tokens": MOST, "extra_body": {"ignore_eos": True}}
    with cut_short(address), chat(**asked) as stream:
        for _ in range(3):
            next(stream)


def test_a_client_that_gives_up_frees_the_engine(client, base, address):
    """The openai client's own timeout, as a user meets it."""
    asked = {"model": base, "max_tokens": MOST, "extra_body": {"ignore_eos": True}}
    with cut_short(address), pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.0).completions.create(prompt="Once upon a time", **asked)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_the_queue_is_forgotten(small, stream):
    body = {"model": "base", "prompt": "a", **LONG}
    with cut_short(small, 2 * MOST), ExitStack() as running:
        for _ in range(2):
            running.enter_context(closing(small.send("/v1/completions", body)))
        wait_for(lambda: load_of(small) == (2, 0))
        before = generated(small)
        with closing(small.send("/v1/completions", body | {"stream": stream})):
            wait_for(lambda: load_of(small) == (2, 1))
        wait_for(lambda: load_of(small) == (2, 0))
        assert generated(small) == before, "one of the two has ended, and the third took its place"


def test_a_queue_that_is_full_says_when_to_come_again(small):
    """Two at once and two waiting: the fourth is taken, the fifth is not."""
    body = {"model": "base", "prompt": "a", **LONG}
    client = openai.OpenAI(base_url=f"{small.url}/v1", api_key="none", max_retries=0)
    with cut_short(small, 2 * MOST), client, small.http() as http, ExitStack() as asked:
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
    with small.http() as http:
        assert http.post("/v1/completions", json=body | {"max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(
    ("path", "most", "over", "param"),
    [
        ("/v1/completions", {"prompt": "a", "n": 4}, {"n": 5}, "n"),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2}, {"prompt": ["a", "b", "c"]}, "prompt"),
        ("/v1/completions", {"prompt": ["a"] * 4}, {"prompt": ["a"] * 20_000}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "n": 4}, {"n": 5}, "n"),
    ],
    ids=["choices", "both", "prompts", "chat"],
)
def test_more_answers_than_are_ever_taken_are_no_full_queue(small, path, most, over, param):
    """Two at once and two waiting: five would be refused at any later time, too."""
    body = {"model": "base", "max_tokens": 1} | most
    with small.http() as http:
        assert http.post(path, json=body).status_code == 200
        refused = http.post(path, json=body | over)
    assert (refused.status_code, "retry-after" in refused.headers) == (400, False)
    assert (error_of(refused)["code"], error_of(refused)["param"]) == ("invalid_value", param)
    assert "at most 4 fit" in error_of(refused)["message"]


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
            wait_for(lambda number=number: len(ended) + sum(load_of(small)) > number)
        wait_for(lambda: len(ended) == 3)
    assert ended == [1, 2, 3]


def test_a_client_that_reads_nothing_holds_nobody_up(small):
    """20 log-probabilities a token: megabytes that it leaves lying."""
    body = {"model": "base", "prompt": "a", **LONG, "stream": True, "logprobs": 20}
    with cut_short(small), closing(small.send("/v1/completions", body)), small.http() as http:
        wait_for(lambda: load_of(small)[0] == 1)
        for _ in range(3):
            response = http.post("/v1/completions", json={"model": "base", "prompt": "b", "max_tokens": 20})
            assert response.status_code == 200


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

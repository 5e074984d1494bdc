"""Requests that make no sense: an error object that says where, and never a failure of the server."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.conftest import error_of

USER = {"role": "user", "content": "Hi"}
FIELDS = [
    ("messages", None),
    ("messages", "Hi"),
    ("messages", {}),
    ("messages", []),
    ("messages", [123]),
    ("messages", [None]),
    ("messages", [[]]),
    ("messages", [{}]),
    ("messages", [{"role": 123, "content": "Hi"}]),
    ("messages", [{"role": "robot", "content": "Hi"}]),
    ("messages", [{"content": "Hi"}]),
    ("messages", [{"role": "user"}]),
    ("messages", [{"role": "user", "content": None}]),
    ("messages", [{"role": "user", "content": 123}]),
    ("messages", [{"role": "user", "content": {}}]),
    ("messages", [{"role": "user", "content": [123]}]),
    ("messages", [{"role": "user", "content": ["Hi"]}]),
    ("messages", [{"role": "user", "content": [{"type": "text", "text": 5}]}]),
    ("messages", [{"role": "user", "content": [{"text": "Hi"}]}]),
    ("messages", [USER, {"role": "user"}]),
    ("model", None),
    ("model", 5),
    ("model", ["base"]),
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", "hot"),
    ("temperature", [1]),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_k", -2),
    ("top_k", 1.5),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("repetition_penalty", 0),
    ("repetition_penalty", 2.1),
    ("seed", "x"),
    ("seed", 1.5),
    ("stop", 5),
    ("stop", [5]),
    ("stop", ""),
    ("stop", [""]),
    ("stop", ["a", "b", "c", "d", "e"]),
    ("n", 0),
    ("n", -1),
    ("n", "2"),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", "many"),
    ("max_tokens", 1.5),
    ("max_completion_tokens", 0),
    ("logit_bias", []),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"99999999": 1}),
    ("logit_bias", {"5": "much"}),
    ("logprobs", "yes"),
    ("top_logprobs", -1),
    ("stream", "yes"),
    ("stream_options", {"include_usage": True}),
    ("response_format", "json"),
    ("tools", "hammer"),
    ("min_tokens", -1),
    ("ignore_eos", "yes"),
]
PROMPTS = [None, [], [[]], {}, 5, [1.5], ["a", 5], [5, "a"], [None], [[1], "a"], [[1], []], True]
BODIES = [
    b"",
    b"{",
    b"null",
    b"5",
    b'"text"',
    b"[]",
    b"{}",
    b"{'model': 'base'}",
    b"\xff\xfe\x00",
    b'{"model": "base", "messages": [{"role": "user", "content": "\xff"}]}',
    b'{"model": "base", "prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}',
    b'{"model": "base", "prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}], "top_p": -Infinity}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"model": "base", "messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    b'{"model": "base", "prompt": "Hi", "max_tokens": 1' + b"0" * 10_000 + b"}",
    "{\u201cmodel\u201d: 1}".encode(),
]
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("field", "value"), FIELDS, ids=[f"{field} {value!r}"[:60] for field, value in FIELDS]
)
def test_a_malformed_field_is_named(refused, field, value):
    error = refused(**{field: value})
    assert error["type"] == "invalid_request_error"
    assert error["param"].split(".")[0] == field


@pytest.mark.parametrize("field", ["model", "messages"])
def test_a_missing_field_is_named(http, base, field):
    body = {"model": base, "messages": [USER], "max_tokens": 1}
    del body[field]
    response = http.post("/v1/chat/completions", json=body)
    assert (response.status_code, error_of(response)["param"]) == (400, field)


@pytest.mark.parametrize("prompt", PROMPTS, ids=repr)
def test_a_malformed_prompt_is_named(refused, prompt):
    assert refused(path="/v1/completions", prompt=prompt)["param"].split(".")[0] == "prompt"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:40]))
def test_a_body_that_is_no_request_is_refused(http, path, body):
    response = http.post(path, content=body, headers=JSON)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "change", [{}, {"messages": []}, {"prompt": 5}, {"messages": [USER], "prompt": "Hi"}], ids=str
)
def test_tokenize_wants_messages_or_a_prompt(http, base, change):
    response = http.post("/tokenize", json={"model": base} | change)
    assert response.status_code == 400
    error_of(response)


def test_too_many_stop_strings_are_counted(refused):
    error = refused(stop=["a", "b", "c", "d", "e"])
    assert (error["message"], error["param"]) == ("at most 4 stop strings, not 5", "stop")


def test_a_message_says_what_came_and_what_was_expected(refused):
    message = refused(temperature=9)["message"]
    assert "temperature" in message
    assert "2" in message


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
)
def test_another_content_type_is_refused(http, base, kind):
    body = json.dumps({"model": base, "messages": [USER], "max_tokens": 1}).encode()
    response = http.post("/v1/chat/completions", content=body, headers={"Content-Type": kind} if kind else {})
    assert response.status_code == 415
    error_of(response)


def test_a_content_type_may_name_its_charset(http, base):
    body = json.dumps({"model": base, "messages": [USER], "max_tokens": 1}).encode()
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert http.post("/v1/chat/completions", content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("counted", [True, False], ids=["with a length", "in chunks"])
def test_a_body_over_one_megabyte_is_refused(http, counted):
    body = b'{"model": "base", "prompt": "' + b"a" * 1_100_000 + b'"}'
    content = (
        body if counted else iter([body[place : place + 65_536] for place in range(0, len(body), 65_536)])
    )
    response = http.post("/v1/completions", content=content, headers=JSON)
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    "path", ["/no-such", "/v1/no-such", "/v1", "/v1/chat", "/v1/embeddings", "/v1/responses"]
)
def test_an_unknown_route_is_not_found(http, path):
    response = http.post(path, json={})
    assert (response.status_code, error_of(response)["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat/completions"),
        ("HEAD", "/v1/completions"),
        ("DELETE", "/v1/models"),
        ("PUT", "/tokenize"),
        ("POST", "/health"),
    ],
)
def test_another_method_is_refused(http, method, path):
    response = http.request(method, path, json={} if method in ("POST", "PUT") else None)
    assert response.status_code == 405
    assert response.headers["allow"]
    if method != "HEAD":
        error_of(response)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=8), each, max_size=3),
    max_leaves=6,
)
NAMES = sorted({field for field, _ in FIELDS} - {"model", "max_tokens", "max_completion_tokens"})


@settings(
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    fields=st.dictionaries(st.sampled_from([*NAMES, "prompt", "echo"]), VALUES, min_size=1, max_size=3),
    chat=st.booleans(),
)
def test_made_up_json_never_fails_the_server(small, fields, chat):
    path = "/v1/chat/completions" if chat else "/v1/completions"
    body = {"model": "base", "messages": [USER], "prompt": "Hi"} | fields | {"max_tokens": 1}
    with small.http() as http:
        response = http.post(path, content=json.dumps(body), headers=JSON)
    assert response.status_code in (200, 400, 404, 429), response.text
    if response.status_code != 200:
        error_of(response)


def test_the_server_still_answers(chat, small):
    assert chat(max_tokens=2).usage.completion_tokens == 2
    with small.http() as http:
        assert http.get("/health").json() == {"status": "ok"}

"""gate.py over real HTTP, in front of the stand-in for vLLM."""

import argparse
import http.client
import json
import threading

import httpx
import openai
import pytest
import uvicorn

from tests.deployment import stand_in
from tests.deployment.conftest import KEY

PAGE = "https://me-chat.hf.space"
BASIC = {"Authorization": f"Bearer {KEY}"}
UNKNOWN = """
    /invocations /tokenize /detokenize /metrics /docs /openapi.json /redoc /load /version /ping /sleep
    /wake_up /collective_rpc /reset_prefix_cache /v1/load_lora_adapter /v1/responses /v1/embeddings
    /v1/audio/speech /v2/x /inference/v1/generate / /health/ //v1/models /v1/models/ /v1/../invocations
    /V1/models /%69nvocations
"""
WRONG = [None, "", "Bearer", "Bearer wrong", "Bearer schlüssel", KEY, f"Basic {KEY}", f"Bearer {KEY}x"]
WRONG += [f"Bearer {KEY[:-1]}", f"Bearer  {KEY}"]
CHAT = {"model": "base", "messages": [{"role": "user", "content": "Hello"}]}


class Announced(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config):
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.up.set()


@pytest.fixture
def serve(script, monkeypatch):
    """Starts the stand-in with the gate in front; gives its address."""
    servers = []

    def start(**environment):
        monkeypatch.setenv("VLLM_API_KEY", KEY)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        script("gate")
        arguments = argparse.Namespace(
            served_model_name=["base"], lora_modules=None, model="m", middleware=["gate.Gate"]
        )
        app = stand_in.application(arguments)
        server = Announced(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        assert server.up.wait(30)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(10)


def assert_error(answer, status, code):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code and error["message"] and error["param"] is None
    assert answer.headers["X-Request-Id"]


def test_the_documented_routes_answer_with_the_key(serve):
    url = serve()
    assert httpx.get(f"{url}/health").status_code == 200
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    assert [each.id for each in client.models.list()] == ["base"]
    assert client.chat.completions.create(**CHAT).choices[0].message.content == "base hears Hello"
    asked = {"model": "base", "prompt": [1, 2], "max_tokens": 1}
    assert httpx.post(f"{url}/v1/completions", json=asked, headers=BASIC).status_code == 200


def test_nothing_else_does(serve):
    url = serve()
    with httpx.Client(base_url=url, headers=BASIC) as client:
        for path in UNKNOWN.split():
            for method in ("GET", "POST"):
                assert_error(client.request(method, path, json=CHAT), 404, "not_found")


def test_another_method_is_refused(serve):
    url = serve()
    answer = httpx.get(f"{url}/v1/chat/completions", headers=BASIC)
    assert_error(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"
    assert_error(httpx.delete(f"{url}/v1/models", headers=BASIC), 405, "method_not_allowed")
    assert_error(httpx.options(f"{url}/v1/models"), 405, "method_not_allowed")


@pytest.mark.parametrize("header", WRONG)
def test_a_wrong_key_is_told_as_openai_does(serve, header):
    url = serve()
    headers = {} if header is None else {"Authorization": header.encode()}
    answer = httpx.post(f"{url}/v1/chat/completions", json=CHAT, headers=headers)
    assert_error(answer, 401, "invalid_api_key")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"


def test_openais_client_knows_what_a_wrong_key_is(serve):
    client = openai.OpenAI(base_url=f"{serve()}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_keys_are_compared_in_constant_time(script, monkeypatch):
    gate = script("gate")
    compared = []
    monkeypatch.setattr(gate.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    guard = gate.Guard(None, KEY)
    for key in ("x", KEY[:-1], KEY):
        guard.has_key({"headers": [(b"authorization", f"Bearer {key}".encode())]})
    assert len(compared) == 3
    assert {len(each) for pair in compared for each in pair} == {32}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/health", "/invocations"])
def test_a_page_on_the_list_may_call_and_read_refusals(serve, path):
    url = serve(FINELAB_ALLOWED_ORIGINS=f"https://other.example, {PAGE}/")
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-arch"  # openai's client
    preflight = httpx.options(url + path, headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Headers"] == asked["Access-Control-Request-Headers"]
    assert preflight.headers["Access-Control-Allow-Origin"] == PAGE
    answer = httpx.post(url + path, json=CHAT, headers={"Origin": PAGE})
    assert answer.status_code in (401, 404, 405)
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize("origins", ["", PAGE])
def test_other_pages_may_not(serve, origins):
    url = serve(FINELAB_ALLOWED_ORIGINS=origins)
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{url}/v1/chat/completions", headers=asked)
    assert preflight.status_code == 400
    assert "Access-Control-Allow-Origin" not in preflight.headers


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_body_over_a_megabyte_is_refused(serve, chunked):
    url = serve()
    body = json.dumps(CHAT | {"pad": "x" * 1_000_000}).encode()
    content = iter([body[:500_000], body[500_000:]]) if chunked else body
    headers = BASIC | {"Content-Type": "application/json"}
    answer = httpx.post(f"{url}/v1/chat/completions", content=content, headers=headers)
    assert_error(answer, 413, "request_too_large")
    fits = json.dumps(CHAT | {"pad": "x" * 900_000}).encode()
    content = iter([fits[:1000], fits[1000:]]) if chunked else fits
    assert httpx.post(f"{url}/v1/chat/completions", content=content, headers=headers).status_code == 200


def test_a_length_that_is_no_number_does_no_harm(serve):
    host = serve().removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    for name, value in {**BASIC, "Content-Length": "-5"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status in (400, 413)


@pytest.mark.parametrize("key", ["", "\n"])
def test_an_empty_key_opens_nothing(script, key):
    with pytest.raises(ValueError, match="VLLM_API_KEY is empty"):
        script("gate").Guard(None, key)


def test_the_end_of_a_files_line_is_no_part_of_the_key(serve):
    url = serve(VLLM_API_KEY=f"{KEY}\r\n")
    assert httpx.post(f"{url}/v1/chat/completions", json=CHAT, headers=BASIC).status_code == 200
    assert_error(httpx.post(f"{url}/v1/chat/completions", json=CHAT), 401, "invalid_api_key")


def test_snapshots_open_two_routes_to_the_key(serve):
    url = serve(VLLM_SERVER_DEV_MODE="1")
    assert_error(httpx.post(f"{url}/sleep?level=1"), 401, "invalid_api_key")
    assert httpx.post(f"{url}/sleep?level=1", headers=BASIC).status_code == 200
    assert httpx.post(f"{url}/wake_up", headers=BASIC).status_code == 200
    assert_error(httpx.post(f"{url}/collective_rpc", headers=BASIC), 404, "not_found")

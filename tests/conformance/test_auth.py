"""Who may ask: keys, origins, hosts."""

import json

import openai
import pytest

from tests.conformance.conftest import error_of
from tests.conformance.server import KEYS, ORIGIN, Server

OPEN = {"/", "/health", "/docs", "/openapi.json"}
PREFLIGHT = {  # as a browser asks for openai's JavaScript client
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-arch,x-stainless-runtime",
}


@pytest.fixture(scope="module")
def nobody(address):
    if not address.keys:
        pytest.skip("this server asks for no key")
    with address.http(headers={}) as client:
        yield client


def routes(client):
    paths = client.get("/openapi.json").json()["paths"]
    methods = ("get", "post", "put", "patch", "delete")
    return [(method, path) for path, item in paths.items() for method in item if method in methods]


def test_every_route_asks_for_the_key(nobody, http):
    asked = [(method, path) for method, path in routes(http) if path not in OPEN]
    assert len(asked) >= 6
    for method, path in asked:
        response = nobody.request(method, path.replace("{", "").replace("}", ""))
        assert response.status_code == 401, (method, path)
        assert response.headers["www-authenticate"].startswith("Bearer")
        error = error_of(response)
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"])
def test_no_method_gets_round_the_key(nobody, method):
    for path in (
        "/v1/models",
        "/metrics",
        "/v1/chat/completions",
        "/v1//models",
        "/v1/models/",
        "/%761/models",
    ):
        assert nobody.request(method, path).status_code == 401, path


@pytest.mark.parametrize(
    "header",
    [
        b"Bearer wrong-key",
        b"Bearer",
        b"",
        KEYS[0].encode(),
        b"Basic " + KEYS[0].encode(),
        b"Bearer " + KEYS[0].encode()[:-1],
        b"Bearer " + KEYS[0].encode() + b"x",
        b"Bearer " + ",".join(KEYS).encode(),
        "Bearer schlüssel-🌙".encode(),
        b"Bearer \xff\xfe",
        b"Bearer " + b"k" * 20_000,
    ],
    ids=lambda header: repr(header[:24]),
)
def test_a_wrong_key_is_refused(nobody, header):
    response = nobody.get("/v1/models", headers={b"Authorization": header})
    assert response.status_code == 401
    assert error_of(response)["code"] == "invalid_api_key"
    for key in KEYS:
        assert key not in response.text


def test_every_key_opens(address, nobody):
    for key in address.keys:
        assert nobody.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_a_key_elsewhere_does_not_open(nobody, address):
    key = address.keys[0]
    assert nobody.get("/v1/models", params={"api_key": key}).status_code == 401
    assert nobody.get("/v1/models", headers={"Cookie": f"Authorization=Bearer {key}"}).status_code == 401
    assert nobody.get("/v1/models", headers={"X-API-Key": key}).status_code == 401


def test_the_clients_exception_has_the_code(nobody, address):
    with (
        openai.OpenAI(base_url=f"{address.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_an_open_server_needs_no_key(small):
    with small.http() as client:
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models", headers={"Authorization": "Bearer anything"}).status_code == 200


def test_what_another_key_asked_is_not_told(own_server, base):
    """How many tokens are cached would say whether somebody asked the same before."""
    question = {"role": "user", "content": "Is the merger with Initech on the first of May?"}
    body = {"model": base, "messages": [question], "max_tokens": 1}
    first, second = KEYS
    cached = []
    for key in (first, first, second, second):
        with own_server.address.http(headers={"Authorization": f"Bearer {key}"}) as client:
            usage = client.post("/v1/chat/completions", json=body).json()["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1)
    assert cached[1:] == [True, False, True]


def test_the_log_has_no_key_and_no_prompt(own_server, chat, nobody):
    chat("A very secret question", max_tokens=1)
    nobody.get("/v1/models", headers={"Authorization": "Bearer a-mistyped-key"})
    for secret in (*KEYS, "very secret", "a-mistyped-key"):
        assert secret not in own_server.log


def test_other_pages_may_not_read_the_answers(small):
    with small.http(headers={"Origin": ORIGIN}) as client:
        answer = client.get("/v1/models")
        preflight = client.options("/v1/chat/completions", headers=PREFLIGHT)
    for response in (answer, preflight):
        assert not [name for name in response.headers if name.startswith("access-control-")]


def test_an_allowed_page_may(own_server):
    with own_server.address.http() as client:
        response = client.get("/v1/models", headers={"Origin": ORIGIN})
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-credentials" not in response.headers
    assert "origin" in response.headers["vary"].lower()


def test_an_allowed_page_reads_errors_too(own_server):
    with own_server.address.http(headers={"Origin": ORIGIN}) as client:
        for response in (
            client.get("/v1/models"),
            client.get("/no-such"),
            client.post("/tokenize", content=b"{"),
        ):
            assert response.status_code >= 400
            assert response.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize("origin", [ORIGIN + ".evil.example", "http://page.example", "null", ORIGIN + ":444"])
def test_another_page_may_not(own_server, origin):
    with own_server.address.http() as client:
        answer = client.get("/v1/models", headers={"Origin": origin})
        preflight = client.options("/v1/chat/completions", headers=PREFLIGHT | {"Origin": origin})
    for response in (answer, preflight):
        assert "access-control-allow-origin" not in response.headers


def test_a_preflight_needs_no_key(own_server):
    with own_server.address.http(headers={}) as nobody:
        response = nobody.options("/v1/chat/completions", headers=PREFLIGHT | {"Origin": ORIGIN})
    assert response.status_code in (200, 204)
    assert response.headers["access-control-allow-origin"] == ORIGIN
    allowed = response.headers["access-control-allow-headers"].lower().split(",")
    assert {each.strip() for each in allowed} >= set(PREFLIGHT["Access-Control-Request-Headers"].split(","))


@pytest.mark.parametrize("origin", [ORIGIN, "null", "http://localhost:1"])
def test_an_open_server_does_no_work_for_another_page(small, origin):
    """A form is sent without a preflight, and the model would compute though nobody may read the answer."""
    with small.http(headers={"Origin": origin}) as client:
        for response in (
            client.get("/v1/models"),
            client.post("/v1/audio/transcriptions", data={"model": "a"}),
        ):
            assert response.status_code == 403
            assert error_of(response)["code"] == "wrong_origin"


def test_an_open_server_works_for_its_own_page_and_one_that_it_allows(small, tiny_base):
    with small.http(headers={"Origin": small.url}) as client:
        assert client.get("/v1/models").status_code == 200
    with (
        Server("--model", tiny_base, "--dtype=float32", f"--allow-origin={ORIGIN}") as server,
        server.address.http(headers={"Origin": ORIGIN}) as client,
    ):
        assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", ""])
def test_an_open_server_answers_to_its_own_name_only(small, host):
    """Otherwise any page could have its own name point at this machine and read the answers."""
    connection = small.connection()
    connection.putrequest("GET", "/v1/models", skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 421
    assert json.loads(response.read())["error"]["code"] == "wrong_host"
    connection.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "LOCALHOST"])
def test_an_open_server_knows_its_own_names(small, host):
    port = small.url.rsplit(":", 1)[1]
    with small.http() as client:
        assert client.get("/v1/models", headers={"Host": f"{host}:{port}"}).status_code == 200

import os
from pathlib import Path

import openai
import pytest

from tests.conformance.differences import VLLM
from tests.conformance.server import Address, Server, serving, write_tiny_base

EXTERNAL = os.environ.get("FINELAB_BASE_URL")


def pytest_collection_modifyitems(items):
    if os.environ.get("FINELAB_SERVER") != "vllm":
        return
    for item in items:
        if Path(__file__).parent in item.path.parents and item.originalname in VLLM:
            item.add_marker(pytest.mark.xfail(reason=VLLM[item.originalname]))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_base(folder)
    return folder


@pytest.fixture(scope="session")
def small_server(tiny_base):
    """An open server with small limits on the random model: two answers at once, two waiting."""
    if EXTERNAL:
        pytest.skip("asks a server with limits of its own")
    limits = ("--max-concurrency=2", "--max-queue=2", "--max-model-len=4096")
    with Server("--model", tiny_base, "--dtype=float32", *limits) as server:
        yield server


@pytest.fixture(scope="session")
def own_server(embedded_folder, small_server, tmp_path_factory):
    """The lab's server on the embedded model; the small one starts meanwhile."""
    with serving(embedded_folder, tmp_path_factory.mktemp("adapters")) as server:
        yield server


@pytest.fixture(scope="session")
def address(request):
    if EXTERNAL:
        key = os.environ.get("FINELAB_API_KEY")
        return Address(EXTERNAL.rstrip("/").removesuffix("/v1"), (key,) if key else ())
    return request.getfixturevalue("own_server").address


@pytest.fixture(scope="session")
def small(small_server):
    return small_server.address


@pytest.fixture(scope="session")
def client(address):
    key = address.keys[0] if address.keys else "none"
    with openai.OpenAI(base_url=f"{address.url}/v1", api_key=key, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def http(address):
    with address.http() as client:
        yield client


@pytest.fixture(scope="session")
def models(client):
    """The ids: base first, then its adapters."""
    found = client.models.list().data
    base = next(each.id for each in found if each.parent is None)
    return [base, *(each.id for each in found if each.parent is not None)]


@pytest.fixture(scope="session")
def base(models):
    return models[0]


@pytest.fixture(scope="session")
def chat(client, base):
    """One question, greedy and six tokens long unless said otherwise; gives the answer as it came."""

    def ask(content="Count from one to twenty in words.", **options):
        messages = options.pop("messages", [{"role": "user", "content": content}])
        defaults = {"model": base, "temperature": 0, "max_tokens": 6}
        return client.chat.completions.create(messages=messages, **defaults | options)

    return ask


@pytest.fixture(scope="session")
def complete(client, base):
    """One prompt for /v1/completions, with the same defaults."""

    def ask(prompt="One, two, three, four,", **options):
        defaults = {"model": base, "temperature": 0, "max_tokens": 6}
        return client.completions.create(prompt=prompt, **defaults | options)

    return ask


@pytest.fixture
def refused(http, base):
    """Asks for a chat with some fields changed, and gives the error."""

    def ask(status=400, path="/v1/chat/completions", **changed):
        body = {"model": base, "max_tokens": 1}
        body |= {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": "Hi"}
        response = http.post(path, json=body | changed)
        assert response.status_code == status, response.text
        return error_of(response)

    return ask


def error_of(response):
    """The error object of a response, checked."""
    error = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    return error

"""The models, and the routes beside the answers."""

import openai
import pytest

from finelab import data, recipe
from finelab.chat.source import gallery
from finelab.chat.voice import installed
from tests.conformance.conftest import error_of
from tests.conformance.server import generated


def test_the_base_and_its_adapters_are_listed(client):
    found = {model.id: model for model in client.models.list().data}
    base = next(each for each in found.values() if each.parent is None)
    for model in found.values():
        assert model.object == "model"
        assert model.owned_by
        assert model.max_model_len == base.max_model_len > 0
        assert model.parent in (None, base.id)


def test_a_model_says_what_it_is(client, base):
    assert client.models.retrieve(base).id == base
    assert client.models.retrieve(base).root


def test_an_unknown_model_is_not_found(client, http, base):
    for ask in (
        lambda: client.models.retrieve("gpt-4"),
        lambda: client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Hi"}]),
        lambda: client.completions.create(model="gpt-4", prompt="Hi"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.code == "model_not_found"
    assert "gpt-4" in caught.value.message
    assert base in caught.value.message  # what there is instead
    assert caught.value.param == "model"


def test_tokenize_knows_its_models_too(http):
    response = http.post("/tokenize", json={"model": "gpt-4", "prompt": "Hi"})
    assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


def test_a_response_has_an_id_of_its_own(http, base):
    responses = [http.get("/v1/models"), http.get("/health"), http.get("/no-such"), http.post("/tokenize")]
    assert len({each.headers["x-request-id"] for each in responses}) == 4


def test_health_is_open(address):
    with address.http(headers={}) as nobody:
        response = nobody.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_the_openapi_document_lists_the_routes(http):
    paths = http.get("/openapi.json").json()["paths"]
    routes = {"/health", "/v1/models", "/v1/chat/completions", "/v1/completions", "/tokenize", "/metrics"}
    assert routes <= set(paths)
    assert http.get("/docs").status_code == 200


def test_the_gallery_is_a_list(http):
    """An empty one: the adapters of these tests come from no run."""
    assert http.get("/v1/gallery").json() == {"object": "list", "data": []}


def test_the_gallery_has_held_out_prompts_of_each_source(run, tokenizer):
    small = type(run)(run.folder, recipe.override(run.recipe, ["data.limit=80"]))
    data.save(small, data.prepare(small.recipe, tokenizer))
    rows = data.load_split(small, "heldout")
    heldout = [data.conversation(row).messages for row in rows]
    found = gallery(small)
    assert {each["source"] for each in found} == set(rows["source"])
    for each in found:
        assert [*each["messages"], {"role": "assistant", "content": each["reference"]}] in heldout


def test_voice_is_there_where_its_packages_are(http):
    response = http.post("/v1/audio/speech", json={"model": "tts-1", "input": "Hi", "voice": "alloy"})
    if installed():
        assert (response.status_code, response.headers["content-type"]) == (200, "audio/wav")
    else:
        assert (response.status_code, error_of(response)["code"]) == (404, "voice_not_installed")


def test_metrics_count_tokens(address, chat):
    before = generated(address)
    chat(max_tokens=5)
    assert generated(address) == before + 5

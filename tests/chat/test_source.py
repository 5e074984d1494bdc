"""Several adapters on one base: each is asked for by the name it was given, whatever that is."""

import pytest
import torch
from fastapi.testclient import TestClient

from finelab.chat import source
from finelab.chat.server import build_app
from tests.conformance.server import write_adapters, write_tiny_base


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, and two adapters of it that differ."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_base(folder / "base")
    write_adapters(folder / "base", folder)
    return folder / "base", folder / "tuned", folder / "other"


def answers(folders, *names):
    """What a server says that has the two adapters under these names: {model: text}."""
    base, *adapters = folders
    found = source.of_folders(str(base), zip(names, adapters, strict=True))
    served = source.serve(found, torch.float32, "cpu", 2, 2, None)
    asked = {"prompt": "the the", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    with TestClient(build_app(served)) as client:
        return {
            model["id"]: client.post("/v1/completions", json=asked | {"model": model["id"]}).json()["choices"]
            for model in client.get("/v1/models").json()["data"]
        }


@pytest.fixture(scope="module")
def expected(folders):
    found = list(answers(folders, "first", "second").values())
    assert len({choices[0]["text"] for choices in found}) == 3
    return found


@pytest.mark.parametrize(
    "names", [("llama-3.2-1b", "train"), ("eval", "keys"), ("half", "a name"), ("__base__", "adapter_0")]
)
def test_an_adapter_may_have_any_name(folders, expected, names):
    assert answers(folders, *names) == dict(zip(("base", *names), expected, strict=True))

"""Several adapters on one base: each is asked for by the name it was given, whatever that is."""

import shutil

import pytest
import torch
from fastapi.testclient import TestClient
from peft import PeftConfig
from safetensors.torch import load_file

from finelab import LabError, machine
from finelab.chat import source
from finelab.chat.server import build_app
from finelab.machine import Hardware
from finelab.recipe import load_preset
from tests.conformance.server import write_adapters, write_tiny_base
from tests.tiny import base_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, and two adapters of it that differ."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_base(folder / "base")
    write_adapters(folder / "base", folder)
    return folder / "base", folder / "tuned", folder / "other"


@pytest.mark.parametrize(
    "files, hardware, served",
    [
        (torch.bfloat16, {"device": "cuda", "capability": (8, 9)}, "bfloat16"),
        (torch.float16, {"device": "cuda", "capability": (8, 9)}, "float16"),
        (torch.bfloat16, {"device": "cuda", "capability": (7, 5)}, "float16"),
        (torch.bfloat16, {"device": "cpu", "cpu_bfloat16": True}, "bfloat16"),
        (torch.float16, {"device": "cpu", "cpu_bfloat16": True}, "float32"),
        (torch.float16, {"device": "cpu", "cpu_bfloat16": False}, "float32"),
    ],
)
def test_what_a_float16_file_holds_is_not_rounded_away(tmp_path, files, hardware, served):
    base_model(files).save_pretrained(tmp_path)
    machine_of = Hardware(name="a machine", system="Linux", cores=2, memory_bytes=2**34, **hardware)
    profile = machine.decide(machine_of, load_preset("smollm2-135m"))
    assert source.serving_dtype(str(tmp_path), profile) == served


@pytest.mark.parametrize("kind", ["base", "tuned"])
def test_weights_in_another_form_than_safetensors_are_not_read(folders, tmp_path, kind):
    base, tuned, _ = (shutil.copytree(folder, tmp_path / folder.name) for folder in folders)
    (path,) = (tmp_path / kind).glob("*model.safetensors")
    torch.save(load_file(path), path.with_name({"base": "pytorch", "tuned": "adapter"}[kind] + "_model.bin"))
    path.unlink()
    if kind == "tuned":
        config = PeftConfig.from_pretrained(tuned)
        config.base_model_name_or_path = str(base)
        config.save_pretrained(tuned)
    adapters = [("tuned", tuned)] if kind == "tuned" else []
    with pytest.raises(LabError, match="safetensors"):
        source.serve(source.of_folders(str(base), adapters), torch.float32, "cpu", 2, 2, None)


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


def test_an_adapter_without_a_tokenizer_takes_the_others_or_the_bases(folders, expected, tmp_path):
    base, first, second = folders
    for name in ("bare", "model"):
        shutil.copytree({"bare": first, "model": base}[name], tmp_path / name)
    (tmp_path / "bare" / "tokenizer_config.json").unlink()
    (tmp_path / "bare" / "tokenizer.json").unlink()
    assert list(answers((base, tmp_path / "bare", second), "a", "b").values()) == expected


@pytest.mark.parametrize(
    "names", [("llama-3.2-1b", "train"), ("eval", "keys"), ("half", "a name"), ("__base__", "adapter_0")]
)
def test_an_adapter_may_have_any_name(folders, expected, names):
    assert answers(folders, *names) == dict(zip(("base", *names), expected, strict=True))

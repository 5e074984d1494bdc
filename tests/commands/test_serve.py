"""The options of `lab.py serve`: what is refused before a model is loaded, and what it serves of a run."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest
import torch
from fastapi.testclient import TestClient

from finelab import LabError
from finelab import run as command
from finelab.__main__ import build_parser, main
from finelab.chat import source
from finelab.chat.server import build_app
from finelab.commands.serve import listening, load, read_keys
from finelab.run import create_run
from tests import tiny
from tests.conformance.server import wait_for, write_adapters, write_tiny_base

# Streams for ever, and tells its port. `wait_closed` is Python 3.12's: before, it waited for no connection.
SERVES = """
import asyncio, signal, sys
import uvicorn
from finelab.chat.connection import Connection
from finelab.commands import serve

async def wait_closed(self):
    if self._waiters is None:
        return
    waiter = self._loop.create_future()
    self._waiters.append(waiter)
    await waiter

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await asyncio.sleep(0.01)

class Server(uvicorn.Server):
    def run(self, sockets):
        if "early" in sys.argv:
            signal.raise_signal(signal.SIGTERM)
        super().run(sockets)

asyncio.base_events.Server.wait_closed = wait_closed
config = uvicorn.Config(app, http=Connection, lifespan="off", timeout_graceful_shutdown=600)
with serve.listening("127.0.0.1", 0) as listener:
    print(listener.getsockname()[1], flush=True)
    serve.run(Server(config), listener)
"""


def failure(capsys, *arguments):
    assert main(["serve", *arguments]) == 2
    return capsys.readouterr().err


def test_the_network_is_not_let_in_without_a_key(capsys, monkeypatch):
    monkeypatch.delenv("FINELAB_API_KEYS", raising=False)
    said = failure(capsys, "--host", "0.0.0.0")
    assert "--host 0.0.0.0 would let anyone on the network use this server: set FINELAB_API_KEYS" in said


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FINELAB_API_KEYS", " one, two ,")
    assert read_keys(None) == ["one", "two"]
    (tmp_path / "keys").write_text("three\nfour\n")
    assert read_keys(str(tmp_path / "keys")) == ["three", "four"]
    for encoding in ("utf-16", "utf-8-sig"):  # PowerShell's and Notepad's
        (tmp_path / "keys").write_text("three\r\n", encoding=encoding)
        assert read_keys(str(tmp_path / "keys")) == ["three"]


def test_a_key_file_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(LabError, match="nothing: cannot be read"):
        read_keys(str(tmp_path / "nothing"))
    (tmp_path / "empty").write_text("\n# keys come here\n")
    with pytest.raises(LabError, match="the file has no key; expected one key on each line"):
        read_keys(str(tmp_path / "empty"))


def test_the_words_of_a_comment_are_no_keys(tmp_path):
    (tmp_path / "keys").write_text("# for the lab course\n\n  three \n  # for me\nfour\n")
    assert read_keys(str(tmp_path / "keys")) == ["three", "four"]
    (tmp_path / "keys").write_text("three # for me\n")
    with pytest.raises(LabError, match="a key has a blank inside; expected one key on each line"):
        read_keys(str(tmp_path / "keys"))


def test_a_short_key_does_not_open_a_server_to_the_network(tmp_path, capsys):
    (tmp_path / "keys").write_text("a-key-that-is-long-enough\nletmein\n")
    arguments = ("--api-key-file", str(tmp_path / "keys"), "--model", str(tmp_path), "--port", "0")
    assert "a key of 7 characters could be guessed" in failure(capsys, "--host", "0.0.0.0", *arguments)
    assert "is no model that transformers can load" in failure(capsys, *arguments)


@contextmanager
def streaming(*arguments):
    """A server that streams for ever, and its port; it is gone at the end."""
    command = [sys.executable, "-c", SERVES, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_second_signal_ends_it_while_a_stream_runs():
    with streaming() as (process, port):
        client = HTTPConnection("127.0.0.1", port)
        client.request("GET", "/")
        assert client.getresponse().read(1) == b"x"
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: refused(port))
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_signal_that_comes_before_uvicorn_listens_for_it_ends_it():
    with streaming("early") as (process, _):
        assert process.wait(10) == 0


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LabError, match=f"cannot listen at 127.0.0.1:{port}.*choose another --port"):
            listening("127.0.0.1", port)


@pytest.mark.parametrize("port", [-1, 70_000])
def test_a_port_that_is_none_is_named(port):
    with pytest.raises(LabError, match="choose another --port"):
        listening("127.0.0.1", port)


def test_a_run_without_an_adapter_says_what_to_do(run, monkeypatch, capsys):
    monkeypatch.setattr(command, "RUNS", run.folder.parent)
    assert "run notebook 03_train" in failure(capsys, "--run", "trial", "--port", "0")


def test_an_adapter_is_a_name_and_a_folder(tmp_path, capsys):
    for text in ("tuned", f"tuned={tmp_path}"):
        said = failure(capsys, "--model", str(tmp_path), "--adapter", text, "--port", "0")
        assert f"--adapter {text}: expected NAME=FOLDER with an adapter_config.json" in said


@pytest.mark.parametrize(
    ("also", "taken"),
    [("base", "the base model"), ("tuned", "another adapter")],
)
def test_a_run_whose_name_is_taken_is_refused(tmp_path, preset, monkeypatch, capsys, also, taken):
    monkeypatch.setattr(command, "RUNS", tmp_path)
    for name in ("mine", also):
        create_run(tmp_path / name, preset).adapter.mkdir()
    said = failure(capsys, "--run", "mine", "--also", also, "--port", "0")
    assert f"served as {also!r}, which {taken} is called already; serve that run with --run" in said


@pytest.mark.parametrize("names", [("base",), ("one", "one")])
def test_an_adapter_whose_name_is_taken_is_refused(tmp_path, capsys, names):
    (tmp_path / "adapter_config.json").write_text("{}")
    adapters = [f"--adapter={name}={tmp_path}" for name in names]
    said = failure(capsys, "--model", str(tmp_path), *adapters, "--port", "0")
    assert f"served as {names[-1]!r}, which" in said
    assert "choose another NAME in --adapter NAME=FOLDER" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model=m", "--run=mine"], "--model is served instead of a run: leave out --run and --also"),
        (["--model=m", "--also=mine"], "--model is served instead of a run: leave out --run and --also"),
        (["--adapter=a=folder"], "--adapter goes on a base: give its --model FOLDER"),
    ],
    ids=["run", "also", "adapter"],
)
def test_options_that_would_be_passed_over_are_refused(capsys, arguments, said):
    assert said in failure(capsys, *arguments, "--port", "0")


def test_two_runs_are_served_on_their_base(tmp_path, preset, monkeypatch):
    monkeypatch.setattr(command, "RUNS", tmp_path)
    write_tiny_base(tmp_path / "base")
    write_adapters(tmp_path / "base", tmp_path)
    for name, adapter in (("mine", "tuned"), ("hers", "other")):
        create_run(tmp_path / name, preset)
        (tmp_path / adapter).rename(tmp_path / name / "adapter")
    arguments = ["serve", "--run=mine", "--also=hers", "--dtype=float32"]
    asked = {"prompt": "the the", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    with TestClient(build_app(load(build_parser().parse_args(arguments)))) as client:
        models = {each["id"]: each["finelab"] for each in client.get("/v1/models").json()["data"]}
        answers = {
            name: client.post("/v1/completions", json=asked | {"model": name}).json()["choices"][0]["text"]
            for name in models
        }
    assert {name: told.get("run") for name, told in models.items()} == {
        "base": None, "tuned": "mine", "hers": "hers",
    }  # fmt: skip
    assert len(set(answers.values())) == 3


def test_an_origin_is_what_a_browser_sends_also_when_it_was_copied_with_its_slash():
    asked = ["serve", "--allow-origin", "https://me-chat.hf.space/", "--allow-origin=http://localhost:3000"]
    allowed = build_parser().parse_args(asked).allow_origin
    assert allowed == ["https://me-chat.hf.space", "http://localhost:3000"]


def test_adapters_of_different_bases_are_not_served_together(tmp_path):
    _, folder = tiny.write_run(tmp_path)
    with pytest.raises(LabError, match=r"'tuned' was trained on .*, not on another; serve it by itself"):
        source.load_model("another", {"tuned": folder}, None, "cpu")


def test_a_base_in_4_bit_computes_in_the_servers_dtype(tmp_path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder, _ = tiny.write_run(tmp_path)
    packed = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=packed, device_map="cpu")
    base = tmp_path / "packed"
    model.save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    served, _ = source.load_model(str(base), {}, torch.float32, "cpu")
    layers = [module for module in served.modules() if hasattr(module, "compute_dtype")]
    assert layers
    assert {module.compute_dtype for module in layers} == {torch.float32}


def test_a_model_whose_layers_look_through_a_window_is_refused(tmp_path):
    from transformers import Gemma3TextConfig

    Gemma3TextConfig(num_hidden_layers=6).save_pretrained(tmp_path)
    with pytest.raises(LabError, match="has layers of kind sliding_attention"):
        source.load_model(str(tmp_path), {}, None, "cpu")


def test_the_context_is_the_models_or_what_was_asked_for():
    model = tiny.base_model(max_position_embeddings=100)
    assert source.context_length(model, None) == 100
    assert source.context_length(model, 60) == 60
    with pytest.raises(LabError, match="--max-model-len 200: this model knows 100 positions"):
        source.context_length(model, 200)


def test_a_runs_facts_are_those_of_its_evidence(run):
    run.record("training", {"steps": 44, "resumes": []})
    run.record("evaluation", {"verdict": "improved", "difference": -0.28, "interval": [-0.33, -0.23]})
    told = source.facts(run)
    assert told["run"] == "trial"
    assert told["recipe"]["r"] == run.recipe.lora.r
    assert told["training"] == {"steps": 44}
    assert told["evaluation"]["verdict"] == "improved"

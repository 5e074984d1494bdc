"""modal_download_model.py by the real `modal run`, from the loopback Hub onto a folder."""

import hashlib
import json
import os
import sys

import pytest

from tests.deployment.conftest import (
    DEPLOYMENT,
    adapter_files,
    model_files,
    publish,
    put_on_volume,
    write_run,
)
from tests.deployment.control_plane import ControlPlane

SCRIPT = DEPLOYMENT / "modal_download_model.py"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a Modal container is a Linux process")


@pytest.fixture
def modal(tmp_path, hub):
    plane = tmp_path / "modal"
    plane.mkdir()
    environment = {
        "FINELAB_MODELS_DIR": str(plane / "volumes" / "finelab-models"),
        "FINELAB_RUNS": str(tmp_path / "runs"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
    }
    with ControlPlane(plane, environment) as modal:
        yield modal


def on_volume(modal):
    root = modal.volume("finelab-models")
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_model_arrives_whole(modal, hub):
    files = model_files()
    unwanted = {"pytorch_model.bin": b"pickle", "model.pt": b"pickle", "model.gguf": b"q", "README.md": b"#"}
    wanted = files | {"tokenizer.json": b"{}", "chat_template.jinja": b"{{ messages }}"}
    commit = publish(hub, "org/base", wanted | unwanted)
    code, output = modal.command("run", SCRIPT, "--model", "org/base")
    assert code == 0, output
    assert f"org/base at {commit[:7]}, 0.00 GB, model" in output
    assert on_volume(modal) == {f"org/base/{name}" for name in [*wanted, "finelab.json"]}
    manifest = json.loads((modal.volume("finelab-models") / "org/base/finelab.json").read_text())
    assert manifest["revision"] == commit
    assert manifest["files"] == {name: hashlib.sha256(wanted[name]).hexdigest() for name in wanted}
    assert modal.committed and set(modal.committed) == {"vo-finelab-models"}
    assert [mount.read_only for mount in modal.functions["download"].volume_mounts] == [False]
    assert modal.mounted("download") == {"/root/modal_download_model.py"}  # and no code of the checkout
    lines = "\n".join(modal.image_of("download"))
    assert "python:3.12" in lines and "astral-sh/uv:0.13.9" in lines and "huggingface-hub==1.33.0" in lines
    assert "ENV HF_XET_HIGH_PERFORMANCE=1" in lines


@pytest.mark.slow
def test_a_private_adapter_brings_its_base_and_force_fetches_again(modal, hub):
    publish(hub, "org/Small", model_files())
    commit = publish(hub, "alice/tuned", adapter_files("org/Small-unsloth-bnb-4bit"), private=True)
    token = hub.token("alice")
    modal.add_secret("huggingface-secret", HF_TOKEN=token)
    code, output = modal.command("run", SCRIPT, "--model", "alice/tuned")
    assert code == 0, output
    assert f"alice/tuned at {commit[:7]}, 0.00 GB, adapter of org/Small" in output
    assert "  org/Small at " in output and token not in output
    assert not any(each.authorized for each in hub.requests if each.path.startswith("/_cdn/"))

    fetched = hub.count("GET", "*/resolve/*")
    code, output = modal.command("run", SCRIPT, "--model", f"org/Small,alice/tuned@{commit}")
    assert code == 0 and output.count("is on the volume already") == 2
    assert hub.count("GET", "*/resolve/*") == fetched

    weights = modal.volume("finelab-models") / "alice/tuned/adapter_model.safetensors"
    weights.write_bytes(b"damaged")
    code, output = modal.command("run", SCRIPT, "--model", "alice/tuned", "--force")
    assert code == 0 and weights.read_bytes() == adapter_files("")["adapter_model.safetensors"]


@pytest.mark.slow
def test_a_base_is_found_however_the_adapter_writes_its_name(modal, hub, script, monkeypatch):
    """The Hub knows a name in any case, a volume does not."""
    publish(hub, "org/Small", model_files())
    publish(hub, "alice/tuned", adapter_files("org/small-unsloth-bnb-4bit"))
    for asked in ("alice/tuned", "alice/Tuned"):
        code, output = modal.command("run", SCRIPT, "--model", asked)
        assert code == 0, output
    assert output.count("is on the volume already") == 1  # of the base nothing was asked again
    monkeypatch.setenv("FINELAB_MODELS_DIR", str(modal.volume("finelab-models")))
    arguments = script("models_on_volume").model_arguments("tuned=alice/tuned", 4096)
    assert arguments[0] == str(modal.volume("finelab-models") / "org/Small")


@pytest.mark.slow
def test_a_damaged_download_leaves_what_was_there_and_the_next_one_mends_it(modal, hub):
    put_on_volume(modal.volume("finelab-models"), "org/base", model_files(b"one!"), "a" * 40)
    second = publish(hub, "org/base", model_files(b"two!"))
    hub.fail("/_cdn/*", method="GET", flip=True)
    code, output = modal.command("run", SCRIPT, "--model", "org/base")
    assert code == 1 and "org/base arrived damaged; run the same command again." in output
    manifest = modal.volume("finelab-models") / "org/base/finelab.json"
    assert json.loads(manifest.read_text())["revision"] == "a" * 40
    assert modal.command("run", SCRIPT, "--model", "org/base")[0] == 0
    assert json.loads(manifest.read_text())["revision"] == second
    assert (manifest.parent / "model.safetensors").read_bytes() == b"two!" * 1000


@pytest.mark.slow
def test_a_download_that_was_cut_goes_on(modal, hub):
    publish(hub, "org/base", model_files() | {"model-2.safetensors": b"more" * 100})
    sha = hashlib.sha256(b"more" * 100).hexdigest()
    hub.fail(f"/_cdn/{sha}", method="GET", status=403, times=None)
    whole = hashlib.sha256(model_files()["model.safetensors"]).hexdigest()
    while not hub.count("GET", f"/_cdn/{whole}"):  # the one that is refused may end it before this one's turn
        code, output = modal.command("run", SCRIPT, "--model", "org/base")
        assert code == 1 and "run the same command again, what has arrived is kept." in output
        assert not (modal.volume("finelab-models") / "org/base").exists()
    hub.faults.clear()
    assert modal.command("run", SCRIPT, "--model", "org/base")[0] == 0
    assert hub.count("GET", f"/_cdn/{whole}") == 1


def revoked(modal, hub):
    publish(hub, "org/base", model_files())
    modal.add_secret("huggingface-secret", HF_TOKEN="hf_gone")


def without_token(modal, hub):
    modal.add_secret("huggingface-secret", TOKEN="hf_gone")


def nothing(modal, hub):
    publish(hub, "org/other", model_files())


def plain(modal, hub):
    publish(hub, "org/base", model_files())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prepare", "model", "sentence"),
    [
        (nothing, "org/base", "org/base: the Hub has no such model, or hides it from you; check the name"),
        (plain, "org/base@v9", "org/base has no revision 'v9'; give a branch, a tag or a commit of it."),
        (revoked, "org/base", "the Hub refuses the token in the secret huggingface-secret (revoked,"),
        (without_token, "org/base", "The secret huggingface-secret is of no use: Secret is missing key(s)"),
    ],
    ids=["unknown model", "unknown revision", "revoked token", "secret without the key"],
)
def test_a_mistake_is_one_sentence(modal, hub, prepare, model, sentence):
    prepare(modal, hub)
    code, output = modal.command("run", SCRIPT, "--model", model)
    assert code == 1
    assert output.strip().splitlines()[-1].startswith(sentence)
    assert "Traceback" not in output and "hf_gone" not in output


@pytest.fixture
def downloading(script, tmp_path, monkeypatch):
    monkeypatch.setenv("FINELAB_RUNS", str(tmp_path / "runs"))
    return script("modal_download_model")


def test_without_a_run_llama_is_fetched(downloading):
    assert downloading.references() == ["unsloth/Llama-3.2-1B-Instruct"]


def test_the_newest_pushed_run_is_fetched_with_its_adapter(downloading, tmp_path):
    adapter = {"repo_id": "me/adapter", "commit": "b" * 40}
    runs = {
        "local": {"repo_id": "local/x", "commit": "d" * 40},
        "new": {"repo_id": "me/new", "commit": "a" * 40, "adapter": adapter},
        "old": {"repo_id": "me/old", "commit": "c" * 40},
    }
    for age_s, (name, pushed) in enumerate(runs.items()):
        folder = write_run(tmp_path / "runs", name, pushed)
        os.utime(folder / "evidence.json", (1000 - age_s, 1000 - age_s))
    assert downloading.references() == [f"me/new@{'a' * 40}", f"me/adapter@{'b' * 40}"]


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("unsloth/llama-3.2-1b-instruct-unsloth-bnb-4bit", "unsloth/llama-3.2-1b-instruct"),
        ("unsloth/Llama-3.2-3B-Instruct-bnb-4bit", "unsloth/Llama-3.2-3B-Instruct"),
        ("meta-llama/Llama-3.2-1B-Instruct", "unsloth/Llama-3.2-1B-Instruct"),
        ("org/base", "org/base"),
    ],
)
def test_the_base_that_is_fetched_is_in_16_bit_and_open(downloading, name, base):
    assert downloading.base_of(name) == base


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"README.md": b""}, "neither config.json nor adapter_config.json"),
        ({"config.json": b"{}"}, "no safetensors weights, and other kinds can run code"),
        (adapter_files("/home/me/base"), "names a folder as its base model"),
        (adapter_files("base"), "names a folder as its base model"),
    ],
)
def test_what_is_no_model_is_refused(downloading, tmp_path, files, sentence):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(downloading.Refused, match=sentence):
        downloading.describe("org/x", "c" * 40, tmp_path)

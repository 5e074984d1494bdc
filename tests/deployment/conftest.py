import base64
import hashlib
import importlib
import json
import sys
from pathlib import Path

import pytest

from tests.hub.loopback import LoopbackHub

DEPLOYMENT = Path(__file__).parents[2] / "deployment"
KEY = "a-key-that-is-long-enough"


@pytest.fixture
def script(monkeypatch):
    """Imports a script of deployment/ anew, as it is with the environment that the test has set."""

    def load(name):
        monkeypatch.syspath_prepend(str(DEPLOYMENT))
        for each in DEPLOYMENT.glob("*.py"):
            monkeypatch.delitem(sys.modules, each.stem, raising=False)
        return importlib.import_module(name)

    return load


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


def publish(hub, repo_id, files, private=False):
    """Put files into a repository of the loopback Hub, made if it is new; gives the commit."""
    owner = hub.store.accounts[hub.token(repo_id.partition("/")[0])]
    repo = hub.store.repos.get(repo_id) or hub.store.create(repo_id, private, owner)
    lines = [{"key": "header", "value": {"summary": "files"}}]
    for path, content in files.items():
        if path.endswith((".safetensors", ".bin")):
            oid = hashlib.sha256(content).hexdigest()
            hub.store.keep_lfs(oid, content)
            value = {"path": path, "oid": oid, "size": len(content), "algo": "sha256"}
            lines.append({"key": "lfsFile", "value": value})
        else:
            value = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
            lines.append({"key": "file", "value": value})
    return hub.store.commit(repo, lines).oid


def model_files(seed=b"base"):
    config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}
    return {"config.json": json.dumps(config).encode(), "model.safetensors": seed * 1000}


def adapter_files(base, **config):
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 16, "lora_alpha": 16} | config
    return {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": b"lora" * 100}


def put_on_volume(folder, repo_id, files, revision="c" * 40):
    """A repository as the download script leaves it on the volume."""
    target = folder / repo_id
    target.mkdir(parents=True)
    for path, content in files.items():
        (target / path).write_bytes(content)
    base = None
    if "adapter_config.json" in files:
        base = json.loads(files["adapter_config.json"])["base_model_name_or_path"]
    kind = "adapter" if base else "model"
    manifest = {
        "repo_id": repo_id,
        "revision": revision,
        "kind": kind,
        "base": base,
        "size_bytes": 1,
        "files": {},
    }
    (target / "finelab.json").write_text(json.dumps(manifest))


def write_run(runs, name, publish, **more):
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "evidence.json").write_text(json.dumps({"publish": publish} | more), encoding="utf-8")
    return folder

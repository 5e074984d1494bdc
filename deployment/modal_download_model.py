"""Put models and adapters on a Modal volume, for modal_inference.py to serve.

    modal run deployment/modal_download_model.py
    modal run deployment/modal_download_model.py --model unsloth/Llama-3.2-3B-Instruct,me/my-adapter@main

Without --model: what the newest run of this checkout pushed to the Hub, else Llama 3.2 1B. A branch is
resolved to its commit first. Only safetensors, JSON, tokenizer and template files are taken: a pickled
weight file can run code. An adapter brings its base model. The same command goes on where it was stopped,
and a folder without finelab.json is no model. Private models: the secret `huggingface-secret` (HF_TOKEN).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import modal

VOLUME = "finelab-models"
SECRET = "huggingface-secret"
MODELS = os.environ.get("FINELAB_MODELS_DIR", "/models")  # inside a container; tests have another place
MANIFEST = "finelab.json"  # written last: repo_id, revision, kind, base, files with their SHA-256
DEFAULT = "unsloth/Llama-3.2-1B-Instruct"  # Meta's weights, without the form to fill in
FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]
FOUR_BIT = ("-unsloth-bnb-4bit", "-bnb-4bit")  # what a QLoRA run loads; the adapter is served on 16 bit

app = modal.App("finelab-download")
volume = modal.Volume.from_name(VOLUME, create_if_missing=True)
image = (
    modal.Image.debian_slim("3.12")
    .uv_pip_install("huggingface-hub==1.33.0", "hf-xet==1.8.0", uv_version="0.13.9")
    .env({"HF_XET_HIGH_PERFORMANCE": "1"})
)


class Refused(Exception):
    """What the user has to mend, in one sentence."""


@app.function(image=image, volumes={MODELS: volume}, timeout=3600)
def download(references: list[str], force: bool) -> dict[str, Any]:
    """Fetch each `repo_id[@revision]`; gives {"models": what is on the volume} or {"refused": why}."""
    try:
        todo = list(references)
        while todo:
            found = fetch(*split(todo.pop(0)), force)
            present = {each["repo_id"].lower() for each in on_volume()}  # adapters write names in any case
            if found["base"] and found["base"].lower() not in present:
                todo.append(found["base"])
    except Refused as refused:
        return {"refused": str(refused)}
    finally:
        volume.commit()
    return {"models": on_volume()}


def fetch(repo_id: str, revision: str, force: bool) -> dict[str, Any]:
    """One repository at one commit, whole or not at all; gives its manifest."""
    from huggingface_hub import HfApi

    with told(repo_id, revision):
        info = HfApi().model_info(repo_id, revision=revision)
    folder, stage = Path(MODELS) / info.id, Path(MODELS) / ".incoming" / info.id / info.sha
    if not force and (folder / MANIFEST).exists():
        present = json.loads((folder / MANIFEST).read_text())
        if present["revision"] == info.sha:
            print(f"{info.id} at {info.sha[:7]} is on the volume already.")
            return present
    if force:
        shutil.rmtree(stage, ignore_errors=True)
    (stage / MANIFEST).unlink(missing_ok=True)
    print(f"Downloading {info.id} at {info.sha[:7]}.")
    with told(repo_id, revision):
        HfApi().snapshot_download(info.id, revision=info.sha, local_dir=stage, allow_patterns=FILES)
        shutil.rmtree(stage / ".cache", ignore_errors=True)  # the client's notes for going on
        check = HfApi().verify_repo_checksums(info.id, revision=info.sha, local_dir=stage)
    if check.mismatches or check.extra_paths:
        shutil.rmtree(stage)
        raise Refused(f"{info.id} arrived damaged; run the same command again.")
    manifest = describe(info.id, info.sha, stage)
    (stage / MANIFEST).write_text(json.dumps(manifest, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    stage.rename(folder)
    shutil.rmtree(stage.parent)  # and what was left of other commits
    return manifest


def describe(repo_id: str, revision: str, folder: Path) -> dict[str, Any]:
    """The manifest of a downloaded folder; Refused when it holds neither a model nor an adapter."""
    base = None
    if (folder / "adapter_config.json").exists():
        base = base_of(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
        if base.count("/") != 1:
            raise Refused(f"{repo_id} names a folder as its base model ({base}); push it as 04_publish does.")
    elif not (folder / "config.json").exists():
        raise Refused(f"{repo_id} holds no model: neither config.json nor adapter_config.json is in it.")
    if not any(folder.glob("*.safetensors")):
        raise Refused(f"{repo_id} has no safetensors weights, and other kinds can run code; choose another.")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
    size = sum(path.stat().st_size for path in paths)
    kind = "adapter" if base else "model"
    return {
        "repo_id": repo_id,
        "revision": revision,
        "kind": kind,
        "base": base,
        "size_bytes": size,
        "files": files,
    }


def base_of(name: str) -> str:
    """The 16-bit model that may be downloaded for `name`: not a 4-bit copy, and Llama 3.2 without a form."""
    for suffix in FOUR_BIT:
        name = name.removesuffix(suffix)
    return name.replace("meta-llama/Llama-3.2-", "unsloth/Llama-3.2-")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def told(repo_id: str, revision: str) -> Iterator[None]:
    """Turn what the Hub says into Refused."""
    try:
        yield
    except Exception as error:
        raise Refused(sentence(repo_id, revision, error)) from error


def sentence(repo_id: str, revision: str, error: Exception) -> str:
    """What went wrong with a repository, and what to do."""
    kind = type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if kind == "RevisionNotFoundError":
        return f"{repo_id} has no revision {revision!r}; give a branch, a tag or a commit of it."
    if kind == "GatedRepoError":
        return f"{repo_id} is gated: accept its licence on its page, with the account of {SECRET}'s token."
    if kind in ("RepositoryNotFoundError", "HFValidationError"):
        return (
            f"{repo_id}: the Hub has no such model, or hides it from you; check the name, and for a private "
            f"one the token in the secret {SECRET}."
        )
    if status == 401:
        return (
            f"the Hub refuses the token in the secret {SECRET} (revoked, or not copied whole); make a new "
            f"one and store it with `modal secret create {SECRET} HF_TOKEN=hf_... --force`."
        )
    why = status or kind
    return f"{repo_id}: the Hub gives {why}; run the same command again, what has arrived is kept."


def on_volume() -> list[dict[str, Any]]:
    """The manifests of everything that is whole."""
    return [json.loads(path.read_text()) for path in sorted(Path(MODELS).glob(f"*/*/{MANIFEST}"))]


def split(reference: str) -> tuple[str, str]:
    """`owner/name@revision` as its two parts; main when none is given."""
    repo_id, _, revision = reference.strip().partition("@")
    return repo_id, revision or "main"


def newest_run() -> tuple[Path, dict[str, Any]] | None:
    """The newest run in this checkout that was pushed to the Hub: its folder and its evidence."""
    runs = Path(os.environ.get("FINELAB_RUNS") or Path(__file__).parents[1] / "runs")
    for path in sorted(runs.glob("*/evidence.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        evidence = json.loads(path.read_text(encoding="utf-8"))
        repo_id = evidence.get("publish", {}).get("repo_id", "local/")
        if not repo_id.startswith("local/"):  # pushed into a folder, for want of a token
            return path.parent, evidence
    return None


def references() -> list[str]:
    """What is downloaded when nothing is named."""
    if (run := newest_run()) is None:
        return [DEFAULT]
    publish = run[1]["publish"]
    return [f"{each['repo_id']}@{each['commit']}" for each in (publish, publish.get("adapter")) if each]


@app.local_entrypoint()
def main(model: str = "", force: bool = False) -> None:
    """Download, then print what is on the volume."""
    wanted = [each for each in model.split(",") if each.strip()] or references()
    print(f"To download: {', '.join(wanted)}")
    secret, remote = modal.Secret.from_name(SECRET, required_keys=["HF_TOKEN"]), download
    try:
        secret.hydrate()
        remote = download.with_options(secrets=[secret])
    except modal.exception.NotFoundError:
        print(f"There is no secret {SECRET}, so only public models can be downloaded.")
    except modal.exception.Error as error:
        raise SystemExit(f"The secret {SECRET} is of no use: {error}") from None
    done = remote.remote(wanted, force)
    if "refused" in done:
        raise SystemExit(done["refused"])
    print(f"On the volume {VOLUME}:")
    for each in done["models"]:
        size, base = f"{each['size_bytes'] / 1e9:.2f} GB", f" of {each['base']}" if each["base"] else ""
        print(f"  {each['repo_id']} at {each['revision'][:7]}, {size}, {each['kind']}{base}")
    print("Next: modal run deployment/modal_inference.py")

"""Which models of the volume go together on one vLLM, and what it must be told about them.

Used inside the containers of modal_inference.py, which have Python's standard library and this file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

VOLUME, MANIFEST = "finelab-models", "finelab.json"  # as modal_download_model.py leaves them
TEMPLATE = "chat_template.jinja"
MODELS = os.environ.get("FINELAB_MODELS_DIR", "/models")  # inside a container; tests have another place
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's choices for --max-lora-rank
PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}  # the others change the base's weights
REFUSED_KEYS = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",  # vLLM would leave them out without a word
    "layer_replication",
    "alora_invocation_tokens",
    "use_bdlora",
    "use_qalora",
)


class Refused(Exception):
    """What the user has to mend, in one sentence."""


def choose(serve: str) -> tuple[tuple[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The base model as (name, manifest) and the adapters {name: manifest}; Refused when they do not fit."""
    named: dict[str, dict[str, Any]] = {}
    for item in serve.split(","):
        name, _, reference = item.strip().rpartition("=")
        manifest = read_manifest(reference)
        name = name or ("base" if manifest["kind"] == "model" else manifest["repo_id"].partition("/")[2])
        if name in named:
            raise Refused(f"two models are called {name!r}; name them: FINELAB_SERVE=base=...,first=...")
        named[name] = manifest
    adapters = {name: each for name, each in named.items() if each["kind"] == "adapter"}
    bases = [(name, each) for name, each in named.items() if each["kind"] == "model"]
    if not bases:
        bases = [("base", read_manifest(next(iter(adapters.values()))["base"]))]
    if len(bases) > 1:
        first, second = (each["repo_id"] for _, each in bases[:2])
        raise Refused(f"one server has one base model, and {first} and {second} are two; leave one out.")
    base = bases[0][1]["repo_id"]
    for name, each in adapters.items():
        if each["base"].lower() != base.lower():
            raise Refused(f"the adapter {name} ({each['repo_id']}) belongs to {each['base']}, not to {base}.")
    return bases[0], adapters


def read_manifest(reference: str) -> dict[str, Any]:
    """The manifest of `owner/name[@commit]`; Refused when that is not what the volume holds."""
    repo_id, _, revision = reference.partition("@")
    get_it = f"run `modal run deployment/modal_download_model.py --model {reference}` first."
    if (path := find_manifest(repo_id)) is None:
        raise Refused(f"{repo_id} is not on the volume {VOLUME}: {get_it}")
    manifest = read_json(path)
    if not manifest["revision"].startswith(revision):
        raise Refused(f"the volume {VOLUME} has {repo_id} at {manifest['revision'][:7]}: {get_it}")
    return manifest


def find_manifest(repo_id: str) -> Path | None:
    """Where a model's manifest is: the Hub knows a name in any case, a volume only as the Hub writes it."""
    folders = sorted(path.parent for path in Path(MODELS).glob(f"*/*/{MANIFEST}"))
    present = {folder.relative_to(MODELS).as_posix(): folder / MANIFEST for folder in folders}
    alike = [path for name, path in present.items() if name.lower() == repo_id.lower()]
    return present.get(repo_id) or next(iter(alike), None)


def lora_rank(name: str, config: dict[str, Any]) -> int:
    """The rank that vLLM must make room for; Refused when it cannot serve the adapter as it is."""
    init = config.get("init_lora_weights", True)
    reasons = [key for key in REFUSED_KEYS if config.get(key)]
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        reasons.append(f"init_lora_weights={init}")
    if config.get("bias", "none") != "none":
        reasons.append(f"bias={config['bias']}")
    rank = max([config.get("r", 0), *(config.get("rank_pattern") or {}).values()])
    if not 0 < rank <= RANKS[-1]:
        reasons.append(f"r={rank}")
    if reasons:
        raise Refused(
            f"vLLM cannot serve the adapter {name} ({', '.join(reasons)}): push the merged model of that "
            "run, download it, and serve that in its place."
        )
    return next(each for each in RANKS if each >= rank)


def model_arguments(serve: str, max_model_len: int) -> list[str]:
    """The arguments of `vllm serve` that depend on the models."""
    (name, base), adapters = choose(serve)
    folder = Path(MODELS) / base["repo_id"]
    longest = read_json(folder / "config.json")["max_position_embeddings"]
    found = [str(folder), "--served-model-name", name, "--max-model-len", str(min(max_model_len, longest))]
    if adapters:
        paths = {name: Path(MODELS) / each["repo_id"] for name, each in adapters.items()}
        ranks = [lora_rank(name, read_json(path / "adapter_config.json")) for name, path in paths.items()]
        found += ["--enable-lora", "--max-loras", str(len(paths)), "--max-lora-rank", str(max(ranks))]
        found += ["--lora-modules", *(f"{name}={path}" for name, path in paths.items())]
        templates = [path / TEMPLATE for path in paths.values() if (path / TEMPLATE).exists()]
        if templates:  # the base's own may write today's date, where these were trained with another
            found += ["--chat-template", str(templates[0])]
    return found


def read_json(path: Path) -> Any:
    """A JSON file's content."""
    return json.loads(path.read_text(encoding="utf-8"))

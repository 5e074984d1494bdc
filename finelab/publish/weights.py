"""The proof of a merge: every weight is the one it must be.

In bfloat16 behaviour cannot prove it: rounding moves the logits more than a forgotten layer does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelab.errors import LabError

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Weights:
    """How many tensors were checked; `moved` adapted ones differ from the base, `faults` name the rest."""

    adapted: int
    moved: int
    untouched: int
    faults: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Every tensor is right, and the merge is not the base."""
        return not self.faults and self.moved > 0

    def __str__(self) -> str:
        if not self.passed:
            first = "; ".join(self.faults[:3]) or "no tensor differs from the base"
            return f"merge NOT proven: {first}"
        return (
            f"{self.adapted} adapted tensors equal W + scale * B @ A, {self.moved} of them differ from "
            f"the base; {self.untouched} other tensors are the base's, byte for byte"
        )


def check_merged_weights(base: Path | str, adapter: Path, merged: Path) -> Weights:
    """Compare the merged folder with base and adapter, one tensor at a time.

    Each adapted weight must equal `(W.float() + scale * B @ A).to(dtype)`, every other tensor the base's.
    """
    import torch

    deltas = _deltas(adapter)
    faults: list[str] = []
    adapted = moved = untouched = 0
    old_tensors, new_tensors = _tensors(_local(base)), _tensors(merged)
    for name in sorted(old_tensors.keys() - new_tensors.keys()):
        faults.append(f"{name} is missing")
    for name in sorted(new_tensors.keys() - old_tensors.keys()):
        faults.append(f"{name} is not in the base")
    for name in sorted(old_tensors.keys() & new_tensors.keys()):
        old, new = _read(old_tensors[name], name), _read(new_tensors[name], name)
        delta = deltas.pop(name, None)
        expected = old if delta is None else (old.float() + delta()).to(new.dtype)
        if not torch.equal(expected, new):
            kind = "differs from the base" if delta is None else "is not W + scale * B @ A"
            faults.append(f"{name} {kind}")
        elif delta is None:
            untouched += 1
        else:
            adapted += 1
            moved += not torch.equal(old.to(new.dtype), new)
    faults += [f"the adapter's {name} is not in the model" for name in sorted(deltas)]
    return Weights(adapted, moved, untouched, tuple(faults))


def _local(model: Path | str) -> Path:
    """A folder with the model's safetensors: the one given, or the Hub's snapshot."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(model), allow_patterns=["*.safetensors", "*.json"]))


def _tensors(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor."""
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    if not found:
        raise LabError(f"{folder} holds no model*.safetensors; run the step that writes it again.")
    return found


def _read(path: Path, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def _deltas(adapter: Path) -> dict[str, Any]:
    """For each adapted weight a function that computes scale * B @ A in float32."""
    path = adapter / "adapter_model.safetensors"
    if not path.exists():
        raise LabError(f"{path} is missing; run notebook 03_train of this run first.")
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("use_dora") or config.get("modules_to_save") or config.get("rank_pattern"):
        raise LabError("the merge check knows LoRA and rsLoRA; this adapter is of another kind.")
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    return dict(_pairs(path, scale))


def _pairs(path: Path, scale: float) -> Iterator[tuple[str, Any]]:
    for name in _names(path):
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")

            def delta(module: str = module) -> Any:
                a = _read(path, f"{module}.lora_A.weight").float()
                b = _read(path, f"{module}.lora_B.weight").float()
                return (b @ a) * scale

            yield f"{module.removeprefix(PREFIX)}.weight", delta


def _names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return sorted(file.keys())

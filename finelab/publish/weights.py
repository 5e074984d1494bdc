"""The proof of a merge: every weight, and every file beside them, is the one it must be.

In bfloat16 behaviour cannot prove it: rounding moves the logits more than a forgotten layer does.
What a weight must be is computed by PEFT's own layers, not by the code that merges.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelab.errors import LabError
from finelab.publish.adapter_files import load_adapter, require_known_kind
from finelab.publish.model_files import EMBEDDING, HEAD, local_folder, read_json, read_shards

SLACK = 2.0**-20  # float32 sums of another order, on a graphics card say, differ by a few 2^-24


@dataclass(frozen=True)
class Weights:
    """How many tensors were checked; `moved` adapted ones differ from the base, `faults` name the rest.

    `rounded` counts elements on the edge between two values of the file's dtype that took the other one.
    """

    adapted: int
    moved: int
    untouched: int
    faults: tuple[str, ...]
    rounded: int = 0
    dtype: str = "base"

    @property
    def passed(self) -> bool:
        """Every tensor is right, and the merge is not the base."""
        return not self.faults and self.moved > 0

    def __str__(self) -> str:
        if not self.passed:
            first = "; ".join(self.faults[:3]) or "no tensor differs from the base: the adapter is untrained"
            return f"merge NOT proven: {first}"
        edge = f" ({self.rounded} elements rounded the other way)" if self.rounded else ""
        return (
            f"{self.adapted} adapted tensors equal W + scale * B @ A as PEFT computes it{edge}, {self.moved} "
            f"of them differ from the base; {self.untouched} other tensors are the base's, "
            f"{'byte for byte' if self.dtype == 'base' else f'rounded to {self.dtype}'}"
        )


def check_merged_weights(base: Path | str, adapter: Path, merged: Path, dtype: str = "base") -> Weights:
    """Compare the merged folder with base and adapter, one tensor at a time.

    An adapted tensor must hold what PEFT computes from base and adapter in float32, rounded once to the
    base's dtype or to float16, as `dtype` says; every other one must be the base's, in that dtype. LabError
    when a file is missing, the base is quantised, or PEFT's computation is not defined by base and adapter
    alone.
    """
    base = local_folder(base)
    adapted = _Adapted(base, adapter)
    old_tensors, new_tensors = _tensors(base), _tensors(merged)
    if adapted.touches_embeddings():
        _read_tied_head_from_embedding(base, old_tensors)
        _read_tied_head_from_embedding(merged, new_tensors)
    faults = [f"{name} is missing" for name in sorted(old_tensors.keys() - new_tensors.keys())]
    faults += [f"{name} is not in the base" for name in sorted(new_tensors.keys() - old_tensors.keys())]
    counts = {"adapted": 0, "moved": 0, "untouched": 0, "rounded": 0}
    for name in sorted(old_tensors.keys() & new_tensors.keys()):
        old, new = old_tensors[name].read(), new_tensors[name].read()
        expected = adapted.values(name, old)
        if dtype == "float16":
            old = old.half()
        fault, rounded = _compare(old, new, expected)
        if fault:
            faults.append(f"{name} {fault}")
        elif expected is None:
            counts["untouched"] += 1
        else:
            counts["adapted"] += 1
            counts["moved"] += not _same_bytes(old, new)
            counts["rounded"] += rounded
    faults += [f"the adapter's {name} is not in the model" for name in adapted.unused()]
    return Weights(faults=tuple(faults), dtype=dtype, **counts)


def require_merged_files(adapter: Path, merged: Path) -> None:
    """LabError unless the merged model has the tokenizer, template and end token that were trained with."""
    from transformers import GenerationConfig

    trained, shipped = _tokenizer(adapter), _tokenizer(merged)
    faults = []
    if _hash(trained) != _hash(shipped):
        faults.append(f"its tokenizer ({_hash(shipped)}) is not the adapter's ({_hash(trained)})")
    if not shipped.chat_template or shipped.chat_template != trained.chat_template:
        faults.append("its chat template is not the adapter's")
    try:
        ends = GenerationConfig.from_pretrained(merged).eos_token_id
    except OSError:
        ends = None
    if trained.eos_token_id not in (ends if isinstance(ends, list) else [ends]):
        faults.append(
            f"generation_config.json ends answers at {ends}, not at {trained.eos_token} "
            f"({trained.eos_token_id}): they would not stop"
        )
    if faults:
        raise LabError(f"{merged}: {'; '.join(faults)}; merge again, nothing was pushed.")


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise LabError(f"{folder}: its tokenizer does not load ({error}); write it again.") from error


def _hash(tokenizer: Any) -> str:
    """A hash of what turns text into ids; padding and truncation are the last caller's."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    text = json.dumps([state | {"padding": None, "truncation": None}, special], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _compare(old: Any, new: Any, expected: Any) -> tuple[str, int]:
    """What is wrong with a merged tensor, "" when nothing; and its elements that rounded the other way."""
    import torch

    if new.dtype != old.dtype or new.shape != old.shape:
        return f"is {_kind(new)}, not {_kind(old)}", 0
    if expected is None:
        return "" if _same_bytes(old, new) else "differs from the base", 0
    other = expected.to(new.dtype) != new
    if not other.any():
        return "", 0
    exact, room = expected[other].float(), SLACK * (expected[other].abs() + old[other].abs()).float()
    low, high = (exact - room).to(new.dtype), (exact + room).to(new.dtype)
    if bool(torch.all((low <= new[other]) & (new[other] <= high))):
        return "", int(other.sum())
    return "is not W + scale * B @ A", 0


def _kind(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _same_bytes(first: Any, second: Any) -> bool:
    import torch

    return bool(torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8)))


class _Adapted:
    """The adapter on PEFT's own layers: the model's skeleton without storage, one layer filled at a time."""

    def __init__(self, base: Path, adapter: Path) -> None:
        import torch
        from peft import LoraConfig, LoraModel
        from transformers import AutoConfig, AutoModelForCausalLM

        require_known_kind(adapter)
        self._left = load_adapter(adapter)
        config = LoraConfig.from_pretrained(str(adapter))
        config.init_lora_weights = False  # the values come from the file
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=torch.float32)
            self._modules = dict(LoraModel(model, config, "default").model.named_modules())

    def touches_embeddings(self) -> bool:
        """Whether the adapter changes the input embeddings or the head."""
        embeddings = (EMBEDDING.removesuffix("weight"), HEAD.removesuffix("weight"))
        return any(name.startswith(embeddings) for name in self._left)

    def values(self, name: str, old: Any) -> Any:
        """What the base's tensor `name` becomes, in float32; None when the adapter leaves it alone."""
        from peft.tuners.lora import LoraLayer

        if name in self._left:
            return self._left.pop(name).float()
        module = name.removesuffix(".weight")
        layer = self._modules.get(module)
        return self._merged(module, layer, old) if isinstance(layer, LoraLayer) else None

    def unused(self) -> list[str]:
        """The adapter's tensors that no tensor of the base has taken."""
        return sorted(self._left)

    def _merged(self, module: str, layer: Any, old: Any) -> Any:
        """PEFT's own merge of one layer."""
        import torch

        layer.to_empty(device="cpu")
        missing, unknown = layer.load_state_dict(dict(self._take(module)), strict=False)
        wrong = unknown + [name for name in missing if name.startswith("lora_")]
        if wrong:
            raise LabError(f"{module}: the adapter's {', '.join(wrong)} are missing or unknown; train again.")
        layer.get_base_layer().weight.data = old.to(torch.float32, copy=True)
        layer.merge()
        weight = layer.get_base_layer().weight.data
        layer.to("meta")
        return weight

    def _take(self, module: str) -> Iterator[tuple[str, Any]]:
        """The layer's tensors under the names they have in it: PEFT's files leave the adapter's name out."""
        for key in [key for key in self._left if key.startswith(f"{module}.")]:
            part, _, rest = key.removeprefix(f"{module}.").partition(".")
            values = self._left.pop(key)
            if part == "lora_magnitude_vector":
                yield f"{part}.default.weight", values
            elif part != "base_layer":  # PEFT's copy of the frozen embeddings
                yield f"{part}.default.{rest}".rstrip("."), values


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies."""

    path: Path
    name: str

    def read(self) -> Any:
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(self.name)


def _tensors(folder: Path) -> dict[str, _Stored]:
    """Where each tensor of a model lies."""
    return {
        tensor.name: _Stored(shard.path, tensor.name)
        for shard in read_shards(folder)
        for tensor in shard.tensors
    }


def _read_tied_head_from_embedding(folder: Path, tensors: dict[str, _Stored]) -> None:
    config = read_json(folder / "config.json", "write the model again")
    if config.get("tie_word_embeddings") and EMBEDDING in tensors:
        tensors.setdefault(HEAD, tensors[EMBEDDING])

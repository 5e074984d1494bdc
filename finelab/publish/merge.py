"""Merge an adapter into the 16-bit base it was trained on: W + scale * B @ A in float32, rounded once.

Shards are read, changed and written in blocks, so memory holds a few megabytes of the model; tensors
that the adapter leaves alone are copied as bytes. Finished shards survive a kill: the next merge of the
same inputs goes on from them. The base's hash would take longer than the merge, so "the same" means its
path, size and time of change; the adapter is small and hashed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from finelab.errors import LabError
from finelab.files import fsync, sha256, staged, write_text, writing
from finelab.publish.adapter_files import ADAPTER, OTHER_KIND, load_adapter, require_known_kind
from finelab.publish.model_files import (
    DTYPES,
    EMBEDDING,
    HEAD,
    INDEX,
    ITEM_BYTES,
    Shard,
    Tensor,
    both_transformers,
    local_folder,
    read_json,
    read_shards,
)
from finelab.resources import require_free_space

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
BLOCK = 1 << 18  # elements computed at once: 1 MB in float32 stays in a core's cache
SPAN = 1 << 25  # elements that a thread takes at once
SYNC = 1 << 28  # bytes after which what is written is forced to the disk
_PART = re.compile(
    r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
    r"|base_layer\.weight)"
)


@dataclass(frozen=True)
class LowRank:
    """Adds scale * b @ a, float32; DoRA then gives each row the length `magnitude`.

    `frozen` is the copy of the base's values that PEFT keeps for embeddings.
    """

    a: Any
    b: Any
    scale: float
    magnitude: Any = None
    frozen: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor that is changed."""
        return self.b.shape[0], self.a.shape[1]

    def apply(self, weight: Any, rows: slice, delta: Any) -> None:
        """Change `rows` of the tensor, given as `weight` in float32; `delta` is room for as much."""
        import torch

        if self.frozen is not None and not torch.equal(weight.to(self.frozen.dtype), self.frozen[rows]):
            raise LabError(
                "the adapter was trained on another base: its copy of the embeddings differs from the "
                "base's; merge it into the base that its adapter_config.json names."
            )
        torch.mm(self.b[rows], self.a, out=delta)
        weight.add_(delta.mul_(self.scale))
        if self.magnitude is not None:
            weight.mul_((self.magnitude[rows] / weight.norm(dim=1)).unsqueeze(1))


@dataclass(frozen=True)
class Replacement:
    """Puts trained values in place of the base's (`modules_to_save`, `bias`)."""

    values: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor that is changed."""
        return tuple(self.values.shape)

    def apply(self, weight: Any, rows: slice, delta: Any) -> None:
        """Change `rows` of the tensor, given as `weight` in float32."""
        weight.copy_(self.values[rows].view(weight.shape))


Change = LowRank | Replacement


@dataclass(frozen=True)
class Piece:
    """A tensor of the merged model: the base's that it starts from, what is done to it, and its own dtype."""

    name: str
    source: Tensor
    change: Change | None
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Bytes per row."""
        return self.source.columns * ITEM_BYTES[self.dtype]


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Spans are written by threads of their own, which torch's would only get in the way of."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_torch_thread()
def merge(base: Path | str, adapter: Path, folder: Path, dtype: str = "base") -> None:
    """Write the base (a folder or a Hub id) with the adapter merged in into `folder`, all or nothing.

    The merged model has the base's files and names, its dtypes or float16 as `dtype` says, the adapter
    folder's tokenizer and chat template, and a config that transformers 4 and 5 read alike. LabError, before
    anything is written, for a base that is not 16-bit or float32 safetensors, or an adapter that is not LoRA,
    rsLoRA, DoRA or `modules_to_save`; and for a value that is too large for float16.
    """
    base = local_folder(base)
    if folder.resolve() in (base.resolve(), adapter.resolve()):
        raise LabError(f"{folder} is the base or the adapter itself; give the merged model its own folder.")
    config = read_json(base / "config.json", "it is a part of every model: download the base again")
    shards, changes = read_shards(base), read_changes(adapter)
    untied = _untie(config, shards, changes)
    plans = [_pieces(shard, changes, untied, dtype) for shard in shards]
    _require_used(changes, plans, adapter)
    files = _texts(base, adapter, config, shards, plans, untied)
    with writing(folder):
        bench = _workbench(folder, _inputs(base, adapter, shards, dtype))
        _write_shards(shards, plans, bench)
        with staged(folder) as stage:
            for shard in shards:
                (bench / shard.path.name).rename(stage / shard.path.name)
            for name, text in files.items():
                write_text(stage / name, text)
            for name in TOKENIZER_FILES:
                if (adapter / name).exists():
                    shutil.copyfile(adapter / name, stage / name)
        shutil.rmtree(bench)


# The adapter


def read_changes(adapter: Path) -> dict[str, Change]:
    """What the adapter does, by the name of the base's tensor; LabError for what a merge cannot do."""
    config = require_known_kind(adapter)
    parts: dict[str, dict[str, Any]] = {}
    changes: dict[str, Change] = {}
    for name, tensor in load_adapter(adapter).items():
        _require_finite(adapter / ADAPTER, name, tensor)
        if match := _PART.fullmatch(name):
            parts.setdefault(match[1], {})[match[2]] = tensor
        elif "lora_" in name or ".token_adapter." in name:
            raise LabError(f"{adapter / ADAPTER}: the merge does not know {name}; {OTHER_KIND}.")
        else:
            changes[name] = Replacement(tensor)
    low_rank = {f"{name}.weight": _low_rank(adapter / ADAPTER, name, parts[name], config) for name in parts}
    return changes | low_rank


def _require_finite(path: Path, key: str, tensor: Any) -> None:
    import torch

    smallest, largest = torch.aminmax(tensor)
    if not math.isfinite(smallest) or not math.isfinite(largest):
        raise LabError(
            f"{path}: {key} holds NaN or infinity: training diverged; use a smaller learning_rate."
        )


def _low_rank(path: Path, module: str, parts: dict[str, Any], config: dict[str, Any]) -> LowRank:
    magnitude = parts.get("lora_magnitude_vector")
    if "lora_embedding_A" in parts and magnitude is None:
        a, b = parts["lora_embedding_B"].T, parts["lora_embedding_A"].T
    elif "lora_A.weight" in parts and "lora_B.weight" in parts:
        a, b = parts["lora_A.weight"], parts["lora_B.weight"]
    else:
        raise LabError(f"{path}: {module} has only {', '.join(sorted(parts))}; {OTHER_KIND}.")
    rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
    if a.shape[0] != rank or b.shape[1] != rank or bool(config.get("use_dora")) != (magnitude is not None):
        raise LabError(f"{path}: {module} is not what adapter_config.json says; save the adapter again.")
    alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return LowRank(
        a=a.float().contiguous(),
        b=b.float().contiguous(),
        scale=alpha / (math.sqrt(rank) if config.get("use_rslora") else rank),
        magnitude=None if magnitude is None else magnitude.float(),
        frozen=parts.get("base_layer.weight"),
    )


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, as PEFT reads them."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


# What is written


def _untie(config: dict[str, Any], shards: list[Shard], changes: dict[str, Change]) -> bool:
    """Whether the adapter gave tied embeddings two different values; if not, one tensor stays enough.

    A LoRA or `modules_to_save` on only one of the two trains that one: the other keeps the base's values.
    """
    if not config.get("tie_word_embeddings"):
        return False
    if not _equal(changes.get(EMBEDDING), changes.get(HEAD)):
        return True
    if all(tensor.name != HEAD for shard in shards for tensor in shard.tensors):
        changes.pop(HEAD, None)
    return False


def _equal(first: Change | None, second: Change | None) -> bool:
    import torch

    if isinstance(first, LowRank) and isinstance(second, LowRank):
        same = bool(torch.equal(first.a, second.a) and torch.equal(first.b, second.b))
        return same and first.scale == second.scale and first.magnitude is second.magnitude is None
    if isinstance(first, Replacement) and isinstance(second, Replacement):
        return bool(torch.equal(first.values, second.values))
    return first is second


def _pieces(shard: Shard, changes: dict[str, Change], untied: bool, dtype: str) -> list[Piece]:
    """The merged shard's tensors: the base's, and a head of its own after an embedding untied from it."""
    sources = {tensor.name: tensor for tensor in shard.tensors}
    if untied and EMBEDDING in sources and HEAD not in sources:
        sources[HEAD] = sources[EMBEDDING]
    return [
        Piece(name, source, changes.get(name), "F16" if dtype == "float16" else source.dtype)
        for name, source in sources.items()
    ]


def _require_used(changes: dict[str, Change], plans: list[list[Piece]], adapter: Path) -> None:
    """LabError when a change has no tensor in the base, or one of another shape."""
    shapes = {piece.name: piece.source.shape for pieces in plans for piece in pieces}
    for name, change in changes.items():
        if shapes.get(name) != change.shape:
            found = f"is {list(shapes[name])} there" if name in shapes else "is not there"
            raise LabError(
                f"{adapter} was trained on another base: it changes {name} of shape {list(change.shape)}, "
                f"which {found}; merge it into the base that its adapter_config.json names."
            )


def _inputs(base: Path, adapter: Path, shards: list[Shard], dtype: str) -> str:
    """A hash that is the same only for the same base, adapter and dtype."""
    facts: list[Any] = [dtype, sha256(adapter / ADAPTER), sha256(adapter / "adapter_config.json")]
    facts.append(sha256(base / "config.json"))
    for shard in shards:
        stat = shard.path.stat()
        facts.append([str(shard.path.resolve()), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _workbench(folder: Path, inputs: str) -> Path:
    """The hidden folder of finished shards, named after the inputs; those of other inputs are removed."""
    prefix = f".{folder.name}.merge-"
    bench = folder.with_name(prefix + inputs)
    bench.mkdir(parents=True, exist_ok=True)
    for path in folder.parent.iterdir():
        if path.name.startswith(prefix) and path != bench:
            shutil.rmtree(path, ignore_errors=True)
    return bench


def _write_shards(shards: list[Shard], plans: list[list[Piece]], bench: Path) -> None:
    from tqdm import tqdm

    left = [
        (shard, plan)
        for shard, plan in zip(shards, plans, strict=True)
        if not (bench / shard.path.name).exists()
    ]
    size = sum(_bytes(plan) for _, plan in left)
    require_free_space(bench, size + 100_000_000, "the merged model")
    with tqdm(desc="merge", total=size, unit="B", unit_scale=True, delay=2) as bar:
        for shard, plan in left:
            part = bench / f"{shard.path.name}.part"
            try:
                _write_shard(shard, plan, part, bar)
                fsync(part)
                part.replace(bench / shard.path.name)
            finally:
                part.unlink(missing_ok=True)


def _bytes(plan: list[Piece]) -> int:
    return sum(piece.source.rows * piece.row_bytes for piece in plan)


def _write_shard(shard: Shard, plan: list[Piece], path: Path, bar: Any) -> None:
    """Write one safetensors file, spans of rows by several threads."""
    header = _header(shard, plan)
    with path.open("wb") as file:
        _reserve(file, len(header) + _bytes(plan))
        file.write(header)
    spans: list[tuple[Piece, int, slice]] = []
    offset = len(header)
    for piece in plan:
        rows = _even(slice(0, piece.source.rows), SPAN // piece.source.columns)
        spans += [(piece, offset, part) for part in rows]
        offset += piece.source.rows * piece.row_bytes
    unsynced = 0
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as threads, ThreadPoolExecutor(1) as syncer:
        for size in threads.map(lambda span: _write_span(shard.path, path, *span), spans):
            bar.update(size)
            unsynced += size
            if unsynced >= SYNC:  # the disk writes while the processor merges
                syncer.submit(fsync, path)
                unsynced = 0


def _reserve(file: BinaryIO, size: int) -> None:
    """Give the file its size: a full disk shows now, and blocks that are there take half the time to fill."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def _header(shard: Shard, plan: list[Piece]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **shard.metadata}}
    offset = 0
    for piece in plan:
        end = offset + piece.source.rows * piece.row_bytes
        entries[piece.name] = {
            "dtype": piece.dtype,
            "shape": piece.source.shape,
            "data_offsets": (offset, end),
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text


def _even(rows: slice, most: int) -> list[slice]:
    """`rows` in runs of about equal length, `most` at the most: a short last one is multiplied otherwise."""
    count = rows.stop - rows.start
    parts = max(1, -(-count // max(most, 1)))
    edges = [rows.start + count * part // parts for part in range(parts + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def _write_span(source: Path, target: Path, piece: Piece, offset: int, rows: slice) -> int:
    """Write rows of one tensor, which begins at `offset` in the target; gives the bytes written."""
    tensor = piece.source
    size = int(rows.stop - rows.start) * piece.row_bytes
    with source.open("rb") as read, target.open("rb+") as write:
        read.seek(tensor.begin + rows.start * tensor.row_bytes)
        write.seek(offset + rows.start * piece.row_bytes)
        if piece.change is None and piece.dtype == tensor.dtype:
            _copy(read, write, size)
        else:
            _merge(read, write, piece, rows)
    return size


def _copy(read: BinaryIO, write: BinaryIO, size: int) -> None:
    buffer = memoryview(bytearray(min(size, BLOCK * 4)))
    while size:
        block = buffer[:size]
        _fill(read, block)
        write.write(block)
        size -= len(block)


def _merge(read: BinaryIO, write: BinaryIO, piece: Piece, rows: slice) -> None:
    import torch

    tensor = piece.source
    runs = _even(rows, BLOCK // tensor.columns)
    shape = max(run.stop - run.start for run in runs), tensor.columns
    dtypes = (getattr(torch, DTYPES[each.dtype]) for each in (tensor, piece))
    stored, rounded = (torch.empty(shape, dtype=dtype) for dtype in dtypes)
    weight, delta = torch.empty(2, *shape)
    data, result = (memoryview(each.view(torch.uint8).numpy()).cast("B") for each in (stored, rounded))
    for run in runs:
        count = run.stop - run.start
        _fill(read, data[: count * tensor.row_bytes])
        weight[:count].copy_(stored[:count])
        if piece.change is not None:
            piece.change.apply(weight[:count], run, delta[:count])
        if piece.dtype == "F16":
            _require_fits(piece.name, weight[:count])
        rounded[:count].copy_(weight[:count])
        write.write(result[: count * piece.row_bytes])


def _require_fits(name: str, weight: Any) -> None:
    import torch

    largest, most = float(weight.abs().max()), torch.finfo(torch.float16).max
    if largest > most:
        raise LabError(
            f"{name} would hold {largest:,.0f}, and float16 holds no more than {most:,.0f}; set "
            'publish.merged_dtype = "base" if that is another dtype, else train with a smaller learning_rate.'
        )


def _fill(read: BinaryIO, block: memoryview) -> None:
    if read.readinto(block) != len(block):  # type: ignore[attr-defined]
        raise LabError(f"{read.name} became shorter while it was read; download the base again.")


# The files beside the weights


def _texts(
    base: Path,
    adapter: Path,
    config: dict[str, Any],
    shards: list[Shard],
    plans: list[list[Piece]],
    untied: bool,
) -> dict[str, str]:
    """The merged model's JSON files by name."""
    tokenizer = read_json(adapter / "tokenizer_config.json", _NO_TOKENIZER)
    dtype = DTYPES[plans[0][0].dtype]
    values = {
        "config.json": both_transformers(config) | {"dtype": dtype, "torch_dtype": dtype},
        "generation_config.json": _generation(base, adapter, config, tokenizer),
        "tokenizer_config.json": _tokenizer_config(tokenizer),
    }
    if untied:
        values["config.json"]["tie_word_embeddings"] = False
    if len(shards) > 1:
        values[INDEX] = _index(shards, plans)
    return {name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in values.items()}


_NO_TOKENIZER = "the tokenizer that was trained with belongs there; run notebook 03_train of this run first"


def _generation(
    base: Path, adapter: Path, config: dict[str, Any], tokenizer: dict[str, Any]
) -> dict[str, Any]:
    """The base's generation config; the token that ends an answer in training must end one in use."""
    path = base / "generation_config.json"
    values = read_json(path, "download the base again") if path.exists() else {}
    known = values.get("eos_token_id", config.get("eos_token_id"))
    ends = known if isinstance(known, list) else [] if known is None else [known]
    end = _token_id(adapter, tokenizer.get("eos_token"))
    if end not in ends:
        ends = [*ends, end]
    return values | {"eos_token_id": ends if len(ends) > 1 else ends[0]}


def _token_id(adapter: Path, token: Any) -> int:
    """A special token's id, found in the text: parsing a Llama's 17 MB takes as long as half the merge."""
    content = json.dumps(token["content"] if isinstance(token, dict) else token, ensure_ascii=False)
    path = adapter / "tokenizer.json"
    if not path.exists():
        raise LabError(f"{path} is missing; {_NO_TOKENIZER}.")
    entry = re.search(
        rf'"id":\s*(\d+),\s*"content":\s*{re.escape(content)}', path.read_text(encoding="utf-8")
    )
    if entry is None:
        raise LabError(f"{path}: no end token {content} in it; {_NO_TOKENIZER}.")
    return int(entry[1])


def _tokenizer_config(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer's config with what transformers 4 cannot read said in its own words."""
    values = dict(tokenizer)
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    return values


def _index(shards: list[Shard], plans: list[list[Piece]]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(map(_bytes, plans))},
        "weight_map": {
            piece.name: shard.path.name for shard, plan in zip(shards, plans, strict=True) for piece in plan
        },
    }

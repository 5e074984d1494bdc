"""Export a merged Llama as one GGUF file, the format of llama.cpp, Ollama and LM Studio.

Written with `gguf`, llama.cpp's own package; it encodes no K-quants, so `q4_k_m` needs `libgguf` as well.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from finelab.errors import LabError
from finelab.files import fsync, rename, writing
from finelab.publish.model_files import Tensor, both_transformers, read_json, read_shards
from finelab.resources import require_free_space

FORMATS = {"f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_k_m": "MOSTLY_Q4_K_M"}
BLOCK = 1 << 24  # elements converted at once
_PRE_TOKENIZERS = {  # how llama.cpp splits text, by what splits it in tokenizer.json
    ("Digits", "ByteLevel"): "smollm",
    ("Split", "ByteLevel"): "llama-bpe",
    ("ByteLevel",): "gpt-2",
}


def export_gguf(model: Path, path: Path, file_format: str = "f16") -> None:
    """Write the Llama in the folder `model` to `path`; `file_format` is f16, bf16, q8_0 or q4_k_m.

    The file is there whole or not at all. LabError for a model, rope scaling or tokenizer of another kind.
    """
    from gguf import GGUFWriter, LlamaFileType

    if file_format not in FORMATS:
        raise LabError(f"no GGUF format {file_format!r}; there are: {', '.join(FORMATS)}.")
    config = both_transformers(read_json(model / "config.json", "merge again"))
    if config.get("architectures") != ["LlamaForCausalLM"]:
        raise LabError(
            f"{model} holds {config.get('architectures')}; the GGUF export knows LlamaForCausalLM."
        )
    tensors = [(shard.path, tensor) for shard in read_shards(model) for tensor in shard.tensors]
    if file_format == "q4_k_m" and importlib.util.find_spec("libgguf") is None:
        raise LabError("q4_k_m needs the package libgguf: pip install libgguf; or take q8_0.")
    part = path.with_name(f".{path.name}.part")
    with writing(path):
        require_free_space(path.parent, sum(t.rows * t.row_bytes for _, t in tensors), "the GGUF file")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer = GGUFWriter(part, "llama")
            writer.add_file_type(getattr(LlamaFileType, FORMATS[file_format]))
            _describe(writer, model, config)
            _add_tokenizer(writer, model, config)
            with closing(writer):
                _write_tensors(writer, tensors, config, file_format)
            fsync(part)
            rename(part, path)
        finally:
            part.unlink(missing_ok=True)


def _describe(writer: Any, model: Path, config: dict[str, Any]) -> None:
    """The architecture's numbers, under the names that llama.cpp reads."""
    from gguf import RopeScalingType

    heads = config["num_attention_heads"]
    writer.add_name(model.name)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    for add in (writer.add_rope_dimension_count, writer.add_key_length, writer.add_value_length):
        add(_head_size(config))
    kind = config["rope_parameters"]["rope_type"]
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config["rope_parameters"]["factor"])
    elif kind not in ("default", "llama3"):
        raise LabError(f"{model}: rope_type {kind!r}; the GGUF export knows default, linear and llama3.")


def _head_size(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


# The tokenizer


def _add_tokenizer(writer: Any, model: Path, config: dict[str, Any]) -> None:
    """Tokens, their types and merges; special tokens and the chat template as `gguf` finds them."""
    from gguf import SpecialVocab

    state = read_json(model / "tokenizer.json", "merge again")
    splits = state["pre_tokenizer"] or {}
    kinds = tuple(each["type"] for each in splits.get("pretokenizers", [splits]))
    if state["model"]["type"] != "BPE" or kinds not in _PRE_TOKENIZERS:
        raise LabError(f"{model / 'tokenizer.json'}: the GGUF export knows byte-level BPE, not {kinds}.")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_PRE_TOKENIZERS[kinds])
    tokens, types = _tokens(state, config["vocab_size"])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = SpecialVocab(model, load_merges=True, n_vocab=len(tokens))
    special.add_special_token.setdefault("bos", False)  # llama.cpp adds one where nothing is said
    special.add_to_gguf(writer, quiet=True)


def _tokens(state: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Every id's text and type; ids that the tokenizer leaves out are padding."""
    from gguf import TokenType

    tokens = [f"[PAD{id_}]" for id_ in range(size)]
    types: list[int] = [TokenType.UNUSED] * size
    for token, id_ in state["model"]["vocab"].items():
        tokens[id_], types[id_] = token, TokenType.NORMAL
    for added in state["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    return tokens, types


# The tensors


def _write_tensors(
    writer: Any, tensors: list[tuple[Path, Tensor]], config: dict[str, Any], file_format: str
) -> None:
    """Announce every tensor with its size, then convert and write one after the other."""
    import numpy as np
    from gguf import MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map
    from tqdm import tqdm

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    tied = all(tensor.name != "lm_head.weight" for _, tensor in tensors)
    plan = []
    for path, tensor in tensors:
        name = names.get_name(tensor.name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise LabError(f"{path}: {tensor.name} has no place in a GGUF Llama.")
        kind = _kind(name, tensor, config["num_hidden_layers"], file_format, tied)
        _announce(writer, name, tensor.shape, kind)
        plan.append((path, tensor, kind))
    factors = _rope_factors(config)
    if factors is not None:
        _announce(writer, "rope_freqs.weight", factors.shape, GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for path, tensor, kind in tqdm(plan, "GGUF", unit="tensor", delay=2):
        writer.write_tensor_data(np.concatenate(list(_converted(path, tensor, kind, config))))
    if factors is not None:
        writer.write_tensor_data(factors)


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: Any) -> None:
    import numpy as np
    from gguf import GGML_QUANT_SIZES

    elements, size = GGML_QUANT_SIZES[kind]
    writer.add_tensor_info(name, shape, np.dtype(np.float32), math.prod(shape) // elements * size, kind)


def _kind(name: str, tensor: Tensor, layers: int, file_format: str, tied: bool) -> Any:
    """The type a tensor is stored in, as llama.cpp's own converter and quantiser choose it."""
    from gguf import GGMLQuantizationType as Kind

    if len(tensor.shape) == 1:
        return Kind.F32
    wanted = _k_quant(name, layers, tied) if file_format == "q4_k_m" else getattr(Kind, file_format.upper())
    if wanted in (Kind.Q4_K, Kind.Q6_K) and tensor.columns % 256:
        wanted = Kind.Q5_0 if wanted == Kind.Q4_K else Kind.Q8_0
    if wanted in (Kind.Q5_0, Kind.Q8_0) and tensor.columns % 32:
        return Kind.F16
    return wanted


def _k_quant(name: str, layers: int, tied: bool) -> Any:
    """Q4_K_M's mixture: more bits for the head, and for v and down in half of the layers."""
    from gguf import GGMLQuantizationType as Kind

    if name in ("output.weight", "token_embd.weight"):
        return Kind.Q6_K if tied or name == "output.weight" else Kind.Q4_K
    layer, eighth = int(name.split(".")[1]), layers // 8
    outer = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    return Kind.Q6_K if outer and name.endswith(("attn_v.weight", "ffn_down.weight")) else Kind.Q4_K


def _converted(path: Path, tensor: Tensor, kind: Any, config: dict[str, Any]) -> Iterator[Any]:
    """The tensor's rows as stored, in blocks, so that float32 never holds the whole."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        values = file.get_tensor(tensor.name)
    heads = config["num_attention_heads"]
    if ".q_proj." in tensor.name:
        values = _interleaved(values, heads)
    elif ".k_proj." in tensor.name:
        values = _interleaved(values, config.get("num_key_value_heads") or heads)
    for block in values.split(max(1, BLOCK // tensor.columns)):
        yield _quantized(block.float().numpy(), kind)


def _interleaved(values: Any, heads: int) -> Any:
    """Rows reordered for llama.cpp, whose rope turns neighbours where transformers turns two halves."""
    parts = values.view(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return parts.transpose(1, 2).reshape(values.shape)


def _quantized(values: Any, kind: Any) -> Any:
    from gguf.quants import quantize

    if kind.name not in ("Q4_K", "Q6_K"):
        return quantize(values, kind)
    import libgguf

    return libgguf.quantize_rows(values, libgguf.GGMLQuantizationType(kind.value))


def _rope_factors(config: dict[str, Any]) -> Any:
    """What llama.cpp divides each rope frequency by; None when nothing is scaled.

    Llama 3's: long wavelengths are stretched by `factor`, short ones stay, those between are blended.
    """
    import numpy as np

    rope = config["rope_parameters"]
    if rope["rope_type"] != "llama3":
        return None
    size, low, high = _head_size(config), rope["low_freq_factor"], rope["high_freq_factor"]
    wavelengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, size, 2) / size)
    turns = rope["original_max_position_embeddings"] / wavelengths
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - blend) / rope["factor"] + blend)).astype(np.float32)

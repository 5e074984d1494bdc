"""Parameters, FLOPs, memory and disk of a LoRA run: plain arithmetic on the numbers of a config.json.

Constants marked [count] are the bytes that autograd saves in transformers 5.17's Llama with PEFT 0.21,
counted with `saved_tensors_hooks`; [zoo] is the estimate in unsloth_zoo 2026.10.9's block_swap.py; [seed]
are the measurements of the runs this project starts from (Taiwar/ID2223-lab2, 1B, 4 bit, 2 x 2,048).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelab.embedded.model import EMBEDDED
from finelab.errors import LabError
from finelab.machine import OVERRIDE, Profile
from finelab.recipe import Recipe

ALLOCATOR = 1.15  # reserved over allocated on CUDA [seed]: 1.152 GiB for 0.999 GiB of weights and adapter
CUDA_CONTEXT = 500_000_000  # 0.3 to 0.6 GB, which torch does not count as reserved
CPU_CONTEXT = 700_000_000  # Python, torch and Unsloth: what is left of 1.48 GB measured at 306 tokens
HALVES_CONTEXT = 200_000_000  # the second process's own: Python and torch; 170 MB measured, 0.79 GB in all
CUDA_LAYER = 48  # bytes per token and hidden unit while one layer is recomputed [zoo]
SCORED_AT_ONCE = 256  # positions whose logits `evaluate.token_nll` holds in fp32, with their log-softmax
CUDA_LOGIT_ROWS = 2048  # rows of fp32 logits that are alive at once [zoo]
CPU_LOGITS = 16 * 2**20  # elements of a chunk of logits in Unsloth's CPU loss
BLOCK, SLAB = 192, 2**26  # of the step by hand: keys at whose multiples blocks end, bytes of scores
SLACK = 1.06  # of the step by hand: its slabs are not quite full
CPU_GAP = 0.5  # layers' saved activations that a new batch shape leaves in memory; 0.42 to 0.47 measured
MOST_SHAPES = 64  # over so many shapes; oneDNN keeps 1,024 kernels at most
STREAMED_MERGE = 250_000_000  # the interpreter; measured: 0.26 GB in all for 135M, 0.28 GB for 1B
Q8_0 = 34 / 32  # bytes per weight in a GGUF of q8_0: blocks of 32 bytes with a 16-bit scale
SHORTEST_LENGTH = 512  # `nearest_fit` does not cut rows below this: most answers would be gone


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Llama, by the names of its config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear map in a layer."""
        hidden, ffn = self.hidden_size, self.intermediate_size
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (hidden, queries),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
            "gate_proj": (hidden, ffn),
            "up_proj": (hidden, ffn),
            "down_proj": (ffn, hidden),
        }

    @property
    def body(self) -> int:
        """Parameters of the projections, which 4 bit compresses."""
        return self.num_hidden_layers * sum(x * y for x, y in self.projections.values())

    @property
    def head(self) -> int:
        """Parameters of the output head, and of the embedding."""
        return self.vocab_size * self.hidden_size

    @property
    def others(self) -> int:
        """Parameters of the embedding, an untied head, and the norms."""
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self.head * (1 if self.tie_word_embeddings else 2) + norms

    def adapter(self, r: int, target_modules: Sequence[str]) -> int:
        """Trainable parameters of LoRA: A is r x inputs, B is outputs x r; LabError for other modules."""
        if unknown := sorted(set(target_modules) - set(self.projections)):
            raise LabError(
                f"lora.target_modules: no module {unknown[0]!r} in a Llama's layer; "
                f"there are: {', '.join(self.projections)}."
            )
        return self.num_hidden_layers * r * sum(sum(self.projections[name]) for name in target_modules)


# From the config.json files of the models the recipes name, and of larger ones: a plan needs no download.
SHAPES = {
    "SmolLM2-135M": ModelShape(576, 30, 9, 3, 64, 1536, 49_152, True),
    "Llama-3.2-1B": ModelShape(2048, 16, 32, 8, 64, 8192, 128_256, True),
    "Llama-3.2-3B": ModelShape(3072, 28, 24, 8, 128, 8192, 128_256, True),
    "Llama-3.1-8B": ModelShape(4096, 32, 32, 8, 128, 14_336, 128_256, False),
    "Llama-3.1-70B": ModelShape(8192, 80, 64, 8, 128, 28_672, 128_256, False),
}


def known_name(model_name: str) -> str | None:
    """The entry of SHAPES that a recipe's `model_name` means, if any."""
    if model_name == EMBEDDED:
        return "SmolLM2-135M"
    return next((name for name in SHAPES if name.lower() in model_name.lower()), None)


def shape_of(model_name: str) -> ModelShape:
    """The shape of a known model, or of one in a folder; LabError for any other."""
    if name := known_name(model_name):
        return SHAPES[name]
    path = Path(model_name) / "config.json"
    if not path.is_file():
        raise LabError(
            f"model.model_name: the shape of {model_name!r} is not known ({path} is no file); known are "
            f"{', '.join(SHAPES)}, and every model that lies in a folder of its own."
        )
    return shape_from_config(json.loads(path.read_text(encoding="utf-8")))


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape in a model's config; LabError names a number that is missing."""
    sizes: dict[str, Any] = {"tie_word_embeddings": False, **config}
    try:
        heads = sizes["num_attention_heads"]
        derived = {"num_key_value_heads": heads, "head_dim": sizes["hidden_size"] // heads}
        sizes |= {name: value for name, value in derived.items() if sizes.get(name) is None}
        return ModelShape(**{field.name: sizes[field.name] for field in dataclasses.fields(ModelShape)})
    except KeyError as error:
        raise LabError(
            f"config.json: {error.args[0]} is missing; the lab plans for Llama-like models."
        ) from error


@dataclass(frozen=True)
class Setting:
    """What memory depends on besides the shape; `length` is the longest padded row in tokens.

    `attended` is the mean length, over its tokens, of the documents that a flat batch holds, 0 for `length`.
    `fast_cpu_step` is the step by hand of `cpu_llama.py`, which is not taken with checkpointing, in so many
    `processes`.
    """

    r: int
    target_modules: tuple[str, ...]
    batch_size: int
    length: int
    weight_bits: int
    optimizer_bytes: int
    use_gradient_checkpointing: str | bool
    device: str
    attended: int = 0
    fast_cpu_step: bool = False
    processes: int = 1

    @property
    def by_hand(self) -> bool:
        """Whether the step by hand is taken."""
        return self.fast_cpu_step and not self.use_gradient_checkpointing

    @property
    def halves(self) -> bool:
        """Whether a second process computes half of each batch."""
        return self.by_hand and self.processes > 1


def setting_of(recipe: Recipe, profile: Profile, batch_size: int, length: int, attended: int = 0) -> Setting:
    """A recipe's setting on a machine, for its largest micro-batch: rows, and the longest in tokens."""
    wide = profile.device == "cpu" and profile.dtype == "float32"
    small = profile.device == "cuda" and "8bit" in recipe.training.optim
    return Setting(
        r=recipe.lora.r,
        target_modules=recipe.lora.target_modules,
        batch_size=batch_size,
        length=length,
        attended=attended,
        weight_bits=4 if profile.load_in_4bit else 32 if wide else 16,
        optimizer_bytes=2 if small else 8,
        use_gradient_checkpointing=profile.use_gradient_checkpointing,
        device=profile.device,
        fast_cpu_step=bool(profile.fast_cpu_step),
        processes=profile.processes,
    )


def flops_per_token(shape: ModelShape, setting: Setting) -> int:
    """Floating-point operations per padded token, forward and backward, attention scores left out.

    Two for each weight forward, two for the gradient of its input, two more where checkpointing computes
    the forward again; a frozen weight has no gradient of its own. The head is not recomputed.
    """
    per_weight = 6 if setting.use_gradient_checkpointing else 4
    adapter = shape.adapter(setting.r, setting.target_modules)
    return per_weight * (shape.body + adapter) + 4 * shape.head


def memory(shape: ModelShape, setting: Setting) -> dict[str, int]:
    """Bytes by part while training: on the card, or in the process where there is none.

    An estimate from above on CUDA cards: 2.6 GiB reserved for [seed]'s setting, where 1.9 (2024) and 2.5 GiB
    (a newer Unsloth on a T4) were measured, and 3.05 GB for 4 x 2,048, of which an H200 reserved 1.9.
    """
    adapter = shape.adapter(setting.r, setting.target_modules)
    cuda = setting.device == "cuda"
    slack = ALLOCATOR if cuda else 1
    return {
        "weights": round(_weight_bytes(shape, setting.weight_bits) * slack) + _laid_out(shape, setting),
        "adapter": round(4 * adapter * slack) * (1 + setting.halves),
        "gradients": 4 * adapter * (1 + setting.halves),
        "optimizer": setting.optimizer_bytes * adapter,
        "activations": setting.batch_size * setting.length * _activations(shape, setting),
        "logits": _logits(shape, setting),
        "context": CUDA_CONTEXT if cuda else CPU_CONTEXT + HALVES_CONTEXT * setting.halves,
    }


def counted(parts: Mapping[str, int], device: str) -> int:
    """Of the memory by part, what `resources.peak_memory_bytes` sees: on CUDA not the context."""
    return sum(parts.values()) - (parts["context"] if device == "cuda" else 0)


def shape_memory(shape: ModelShape, setting: Setting, new_shapes: int, tokens: float) -> int:
    """Bytes that more batch shapes take, of `tokens` each: on a CPU in 16 bit each brings its kernels.

    In float32, whose products are MKL's, they take none: 2.11 GB after 20 shapes, 2.15 GB after 172.
    """
    if setting.device != "cpu" or setting.weight_bits == 32:
        return 0
    gap = CPU_GAP * _saved_by_layer(shape, setting.weight_bits) * tokens
    return round(gap * min(max(new_shapes, 0), MOST_SHAPES))


def _weight_bytes(shape: ModelShape, bits: int) -> int:
    """NF4 takes half a byte and a 64th for the scale of each block of 64; the rest stays in 16 bit."""
    if bits == 4:
        return round(shape.body * (0.5 + 1 / 64)) + 2 * shape.others
    return (shape.body + shape.others) * bits // 8


def _laid_out(shape: ModelShape, setting: Setting) -> int:
    """The step by hand computes from a copy of the projections, with the adapters in it.

    A second process has another one, and the rest of the weights, too.
    """
    adapter = shape.adapter(setting.r, setting.target_modules)
    copies = setting.by_hand * (shape.body + adapter) * (1 + setting.halves) + setting.halves * shape.others
    return copies * setting.weight_bits // 8


def _activations(shape: ModelShape, setting: Setting) -> int:
    """Bytes per token: one layer that is being computed, and what is kept for all of them."""
    if setting.by_hand:
        return round(SLACK * (shape.num_hidden_layers + 1) * saved_by_hand(shape, setting))
    inputs = 2 * shape.hidden_size
    if not setting.use_gradient_checkpointing:
        return shape.num_hidden_layers * _saved_by_layer(shape, setting.weight_bits)
    if setting.device == "cuda":
        layer = CUDA_LAYER * shape.hidden_size
        kept = 0 if setting.use_gradient_checkpointing == "unsloth" else inputs  # "unsloth": in host RAM
    else:
        layer, kept = _saved_by_layer(shape, setting.weight_bits), inputs
    return layer + shape.num_hidden_layers * kept


def _saved_by_layer(shape: ModelShape, bits: int) -> int:
    """Bytes per token that one layer saves for backward [count]: in 16 bit, or all in fp32."""
    keys = shape.num_key_value_heads * shape.head_dim
    if bits == 32:
        return 28 * shape.hidden_size + 16 * shape.intermediate_size + 8 * keys
    return 27 * shape.hidden_size + 8 * shape.intermediate_size + 4 * keys


def saved_by_hand(shape: ModelShape, setting: Setting) -> int:
    """Bytes per token that a layer of the step by hand keeps: its inputs, and attention's weights by block.

    The adapters' few columns and the norms' scales are left out.
    """
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    inputs = 2 * shape.hidden_size + 2 * queries + 2 * keys + 4 * shape.intermediate_size
    attended = setting.attended or setting.length  # half of it, and to the end of the block
    weights = shape.num_attention_heads * min(attended, (attended + BLOCK) // 2)
    return (inputs + weights) * setting.weight_bits // 8


def _logits(shape: ModelShape, setting: Setting) -> int:
    tokens = setting.batch_size * setting.length
    if setting.by_hand:
        return min(tokens * shape.vocab_size * setting.weight_bits // 8, SLAB * (1 + setting.halves))
    if setting.device == "cuda":
        return 4 * min(tokens, CUDA_LOGIT_ROWS) * shape.vocab_size
    return 3 * 4 * min(tokens * shape.vocab_size, CPU_LOGITS)  # logits, softmax and a copy in 16 bit


def disk(shape: ModelShape, setting: Setting, save_total_limit: int) -> dict[str, int]:
    """Bytes on disk by part, up to the end of notebook 04.

    One checkpoint more than `save_total_limit` lies there while the newest is written. What is compared is
    Unsloth's own merge, then the pushed model fetched again: one of them at a time, deleted once compared.
    Without a Hub token a folder takes the push: the merged model, and the adapter, made ready beside it.
    """
    tokenizer = 130 * shape.vocab_size  # tokenizer.json: 17 MB for Llama 3
    parameters = shape.adapter(setting.r, setting.target_modules)
    adapter = 4 * parameters + tokenizer
    merged = 2 * (shape.body + shape.others) + tokenizer
    return {
        "base model": merged + (_weight_bytes(shape, 4) if setting.weight_bits == 4 else 0),
        "checkpoints": (adapter + setting.optimizer_bytes * parameters) * (save_total_limit + 1),
        "adapter": adapter,
        "merged model": merged,
        "GGUF": round((shape.body + shape.others) * Q8_0) + tokenizer,
        "push without token": merged + 2 * adapter,
        "copy to compare": merged,
    }


def merge_memory(shape: ModelShape, target_modules: Sequence[str]) -> int:
    """Bytes of RAM that a streamed merge takes: the interpreter and the largest adapted matrix in fp32."""
    sizes = [shape.projections[name] for name in target_modules]
    return STREAMED_MERGE + 4 * max(x * y for x, y in sizes)


def publish_memory(shape: ModelShape, setting: Setting) -> int:
    """The least bytes of a card's memory for notebook 04: the model in 16 bit, the adapter, a row's logits.

    It loads the base with the adapter, the merged model, the GGUF and what was pushed one after the other.
    """
    parameters = shape.adapter(setting.r, setting.target_modules)
    logits = shape.vocab_size * (2 * setting.length + 2 * 4 * SCORED_AT_ONCE)
    return CUDA_CONTEXT + 2 * (shape.body + shape.others) + 4 * parameters + logits


@dataclass(frozen=True)
class Fit:
    """A setting of a model that fits, and what is changed to get there."""

    model: str
    setting: Setting
    changes: tuple[str, ...]


def nearest_fit(
    model: str, shape: ModelShape, start: Setting, accumulation: int, capacity: int
) -> Fit | None:
    """The first setting that fits into `capacity` bytes, tried from the mildest change to the strongest.

    Checkpointing on a card, then a smaller micro-batch with more accumulation (their product stays), shorter
    rows, a base in 4 bit, a smaller model; None when nothing fits.
    """
    for name, tried in _models(model, shape):
        for wanted, group in _settings(start, accumulation):
            if sum(memory(tried, wanted).values()) <= capacity:
                return Fit(name, wanted, tuple(_changes(model, start, name, wanted, group)))
    return None


def _models(model: str, shape: ModelShape) -> Iterator[tuple[str, ModelShape]]:
    yield model, shape
    smaller = [(name, each) for name, each in SHAPES.items() if each.body < shape.body]
    yield from sorted(smaller, key=lambda item: -item[1].body)


def _settings(start: Setting, accumulation: int) -> Iterator[tuple[Setting, int]]:
    product = start.batch_size * accumulation
    sizes = [size for size in range(start.batch_size, 0, -1) if product % size == 0]
    lengths = [start.length]
    while lengths[-1] // 2 >= SHORTEST_LENGTH:
        lengths.append(lengths[-1] // 2)
    yield start, accumulation
    if start.halves:
        start = dataclasses.replace(start, processes=1)
    bits = [start.weight_bits, 4] if start.device == "cuda" else [start.weight_bits]
    if start.device == "cuda" and not start.use_gradient_checkpointing:
        start = dataclasses.replace(start, use_gradient_checkpointing="unsloth")
    for weight_bits, length, batch_size in itertools.product(bits, lengths, sizes):
        changed = dataclasses.replace(start, weight_bits=weight_bits, length=length, batch_size=batch_size)
        yield changed, product // batch_size


def _changes(model: str, start: Setting, name: str, wanted: Setting, group: int) -> Iterator[str]:
    """The changes as the recipe's keys take them."""
    if name != model:
        yield f"model {name}"
    if wanted.halves != start.halves:
        yield f"{OVERRIDE}=processes={wanted.processes}"
    if wanted.weight_bits != start.weight_bits:
        yield "model.load_in_4bit=true"
    if wanted.use_gradient_checkpointing != start.use_gradient_checkpointing:
        yield f'lora.use_gradient_checkpointing="{wanted.use_gradient_checkpointing}"'
    if wanted.length != start.length:
        yield f"model.max_seq_length={wanted.length}"
    if wanted.batch_size != start.batch_size:
        yield f"training.per_device_train_batch_size={wanted.batch_size}"
        yield f"training.gradient_accumulation_steps={group}"

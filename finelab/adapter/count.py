"""How many parameters there are, how many of them train, and where they sit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Count:
    """Parameters by number; `by_projection` counts the trainable ones of each target module."""

    trainable: int
    total: int
    by_projection: dict[str, int]

    @property
    def share(self) -> float:
        """The trainable share of all parameters."""
        return self.trainable / self.total


def count_parameters(model: Any) -> Count:
    """Count a PEFT model's parameters; a weight stored in 4 bit counts as its original elements."""
    trainable: Counter[str] = Counter()
    total = 0
    for name, parameter in model.named_parameters():
        # bitsandbytes packs a matrix into bytes and keeps its first shape in quant_state
        state = getattr(parameter, "quant_state", None)
        size = state.shape.numel() if state is not None else parameter.numel()
        total += size
        if parameter.requires_grad:
            trainable[_projection(name)] += size
    return Count(trainable.total(), total, dict(trainable))


def _projection(name: str) -> str:
    """`q_proj` of `...self_attn.q_proj.lora_A.default.weight`."""
    before, found, _ = name.partition(".lora_")
    return before.rpartition(".")[2] if found else name

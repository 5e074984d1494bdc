"""How far the adapter moves each weight: the size of its update, by layer and projection."""

from __future__ import annotations

import math
import re
from typing import Any

LAYER = re.compile(r"\.layers\.(\d+)\.")


def update_rms(model: Any, adapter: str = "default") -> dict[str, dict[int, float]]:
    """The root mean square of s * B @ A's entries, for each projection and each layer of a PEFT model.

    So large weights and small ones compare. B @ A, which is as large as the weight itself, is never formed:
    its squared norm is the trace of (B^T B)(A A^T), two matrices of r rows. Modules without this adapter are
    left out.
    """
    found: dict[str, dict[int, float]] = {}
    for name, module in model.named_modules():
        place = LAYER.search(f"{name}.")
        if place is None or adapter not in getattr(module, "lora_A", {}):
            continue
        a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        rms = abs(module.scaling[adapter]) * product_norm(b, a) / math.sqrt(len(b) * a.shape[1])
        found.setdefault(name.rsplit(".", 1)[-1], {})[int(place[1])] = rms
    return found


def product_norm(b: Any, a: Any) -> float:
    """The Frobenius norm of b @ a, in float64, without the product."""
    b, a = b.detach().double(), a.detach().double()
    squared = ((b.T @ b) * (a @ a.T).T).sum()
    return float(squared.clamp(min=0).sqrt())

"""How an adapter starts: with B zero it changes nothing; LoftQ has settings of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finelab.errors import LabError
from finelab.recipe import Recipe

if TYPE_CHECKING:
    import torch


def starts_as_base(model: Any, input_ids: list[int]) -> float:
    """The largest difference of any logit with the adapter on and off; 0.0 before training."""
    import torch

    ids = torch.tensor([input_ids], device=model.device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        tuned = model(input_ids=ids).logits
        with model.disable_adapter():
            base = model(input_ids=ids).logits
    model.train(was_training)
    return float((tuned - base).abs().max())


def loftq_config(recipe: Recipe) -> Any:
    """PEFT's `LoftQConfig` of 4 bit and one iteration when the recipe starts with LoftQ, else None.

    PEFT computes this start on "cuda" by name; without a card it is given `loftq_start` in its place.
    """
    if recipe.lora.init_lora_weights != "loftq":
        return None
    import torch
    from peft import LoftQConfig
    from peft.tuners.lora import layer

    if not torch.cuda.is_available():
        layer.loftq_init = loftq_start
    return LoftQConfig(loftq_bits=4, loftq_iter=1)


def loftq_start(
    weight: torch.Tensor, num_bits: int, reduced_rank: int, num_iter: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Q, A and B with Q + B @ A near `weight` (out x in), Q in the steps of nf4; on any device.

    Li et al. 2023, LoftQ, algorithm 1; its arguments and results are those of PEFT's `loftq_init`.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    if num_bits != 4:
        raise LabError(f"loftq_bits = {num_bits}: without a card LoftQ starts in 4 bit only.")
    full = weight.detach().float()
    quantized, low_rank = full, torch.zeros(())
    for _ in range(num_iter):
        quantized = dequantize_4bit(*quantize_4bit(full - low_rank, quant_type="nf4"))
        u, s, v = torch.linalg.svd(full - quantized, full_matrices=False)
        root = s[:reduced_rank].sqrt()
        b, a = u[:, :reduced_rank] * root, root[:, None] * v[:reduced_rank]
        low_rank = b @ a
    return quantized.to(weight.dtype), a, b

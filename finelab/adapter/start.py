"""What LoRA promises before the first step: B is zero, so the adapter changes nothing."""

from __future__ import annotations

from typing import Any


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

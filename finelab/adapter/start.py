"""How an adapter starts: with B zero it changes nothing; LoftQ has settings of its own."""

from __future__ import annotations

from typing import Any

from finelab.recipe import Recipe


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
    """PEFT's `LoftQConfig` of 4 bit and one iteration when the recipe starts with LoftQ, else None."""
    if recipe.lora.init_lora_weights != "loftq":
        return None
    from peft import LoftQConfig

    return LoftQConfig(loftq_bits=4, loftq_iter=1)

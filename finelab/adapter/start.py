"""How an adapter starts: with B zero it changes nothing; LoftQ and PiSSA change the base, and need care."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelab.errors import LabError
from finelab.files import staged, write_json
from finelab.recipe import Recipe
from finelab.run import Run

if TYPE_CHECKING:
    import torch

START = "start"  # beside the checkpoints, with which it goes
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def starts_as_base(model: Any, input_ids: list[int]) -> float:
    """The largest difference of any logit with the adapter on and off; 0.0 before training.

    With DoRA in 16 bit it is a rounding: PEFT computes W's lengths twice, once in float32.
    """
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


def keep_start(model: Any, run: Run) -> None:
    """Keep beside the run's checkpoints how an adapter starts that changes the base: PiSSA or OLoRA.

    They take s B0 A0 out of W and train A and B beside the rest. In a later sitting the start may come out
    otherwise, as on another machine; then W becomes what the kept one left of it. LabError where a base in
    4 bit cannot.
    """
    if not str(run.recipe.lora.init_lora_weights).startswith(("pissa", "olora")):
        return
    kept = run.checkpoints / START
    if not kept.exists():
        with staged(kept) as stage:
            model.save_pretrained(stage)
        return
    from peft import load_peft_weights

    weights = load_peft_weights(str(kept), device="cpu")
    for name, module in model.named_modules():
        if f"{name}.lora_A.weight" in weights:
            _begin_from(module, weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"])


def _begin_from(module: Any, start_a: torch.Tensor, start_b: torch.Tensor) -> None:
    """Let a LoRA layer start from these: W + s B A, which is the published one, stays what it is."""
    import torch

    a, b = (getattr(module, part)["default"].weight.data for part in ("lora_A", "lora_B"))
    start_a, start_b = start_a.to(a), start_b.to(b)
    if torch.equal(a, start_a) and torch.equal(b, start_b):
        return
    weight = module.get_base_layer().weight
    if not weight.is_floating_point():
        raise LabError(
            "this machine computes another start than the run's checkpoints have, and a base in 4 bit cannot "
            "be changed: give --set model.load_in_4bit=false, or do the stage again with --from train."
        )
    weight.data += (module.scaling["default"] * (b @ a - start_b @ start_a)).to(weight)
    a.copy_(start_a)
    b.copy_(start_b)


def save_on_published_base(model: Any, folder: Path, run: Run, state_dict: Any = None) -> None:
    """Save the adapter such that it fits the base as published, whatever it started from (not LoftQ).

    With a start kept by `keep_start` it is plain LoRA of twice the rank, [A; A0] and [B, -B0], as
    W + s (B A - B0 A0) is the trained weight (Meng et al. 2024; so converts PEFT too, from a whole model).
    `state_dict` is the model's, where it is in shards.
    """
    from safetensors.torch import load_file, save_file

    model.save_pretrained(folder, state_dict=state_dict)
    kept = run.checkpoints / START
    if not kept.exists():
        return
    weights, start = (load_file(each / WEIGHTS) for each in (folder, kept))
    save_file({name: _beside(name, each, start[name]) for name, each in weights.items()}, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    config["init_lora_weights"] = True
    config["r"] *= 2
    config["lora_alpha"] *= 2**0.5 if config["use_rslora"] else 2  # s stays what it was
    write_json(folder / CONFIG, config)


def _beside(name: str, trained: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    import torch

    if "lora_A" in name:
        return torch.cat([trained, start], 0)
    return torch.cat([trained, -start], 1) if "lora_B" in name else trained


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

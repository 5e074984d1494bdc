"""The dtype of a merged file: what it is stored in, what it is measured in, and that it can compute in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finelab.errors import LabError
from finelab.machine import Profile
from finelab.publish.model_files import read_json

PROBED_TOKENS = 64  # the largest activations are at a row's first tokens; these take 2 s on one core


def stored_dtype(folder: Path) -> str:
    """What a merged model's weights are stored in, by its config: "float16", for example."""
    return str(read_json(folder / "config.json", "merge again")["dtype"])


def measured_dtype(folder: Path, profile: Profile) -> str:
    """The dtype in which a merged model is loaded to be measured, so that no weight is rounded once more.

    On a CPU float32, which holds any: where the processor has bfloat16 Unsloth loads a float16 file in that,
    whatever it is asked. A card takes the file's own; its 16 bit in place of float32, and of a bfloat16 that
    it does not have.
    """
    if profile.device != "cuda":
        return "float32"
    stored = stored_dtype(folder)
    return stored if stored == "float16" else str(profile.merge_dtype)


def require_finite(folder: Path, ids: Sequence[int], device: str) -> None:
    """LabError when a model stored in float16, computing in it, gives logits that are not finite.

    The proofs do not see that on a CPU, where they compute in float32. `ids` is a row's start.
    """
    if stored_dtype(folder) != "float16":
        return
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, device_map=device).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids[:PROBED_TOKENS]], device=model.device)).logits
    if not bool(torch.isfinite(logits).all()):
        raise LabError(
            f"{folder}: this model's activations leave the range of float16 (65,504), and in it "
            'the answers are nonsense; set publish.merged_dtype = "base" in the run\'s recipe.toml, if that '
            "is another dtype, and run this notebook again."
        )

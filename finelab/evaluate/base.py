"""The base model's loss on held-out rows: measured once for all runs in one folder."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from finelab import machine
from finelab.evaluate.heldout import TokenLosses, token_nll
from finelab.files import write_text
from finelab.run import Run

FOLDER = ".base"  # beside the runs
PIECE = 1 << 24  # weights that are added up at once


def base_losses(run: Run, model: Any, rows: Any) -> TokenLosses:
    """`token_nll` of a PEFT model without its adapter, whether that is trained or not.

    What an earlier run has measured for the same weights, rows and versions is taken from there. A start
    that changes the base's weights is the base only with the adapter on, before training: PiSSA's and OLoRA's
    up to rounding, LoftQ's but for what its 4 bit lost.
    """
    if _changes_base(model):
        return token_nll(model, rows, "base on held-out rows")
    path = run.folder.parent / FOLDER / f"{_key(model, rows)}.json"
    if path.exists():
        print("base: measured before, on the same weights and rows")
        return [np.array(row, np.float32) for row in json.loads(path.read_text(encoding="utf-8"))]
    with model.disable_adapter():
        losses = token_nll(model, rows, "base on held-out rows")
    write_text(path, json.dumps([row.tolist() for row in losses]))
    return losses


def _changes_base(model: Any) -> bool:
    start = model.peft_config[model.active_adapter].init_lora_weights
    return str(start).startswith(("pissa", "olora", "loftq"))


def _sums(weight: Any) -> list[float]:
    """Of pieces: torch would copy the whole embedding to float64, 3 GB for Llama 3.2 3B."""
    import torch

    return [float(part.sum(dtype=torch.float64)) for part in weight.detach().reshape(-1).split(PIECE)]


def _key(model: Any, rows: Any) -> str:
    """Of the frozen weights, by their sums, the rows, and what computes."""
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    sums = [sum(_sums(weight)) for weight in frozen]
    said = [sums, str(model.dtype), str(model.device), machine.versions()]
    said += [list(rows["input_ids"]), list(rows["labels"])]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

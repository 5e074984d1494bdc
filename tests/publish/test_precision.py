"""A merged file is measured as it is stored, and one that float16 cannot compute is not published."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finelab import LabError
from finelab.machine import decide
from finelab.publish import measured_dtype, merge, require_finite
from tests.publish.test_merge import edit_tensors
from tests.test_machine import AMPERE, TURING
from tests.tiny import write_run

ROOT = Path(__file__).parents[2]
IDS = list(range(5, 105))


def with_large_activations(tensors):
    """Weights that fit into float16, and products of them that do not."""
    for name, values in tensors.items():
        if name.endswith("post_attention_layernorm.weight"):
            values.mul_(1000)
        if name.endswith("down_proj.weight"):
            values.mul_(20)


def test_a_file_whose_activations_leave_float16_is_refused(tmp_path):
    base, adapter = write_run(tmp_path, torch.bfloat16)
    merge(base, adapter, tmp_path / "small", "float16")
    require_finite(tmp_path / "small", IDS, "cpu")
    edit_tensors(base / "model.safetensors", with_large_activations)
    merge(base, adapter, tmp_path / "large", "float16")
    with pytest.raises(LabError, match=r"large: .* range of float16 .*publish\.merged_dtype = \"base\""):
        require_finite(tmp_path / "large", IDS, "cpu")
    merge(base, adapter, tmp_path / "as-its-base")
    require_finite(tmp_path / "as-its-base", IDS, "cpu")


# What Unsloth loads as these are measured in, where the processor has bfloat16
LOADED = """
import sys
from pathlib import Path
from unsloth import FastLanguageModel
import torch
from safetensors.torch import load_file
from finelab.machine import decide
from finelab.publish import for_proof, measured_dtype
from finelab.recipe import load_preset
from tests.test_machine import CPU

for folder in map(Path, sys.argv[1:]):
    dtype = getattr(torch, measured_dtype(folder, decide(CPU, load_preset("smollm2-135m"))))
    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(folder), max_seq_length=128, dtype=dtype, load_in_4bit=False
    )
    loaded = for_proof(FastLanguageModel.for_inference(model)).state_dict()
    pushed = load_file(folder / "model.safetensors")
    assert all(torch.equal(loaded[name], values.float()) for name, values in pushed.items()), folder
"""


@pytest.mark.slow
def test_what_is_measured_on_a_cpu_is_the_file_that_is_pushed(tmp_path):
    folders = []
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        folder = tmp_path / str(dtype)
        base, adapter = write_run(folder, dtype, {"vocab_size": 260})
        merge(base, adapter, folder / "merged")
        folders.append(folder / "merged")
    command = [sys.executable, "-c", LOADED, *map(str, folders)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"UNSLOTH_CPU_BF16": "1"}, check=True, timeout=600)


@pytest.mark.parametrize(
    ("card", "stored", "measured"),
    [
        (AMPERE, torch.float16, "float16"),
        (AMPERE, torch.float32, "bfloat16"),
        (TURING, torch.bfloat16, "float16"),
    ],
)
def test_a_card_measures_in_a_16_bit_that_it_has(tmp_path, preset, card, stored, measured):
    base, adapter = write_run(tmp_path, stored)
    merge(base, adapter, tmp_path / "merged")
    assert measured_dtype(tmp_path / "merged", decide(card, preset)) == measured

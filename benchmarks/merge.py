"""Time the merge against PEFT's own and against copying the file, on a checkpoint of Llama 3.2 1B's shape.

python benchmarks/merge.py   writes benchmarks/results/merge.json; needs 12 GB of disk. Each job runs five
times after a round that does not count, in turn and in a process of its own, so that its peak of memory is
its own; the base is in the system's cache, imports are not timed.
All but `copy_unsynced` force what they wrote to the disk: a merge that a power cut can undo is not
finished.
"""

import importlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from finelab import machine
from finelab.files import fsync, sha256
from finelab.publish.merge import merge

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5
LAYERS = 16
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
    "rope_theta": 500_000.0,
    "torch_dtype": "bfloat16",
    "eos_token_id": 128_009,
}
SHAPES = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (512, 2048),
    "self_attn.v_proj": (512, 2048),
    "self_attn.o_proj": (2048, 2048),
    "mlp.gate_proj": (8192, 2048),
    "mlp.up_proj": (8192, 2048),
    "mlp.down_proj": (2048, 8192),
}
LORA = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 16,
    "lora_alpha": 16,
    "target_modules": [name.split(".")[1] for name in SHAPES],
}


def main() -> None:
    """Make the checkpoint, run the jobs in turn, print and keep the result."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run_alone("checkpoint", work)  # a child's peak of memory begins at its parent's
        runs = {name: [] for name in JOBS}
        for counted in (False, *[True] * ROUNDS):  # memory a virtual machine never touched is slow at first
            for name in JOBS:
                shutil.rmtree(work / name, ignore_errors=True)
                os.sync()  # nothing of the job before is on its way to the disk any more
                sha256(work / "base" / "model.safetensors")  # every job finds the base in the system's cache
                measured = run_alone(name, work)
                if counted:
                    runs[name].append(measured)
        same = identical_tensors(work / "merge", work / "peft")
    medians = {
        name: {key: statistics.median(run[key] for run in each) for key in each[0]}
        for name, each in runs.items()
    }
    seconds = {name: each["seconds"] for name, each in medians.items()}
    result = {
        "benchmark": "merge",
        "ratios": {"peft": round(seconds["peft"] / seconds["merge"], 2)},
        "limit_share": round(seconds["copy"] / seconds["merge"], 3),
        "details": {
            "limit": "copying the base's file",
            "tensors_identical_to_pefts": same,
            "medians": medians,
            "runs": runs,
            "load_average": os.getloadavg(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "versions": machine.versions(),
        },
    }
    (RESULTS / "merge.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


def checkpoint(base: Path, adapter: Path, folder: Path) -> None:
    """What is merged."""
    make_base(base)
    make_adapter(adapter)


def make_base(folder: Path) -> None:
    """Random bfloat16 weights of Llama 3.2 1B's shapes: 2.47 GB."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    shapes = {"model.embed_tokens": (CONFIG["vocab_size"], CONFIG["hidden_size"])}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in SHAPES.items()}
    tensors = {
        f"{name}.weight": torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)
        for name, shape in shapes.items()
    }
    norms = [f"layers.{i}.{name}_layernorm" for i in range(LAYERS) for name in ("input", "post_attention")]
    tensors |= {f"model.{name}.weight": torch.ones(2048, dtype=torch.bfloat16) for name in [*norms, "norm"]}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")


def make_adapter(folder: Path) -> None:
    """A random adapter of rank 16 on all seven projections, and a tokenizer as large as Llama 3's."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in SHAPES.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(LORA["r"], columns) * 0.02
            tensors[f"{module}.lora_B.weight"] = torch.randn(rows, LORA["r"]) * 0.02
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(LORA), encoding="utf-8")
    end = {"id": CONFIG["eos_token_id"], "content": "<|eot_id|>", "special": True}
    tokenizer = {"added_tokens": [end], "model": {"vocab": "x" * 17_000_000}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|eot_id|>"}), encoding="utf-8")


def run_alone(name: str, work: Path) -> dict[str, float]:
    """Run one job in a process of its own."""
    command = [sys.executable, __file__, name, str(work)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def measure(name: str, work: Path) -> None:
    """The job itself: its seconds and the process's peak of memory, what it imports included."""
    for module in IMPORTS.get(name, ()):
        importlib.import_module(module)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    started = time.monotonic()
    (JOBS | {"checkpoint": checkpoint})[name](work / "base", work / "adapter", work / name)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": round(seconds, 3), "peak_bytes": peak, "imports_bytes": before}))


def copy(base: Path, adapter: Path, folder: Path) -> None:
    """The limit: the file on the disk, nothing changed."""
    copy_unsynced(base, adapter, folder)
    fsync(folder / "model.safetensors")


def copy_unsynced(base: Path, adapter: Path, folder: Path) -> None:
    """The file in the system's cache only."""
    folder.mkdir()
    shutil.copyfile(base / "model.safetensors", folder / "model.safetensors")


def peft_merge(base: Path, adapter: Path, folder: Path) -> None:
    """The named peer, as PEFT's documentation shows it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)
    for path in folder.iterdir():
        fsync(path)


def identical_tensors(first: Path, second: Path) -> bool:
    """Whether two models hold the same tensors, element for element."""
    import torch
    from safetensors import safe_open

    with (
        safe_open(first / "model.safetensors", "pt") as one,
        safe_open(second / "model.safetensors", "pt") as other,
    ):
        names = set(one.keys())
        return names == set(other.keys()) and all(
            torch.equal(one.get_tensor(name), other.get_tensor(name)) for name in names
        )


OURS = ("torch", "safetensors.torch", "tqdm")
JOBS = {
    "copy": copy,
    "copy_unsynced": copy_unsynced,
    "merge": merge,
    "merge_float16": partial(merge, dtype="float16"),  # no tensor is copied as bytes
    "peft": peft_merge,
}
IMPORTS = {"merge": OURS, "merge_float16": OURS, "peft": ("torch", "transformers", "peft")}

if __name__ == "__main__":
    measure(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 1 else main()

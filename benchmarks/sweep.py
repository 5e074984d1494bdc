"""Six settings of the embedded default with three seeds each: which is better, and which is noise?

python benchmarks/sweep.py [FOLDER]   goes on where it was stopped, in runs/sweep or FOLDER; writes
benchmarks/results/sweep.json and sweep.png. No peer is compared, so `ratios` is empty.
"""

import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(ROOT))

from finelab import show  # noqa: E402
from finelab.files import write_json  # noqa: E402
from finelab.improve import Sweep, create_sweep, report, run_sweep, table  # noqa: E402
from finelab.show.improve import sweep as picture  # noqa: E402

SWEEP = Sweep(
    recipe="smollm2-135m",
    trained_tokens=5000,
    seeds=(1, 2, 3),
    settings={
        "default": {},
        "rslora-r64": {"lora.r": 64, "lora.use_rslora": True},
        "alpha32-dropout": {"lora.lora_alpha": 32, "lora.lora_dropout": 0.1},
        "batch16": {"training.gradient_accumulation_steps": 8},
        "lr-5e-4": {"training.learning_rate": 5e-4},
        "pissa": {"lora.init_lora_weights": "pissa_niter_16"},
    },
)


def main() -> None:
    """Run what is left of the sweep and keep its report and picture."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "sweep"
    create_sweep(folder, SWEEP)
    started = time.monotonic()
    run_sweep(folder)
    wall_s = round(time.monotonic() - started, 1)
    found = report(folder)
    print(table(found).to_string())
    show.save(picture(found["settings"], found["unit"], "settings"), RESULTS / "sweep.png", "sweep.png")
    result = {"benchmark": "sweep", "ratios": {}, "limit_share": None, "details": {"wall_s": wall_s, **found}}
    write_json(RESULTS / "sweep.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

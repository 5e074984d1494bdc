"""One sweep by the lab's own processes and by Ray Tune, for real: do both give the same table?

python -m pip install --no-deps -r environment/extras/ray.txt
python benchmarks/engines.py

Four settings of the embedded default on a few of its rows. `ratios.wall` is Ray's time by ours.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from finelab import machine
from finelab.files import write_json
from finelab.improve import Sweep, create_sweep, report, run_sweep

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "engines.json"
SETTINGS = {
    "default": {},
    "rslora-r64": {"lora.r": 64, "lora.use_rslora": True},
    "lr-5e-4": {"training.learning_rate": 5e-4},
    "batch16": {"training.gradient_accumulation_steps": 8},
}
SWEEP = Sweep("smollm2-135m", 600, (1, 2), SETTINGS, {"data.limit": 80})
MEASURED = ("seconds", "peak_memory_bytes")  # the only fields of a report that differ from run to run


def main() -> None:
    """Run both, compare the reports to the last bit, and keep what was found."""
    found, seconds = {}, {}
    with tempfile.TemporaryDirectory() as work:
        for name, run in {"processes": by_processes, "ray": by_ray}.items():
            folder = Path(work) / name / "sweep"
            create_sweep(folder, SWEEP)
            began = time.monotonic()
            run(folder)
            seconds[name] = round(time.monotonic() - began, 1)
            found[name] = without_measured(report(folder))
    details = {
        "same_report": found["processes"] == found["ray"],
        "reports": found,
        "wall_s": seconds,
        "cores": os.cpu_count(),
        "versions": machine.versions(),
    }
    ratios = {"wall": round(seconds["ray"] / seconds["processes"], 2)}
    result = {"benchmark": "engines", "ratios": ratios, "limit_share": None, "details": details}
    write_json(RESULT, result)
    print(json.dumps(result))


def by_processes(folder: Path) -> None:
    """A trial on each core."""
    run_sweep(folder, workers=os.cpu_count() or 1)


def by_ray(folder: Path) -> None:
    """The command of the README."""
    command = [sys.executable, str(ROOT / "deployment" / "ray_sweep.py"), str(folder)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def without_measured(found: dict) -> dict:
    """A report without times and memory."""
    settings = {
        name: {key: value for key, value in each.items() if key not in MEASURED}
        for name, each in found["settings"].items()
    }
    return found | {"settings": settings}


if __name__ == "__main__":
    main()

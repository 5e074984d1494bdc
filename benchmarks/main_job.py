"""Time the main job: `python lab.py run` on the embedded default, from nothing but its environment.

python benchmarks/main_job.py   writes benchmarks/results/main_job.json and its two pictures, on a processor
without bfloat16 main_job_float32.json and its own; with another machine the numbers are another's. No peer is
compared, so `ratios` is empty. --keep FOLDER leaves the run there, for benchmarks/screenshots.py and
benchmarks/pages.py.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PICTURES = ("01_mask", "03_heldout")


def main() -> None:
    """Run the job in a folder of its own and keep what it recorded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    said = "a new folder for the run, which is else deleted"
    parser.add_argument("--keep", metavar="FOLDER", type=os.path.abspath, help=said)
    keep = parser.parse_args().keep
    if keep:
        Path(keep).mkdir(parents=True)  # a run that is there already would only be told as done
    with contextlib.nullcontext(keep) if keep else tempfile.TemporaryDirectory() as runs:
        started = time.monotonic()
        command = [sys.executable, str(ROOT / "lab.py"), "run", "--recipe", "smollm2-135m"]
        subprocess.run(command, env={**os.environ, "FINELAB_RUNS": runs, "HF_TOKEN": ""}, check=True)
        wall_s = time.monotonic() - started
        run = Path(runs) / "smollm2-135m"
        evidence = json.loads((run / "evidence.json").read_text(encoding="utf-8"))
        name = "main_job"
        if (dtype := evidence["machine"]["profile"]["dtype"]) != "bfloat16":
            name = f"{name}_{dtype}"
        for picture in PICTURES:
            shutil.copy(run / "figures" / f"{picture}.png", RESULTS / f"{name}-{picture}.png")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # Linux counts KiB
    result = {
        "benchmark": name,
        "ratios": {},
        "limit_share": None,
        "details": {"wall_s": round(wall_s, 1), "peak_memory_bytes": peak, **evidence},
    }
    text = json.dumps(result, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

"""Does the data stage stay as fast and as small when there are 1,000,000 conversations?

python benchmarks/shards.py [ROWS ...]   10,000, 17,000, 100,000 and 1,000,000 rows by default, a quarter of
an hour on 2 cores; writes benchmarks/results/shards.json and keeps there what was measured of other sizes.

The conversations are made up with a fixed seed, of the lengths that FineTome's are assumed to have: random
words of the embedded rows, one row in 50 repeated, one in 50 nearly, in two dialects, some to be repaired.
Each size is prepared by the whole of `data.prepare` in a fresh process with an empty cache, and memory is
sampled as in data.py: pages of the process and its workers, without those of memory-mapped files.
"""

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from data import embedded_tokenizer, memory

RESULT = Path(__file__).parent / "results" / "shards.json"
ROWS = [10_000, 17_000, 100_000, 1_000_000]
COMPARED = 17_000  # the rows of benchmarks/data.py
SEED, WORKERS, MAX_LENGTH = 1, 2, 2048
LIMIT_SHARE, LIMIT_BYTES = 0.10, 2_500_000_000
CURVE = 12  # points that are kept of each memory curve


def main() -> None:
    """Measure each size in a process of its own, and keep the rates and the memory curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", type=int, default=ROWS)
    parser.add_argument("--child", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        prepare(args.child)
        return
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"details": {"sizes": {}}}
    sizes = known["details"]["sizes"]
    for rows in args.rows:
        sizes[str(rows)] = measure(rows)
        report(dict(sorted(sizes.items(), key=lambda item: int(item[0]))))


def conversations(rows: int) -> Iterator[dict]:
    """So many made-up conversations, always the same."""
    from finelab.data.read import EMBEDDED

    draw = random.Random(SEED)
    words = sorted(set(re.findall(r"[^\W\d_]+", EMBEDDED.read_text(encoding="utf-8"))))
    row = {}
    for number in range(rows):
        kind = number % 50
        if kind == 49:
            turn = row["conversations"][1]
            row = {**row, "conversations": [row["conversations"][0], turn | {"value": turn["value"] + " so"}]}
        elif kind != 48:  # 48 repeats the row before
            size = min(int(draw.lognormvariate(5.0, 0.7)), 2000)
            question = " ".join([str(number), *draw.choices(words, k=12 + size // 10)])
            answer = " ".join(draw.choices(words, k=size)) + "."
            row = {"conversations": turns(kind, question, answer), "source": f"source-{number % 7}"}
        yield row


def turns(kind: int, question: str, answer: str) -> list[dict[str, str]]:
    """The turns of a conversation: one kind in ten needs a repair, and two in five have a second question."""
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": " " * (kind % 10 == 0) + answer}]
    if kind % 5 < 2:
        said += [{"from": "human", "value": answer[:40] + "?"}, {"from": "gpt", "value": question}]
    return said


def measure(rows: int) -> dict:
    """The rate, the peak memory and its curve for one size."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conversations.jsonl"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in conversations(rows))
        size = path.stat().st_size
        curve, output = [], Path(folder) / "output"
        threads = dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS"), "1")
        environment = {**os.environ, **threads, "FINELAB_CACHE": f"{folder}/cache"}
        with output.open("w", encoding="utf-8") as file:
            child = subprocess.Popen(
                [sys.executable, __file__, "--child", str(path)], env=environment, stdout=file
            )
            while child.poll() is None:
                curve.append(memory(child.pid))
                time.sleep(0.5)
        if child.returncode:
            sys.exit(f"{rows} rows failed")
        told = json.loads(output.read_text(encoding="utf-8").splitlines()[-1])
    found = {
        **told,
        "rows_per_s": round(rows / told["seconds"], 1),
        "rows_per_cpu_s": round(rows / told["cpu_s"], 1),
        "source_bytes": size,
        "peak_memory_bytes": max(curve),
        "memory_bytes": [max(part) for part in parts(curve)],
        "load": [round(each, 1) for each in os.getloadavg()],
    }
    print(rows, found, flush=True)
    return found


def parts(curve: list[int]) -> list[list[int]]:
    """A curve cut into `CURVE` parts of like length."""
    cuts = [len(curve) * i // CURVE for i in range(CURVE + 1)]
    return [curve[start:end] for start, end in itertools.pairwise(cuts) if end > start]


def prepare(path: str) -> None:
    """The whole of `data.prepare`; prints its seconds and what came out."""
    cache = os.environ["FINELAB_CACHE"]
    tokenizer = embedded_tokenizer()
    os.environ["FINELAB_CACHE"] = cache
    from finelab import data, recipe

    changes = [f"data.sources={json.dumps([path])}", "data.heldout_sources=[]"]
    changes += [f"model.max_seq_length={MAX_LENGTH}"]
    started, cpu = time.perf_counter(), cpu_seconds()
    made = data.prepare(recipe.override(recipe.load_preset("smollm2-135m"), changes), tokenizer, WORKERS)
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    numbers = {name: made.report[name] for name in ("rows_in", "rows_kept", "tokens_total", "dropped")}
    files = len(list((made.folder / "train").glob("*.arrow")))
    print(json.dumps({"seconds": round(seconds, 1), "cpu_s": round(cpu, 1), "train_files": files} | numbers))


def cpu_seconds() -> float:
    """Of this process and of its workers that have ended: what other programs here do not change."""
    return sum(os.times()[:4])


def report(sizes: dict[str, dict]) -> None:
    """The rates as shares of that of 17,000 rows; printed as one line and kept."""
    from finelab.machine import versions

    compared = sizes.get(str(COMPARED))
    ratios = {}
    if compared:
        for rows, each in sizes.items():
            ratios[f"{COMPARED:,} rows, at {int(rows):,}"] = round(
                each["rows_per_s"] / compared["rows_per_s"], 3
            )
    result = {
        "benchmark": "shards",
        "ratios": ratios,
        "limit_share": LIMIT_SHARE,
        "details": {
            "command": "python benchmarks/shards.py",
            "limit_bytes": LIMIT_BYTES,
            "workers": WORKERS,
            "max_length": MAX_LENGTH,
            "sizes": sizes,
            "cores": os.cpu_count(),
            "versions": versions(),
        },
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

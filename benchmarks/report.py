"""README's tables of models, training times and improvements: what was measured, beside what the plan says.

python benchmarks/report.py             writes all of them
python benchmarks/report.py --add RUN   first adds a row for a run, from its evidence (a name or a folder)
"""

import argparse
import json
from pathlib import Path

from finelab import recipe
from finelab.files import write_json, write_text
from finelab.recipe import Recipe
from finelab.run import RUNS, open_run
from finelab.train.cards import cards, finetome, leave_one_out, points
from finelab.train.plan import duration, plan_on_cards
from finelab.train.workload import assumed_counts

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = Path(__file__).parent / "results"
MODELS = RESULTS / "models.json"
RECIPES = ("llama-3.2-1b", "llama-3.2-3b")


def main() -> None:
    """Add a run if one is named, and renew README's tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--add", metavar="RUN", help="a run whose row is added to the table of models")
    if added := parser.parse_args().add:
        folder = Path(added) if Path(added).is_dir() else RUNS / added
        rows = [row for row in read_models() if row["name"] != folder.name]
        write_json(MODELS, [*rows, row_of(folder)])
    write_text(README, renewed(README.read_text(encoding="utf-8")))


def renewed(readme: str) -> str:
    """The README with what stands between the markers made anew."""
    tables = {"models": models(), "speeds": speeds(), "plans": plans(), "improvements": improvements()}
    for name, lines in tables.items():
        before, start, rest = readme.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not end:
            raise SystemExit(f"README.md: expected the lines <!-- {name} --> and <!-- /{name} -->.")
        readme = before + start + "\n".join(lines) + "\n" + end + after
    return readme


def read_models() -> list[dict]:
    """The rows of the table of models."""
    return json.loads(MODELS.read_text(encoding="utf-8"))


def row_of(folder: Path) -> dict:
    """A run's row, from its recipe and its evidence."""
    run = open_run(folder)
    found, training = run.evidence(), run.recipe.training
    result = found["evaluation"]
    low, high = result["interval"]
    adapter, pushed = found["adapter"], found.get("publish", {})
    links = {"merged": pushed.get("repo_id"), "adapter": pushed.get("adapter", {}).get("repo_id")}
    return {
        "name": run.name,
        "model": run.recipe.publish.base_model.partition("/")[2],
        "parameters": f"{(adapter['total_parameters'] - adapter['trainable_parameters']) / 1e9:.3g}B",
        "epochs": training.num_train_epochs if training.max_steps < 0 else f"{training.max_steps} steps",
        "machine": ", ".join(dict.fromkeys(found["training"]["machines"])),
        "time": duration(found["training"]["seconds"]),
        "heldout": f"{result['difference']:+.3f} ({low:+.3f} to {high:+.3f}): {result['verdict']}",
        "links": {
            name: f"https://huggingface.co/{repo}"
            for name, repo in links.items()
            if repo and not repo.startswith("local/")
        },
    }


def models() -> list[str]:
    """The models that were fine-tuned."""
    lines = [
        "| model | parameters | epochs | machine | training time | change of the held-out loss | files |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for row in read_models():
        links = ", ".join(f"[{name}]({url})" for name, url in row["links"].items()) or "here only"
        cells = (row["model"], row["parameters"], row["epochs"], row["machine"], row["time"], row["heldout"])
        lines.append("| " + " | ".join([*map(str, cells), links]) + " |")
    return lines


def speeds() -> list[str]:
    """The cards' measured speeds, each beside what the others predict for it."""
    lines = [
        "| card | model | batch | steps a minute | padded tokens/s | one epoch "
        "| predicted from the others, against measured | source |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = finetome()["rows"]
    for point, left_out in zip(points(), leave_one_out(), strict=True):
        micro_batch, per_minute = point.per_device_train_batch_size, 60 * point.steps / point.seconds
        predicted = left_out["predicted_tokens_per_s"]
        cells = (
            cards()[point.card].name,
            point.model,
            f"{micro_batch} × {point.rows_per_step // micro_batch}",
            f"{per_minute:.1f}",
            f"{point.tokens_per_s:,.0f}",
            f"{rows / point.rows_per_step / per_minute / 60:.1f} h",
            f"{predicted:,} ({predicted / point.tokens_per_s - 1:+.0%})",
            point.source,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def plans() -> list[str]:
    """One epoch of FineTome on each card, as `lab.py plan` says, and what it costs where it can be rented."""
    lines = [f"| card | {' | '.join(RECIPES)} |", "| --- | --- | --- |"]
    columns = [planned(recipe.load_preset(name)) for name in RECIPES]
    for card in cards().values():
        lines.append(f"| {card.name} | " + " | ".join(column[card.name] for column in columns) + " |")
    return lines


def planned(preset: Recipe) -> dict[str, str]:
    """For each card's name the hours that a recipe takes there."""
    rows = round(finetome()["rows"] * (1 - preset.data.heldout_share))
    counts = assumed_counts(rows, preset.model.max_seq_length)
    found, chosen = {}, list(cards().values())
    for card, plan in zip(chosen, plan_on_cards(preset, chosen, counts), strict=True):
        low, high = (duration(seconds) for seconds in plan.seconds_band)
        found[card.name] = f"{duration(plan.predicted['seconds'])} ({low} to {high})"
    for offer in plan.cloud:
        least = "at least " if offer["at_best"] else ""
        found[offer["card"]] = f"{least}{duration(offer['seconds'])}, ${offer['usd']:.2f}"
    return found


def improvements() -> list[str]:
    """Every setting of the sweeps beside the first of its sweep."""
    lines = ["| sweep | setting | held-out loss | difference, 95 % interval | verdict | training |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for path in sorted(RESULTS.glob("sweep_*.json"), reverse=True):
        found = json.loads(path.read_text(encoding="utf-8"))["details"]
        for name, each in found["settings"].items():
            cells = (path.stem.removeprefix("sweep_"), changes_of(name, each), *judged(each, found["unit"]))
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def changes_of(name: str, setting: dict) -> str:
    """A setting's name with what it changes."""
    changed = ", ".join(f"`{key}={json.dumps(value)}`" for key, value in setting["changes"].items())
    return f"{name}: {changed}" if changed else name


def judged(setting: dict, unit: str) -> tuple[str, str, str, str]:
    """A setting's loss, its difference, its verdict and its seconds; what did not finish is said."""
    if setting["unfinished"]:
        return "-", "-", "; ".join(f"seed {seed} {said}" for seed, said in setting["unfinished"].items()), "-"
    loss, seconds = f"{setting['mean_loss']:.3f} {unit}", f"{setting['seconds']:.0f} s"
    if "interval" not in setting:
        return loss, "", "compared with", seconds
    low, high = setting["interval"]
    return loss, f"{setting['difference']:+.3f} ({low:+.3f} to {high:+.3f})", setting["verdict"], seconds


if __name__ == "__main__":
    main()

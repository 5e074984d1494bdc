"""Say what a run will take, here or on a card you do not have: steps, time, memory, disk, cost."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from typing import Any

from finelab import machine, recipe
from finelab.errors import LabError
from finelab.recipe import Recipe
from finelab.run import Run, default_recipe, folder_of, named_run

Rows = list[tuple[str, str]]
Shown = tuple[str, Rows, Any]  # a title, the table's rows, and what --json prints


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lab.py plan`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--recipe", metavar="NAME", help=f"one of: {', '.join(recipe.preset_names())}")
    which.add_argument("--run", metavar="NAME", help="a run: its recipe, and the lengths of its rows")
    parser.add_argument("--gpu", metavar="CARD", help="a card, or `list`; this machine when left out")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="so many of that card, up to 64")
    parser.add_argument(
        "--shard",
        action="store_true",
        help="spread the model over the cards (FSDP); else each has it all (DDP)",
    )
    parser.add_argument(
        "--set",
        dest="assignments",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change the recipe for this plan, for example lora.r=64 (may be repeated)",
    )
    parser.add_argument(
        "--calibration", action="store_true", help="how well the measured cards predict each other"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def main(args: argparse.Namespace) -> int:
    """Print the plan, the cards, or the calibration, as a table or as JSON."""
    if args.calibration:
        title, rows, value = calibration()
    elif args.gpu == "list":
        title, rows, value = card_list()
    else:
        title, rows, value = plan(args)
    if args.json:
        print(json.dumps(value, indent=2, default=str))
    else:
        show(title, rows)
    return 0


def show(title: str, rows: Rows) -> None:
    """Print labels and texts as a table as wide as the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.ASCII2, show_header=False, title=title, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(label, Text(text))
    Console().print(table)


def plan(args: argparse.Namespace) -> Shown:
    """The plan of the recipe or run that the options name."""
    from finelab.train.cards import card_called
    from finelab.train.cluster import cluster_of, plan_on_cluster
    from finelab.train.plan import plan_here, plan_on_card

    card = card_called(args.gpu) if args.gpu else None
    several = args.gpus != 1 or args.shard
    if several and not card:
        raise LabError("--gpus and --shard need --gpu CARD: `--gpu list` shows the cards.")
    run = named_run(args.run) if args.run else None
    chosen = run.recipe if run else recipe.load_preset(args.recipe or default_recipe())
    chosen = recipe.override(chosen, args.assignments)
    counts, said = row_counts(chosen, run)
    title = f"Recipe {chosen.name}"
    if card and several:
        plan = plan_on_cluster(chosen, cluster_of(card, args.gpus, args.shard), counts, [said])
        return title, plan.rows(), dataclasses.asdict(plan)
    if card:
        found, where = plan_on_card(chosen, card, counts, [said]), card.name
    else:
        profile = machine.profile(chosen)
        found, where = plan_here(chosen, profile, counts, [said]), profile.hardware.name
    return f"{title} on {where}", found.rows(datetime.datetime.now()), dataclasses.asdict(found)


def row_counts(chosen: Recipe, run: Run | None) -> tuple[tuple[list[int], list[int]], str]:
    """Length and trained tokens of each row, and where they are from: a run's rows, or an assumption.

    Without `run` it is the run called as the recipe, if there is one. Rows that were prepared with another
    [data] section do not count. LabError when nothing is known.
    """
    from finelab.train.batches import token_counts
    from finelab.train.cards import finetome
    from finelab.train.workload import assumed_counts

    longest = chosen.model.max_seq_length
    if run is None and (folder_of(chosen.name) / "recipe.toml").exists():
        run = named_run(chosen.name)
    if run and run.train_data.exists() and run.recipe.data == chosen.data:
        from finelab.data import load_split

        counted = zip(*token_counts(load_split(run, "train")), strict=True)
        # --set may cut the rows shorter than they were prepared; the answers are then cut in proportion
        cut = [(min(row, longest), trained * min(row, longest) // row) for row, trained in counted]
        return ([row for row, _ in cut], [trained for _, trained in cut]), f"rows: those of run {run.name}"
    known = finetome()
    there = known["rows"] if known["source"] in chosen.data.sources[0] else 0
    rows = min(filter(None, (chosen.data.limit, there)), default=0)
    if not rows:
        raise LabError(
            f"the token lengths of {', '.join(chosen.data.sources)} are not known before notebook 01_data "
            f"has run; run it, or plan for N rows as long as FineTome's with --set data.limit=N."
        )
    rows = round(rows * (1 - chosen.data.heldout_share - chosen.data.validation_share))
    return assumed_counts(rows, longest), f"rows: {rows:,}, as long as FineTome's are assumed to be"


def card_list() -> Shown:
    """Every card: its memory, its peak, its list price, and the models whose speed was measured on it."""
    from finelab.train.cards import cards, points, prices

    rows = []
    for card in cards().values():
        price = f", ${card.usd_per_hour:.2f}/h" if card.usd_per_hour else ""
        measured = [point.model for point in points() if point.card == card.key]
        known = f"; measured: {', '.join(measured)}" if measured else ""
        text = f"{card.name}, {card.memory_gib:g} GiB, {card.peak_fp16_tflops:g} TFLOP/s{price}{known}"
        rows.append((card.key, text))
    listed = prices()
    rows.append(("prices", f"{listed.provider}, {listed.date}: {listed.note}"))
    return "Cards for --gpu", rows, [dataclasses.asdict(card) for card in cards().values()]


def calibration() -> Shown:
    """Each measured speed predicted from the others, as `benchmarks/results/plan_calibration.json` has it."""
    from finelab.train import cluster
    from finelab.train.cards import leave_one_out

    points, clusters = leave_one_out(), cluster.leave_one_out()
    rows = [
        (
            f"{point['model']}, {point['card']}",
            f"{point['error']:+.1%}: {point['measured_tokens_per_s']:,} tokens/s instead of "
            f"{point['predicted_tokens_per_s']:,} from {point['from']}",
        )
        for point in points
    ]
    rows += [
        (
            f"{point['model']}, {point['gpus']}",
            f"{point['error']:+.1%}: {point['published_tokens_per_s']:,} tokens/s a GPU instead of "
            f"{point['predicted_tokens_per_s']:,} from {point['from']}",
        )
        for point in clusters
    ]
    value = {
        "benchmark": "plan_calibration",
        "ratios": {},
        "limit_share": None,
        "details": {"points": points, "clusters": clusters},
    }
    return "Each measured speed, predicted from the others", rows, value

"""The table at the end of a run, from its evidence."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from finelab.run import Run

NOTHING = "-"


def summary(run: Run) -> Group:
    """What was trained, what it changed, whether the merge is right, where things are."""
    table = Table(box=box.ASCII2, show_header=False, title=f"Run {run.name}", title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    sections = (trained(run), changed(run), merged(run), places(run))
    for section in filter(None, sections):
        for label, text in section:
            table.add_row(label, Text(text))
        table.add_section()
    return Group("", table, Text(next_commands(run)))


def trained(run: Run) -> list[tuple[str, str]]:
    """The model, the rows, the steps, the tokens and the time."""
    evidence = run.evidence()
    data, training = evidence.get("data", {}), evidence.get("training", {})
    adapter = evidence.get("adapter", {})
    tokens = training.get("tokens_trained", data.get("tokens_trained"))
    return [
        ("model", f"{run.recipe.publish.base_model}, recipe {run.recipe.name}"),
        (
            "trained parameters",
            f"{_count(adapter.get('trainable_parameters'))} of {_count(adapter.get('total_parameters'))}",
        ),
        (
            "data",
            f"{data.get('source', ', '.join(run.recipe.data.sources))}: "
            f"{_count(data.get('train_rows'))} rows to train, {_count(data.get('heldout_rows'))} held out",
        ),
        (
            "training",
            f"{_count(training.get('steps'))} steps, {_count(tokens)} trained tokens, "
            f"{_seconds(training.get('seconds'))}, "
            f"{_number(training.get('tokens_per_s'), '.0f')} tokens/s",
        ),
    ]


def changed(run: Run) -> list[tuple[str, str]]:
    """The held-out loss before and after, over rows and over whole families never trained on."""
    evaluation = run.evidence().get("evaluation", {})
    rows = [("held-out loss", comparison(evaluation))]
    if families := evaluation.get("families"):
        rows.append(("  unseen families", comparison(families)))
    return rows


def comparison(values: dict[str, Any]) -> str:
    """Base and tuned loss, their difference with its interval, and the verdict."""
    low, high = values.get("interval") or (None, None)
    return (
        f"{_number(values.get('heldout_nll_base'), '.3f')} -> "
        f"{_number(values.get('heldout_nll_tuned'), '.3f')} nats per token "
        f"({_number(values.get('difference'), '+.3f')}, 95 % interval "
        f"{_number(low, '+.3f')} to {_number(high, '+.3f')}): {values.get('verdict', NOTHING)}"
    )


def merged(run: Run) -> list[tuple[str, str]]:
    """What the merged weights are, their own loss, and one row per link of the identity chain."""
    evidence = run.evidence()
    links = evidence.get("identity", [])
    rows = [("merged weights", link["weights"]) for link in links[:1] if "weights" in link]
    if own := evidence.get("merged_evaluation"):
        rows.append(("merged file's held-out loss", comparison(own)))
    rows += [
        (
            f"{link.get('from', NOTHING)} -> {link.get('to', NOTHING)}",
            f"{'passed' if link.get('passed') else 'FAILED'}: mean KL "
            f"{_number(link.get('mean_kl'), '.1e')}, same next token "
            f"{_number(link.get('top1_agreement_share'), '.1%')}",
        )
        for link in links
    ]
    return rows or [("merge check", NOTHING)]


def places(run: Run) -> list[tuple[str, str]]:
    """Where the run's things are, those that exist."""
    names = ("adapter", "merged", "pushed", "notebooks", "figures", "evidence.json")
    there = [name for name in names if (run.folder / name).exists()]
    return [("folder", str(run.folder)), ("  in it", ", ".join(there) or NOTHING)]


def next_commands(run: Run) -> str:
    """What to do with the model now."""
    return (
        f"Talk to it:          python lab.py chat --run {run.name}\n"
        f"See it step by step: python lab.py notebooks --run {run.name}\n"
    )


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else NOTHING


def _count(value: Any) -> str:
    return _number(value, ",")


def _seconds(value: Any) -> str:
    if not isinstance(value, int | float):
        return NOTHING
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} h" if hours else f"{minutes}:{seconds:02} min"

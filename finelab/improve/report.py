"""What a sweep found, setting by setting: also what failed and what was stopped."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from finelab.errors import LabError
from finelab.evaluate.compare import together
from finelab.evaluate.runs import shared_rows
from finelab.files import write_json
from finelab.improve.definition import open_sweep
from finelab.improve.statistics import differences
from finelab.improve.trial import Outcome, outcome


def report(folder: Path) -> dict[str, Any]:
    """The results so far, also written to `report.json`; losses in `unit`, over rows that all held out whole.

    `heldout_rows` counts them by kind, "row" and "family": losses and verdicts are over both. A setting with
    a seed that failed, was stopped or has not run yet has no mean and no verdict.
    """
    sweep = open_sweep(folder)
    outcomes = [outcome(trial, folder) for trial in sweep.trials()]
    by_setting = {name: [each for each in outcomes if each.trial.setting == name] for name in sweep.settings}
    whole = {
        name: trials
        for name, trials in by_setting.items()
        if all(each.state == "finished" for each in trials)
    }
    finished = [each for each in outcomes if each.state == "finished"]
    rows, unit, sizes = _common(finished)
    scale = sizes.sum() * (math.log(2) if unit.startswith("bits") else 1)
    settings = {name: _described(trials, rows, scale) for name, trials in by_setting.items()}
    for name, trials in whole.items():
        settings[name]["untrained_loss"] = float(
            np.mean([sum(_nats(t, rows, "base")) / scale for t in trials])
        )
        settings[name]["mean_loss"] = float(np.mean(list(settings[name]["losses"].values())))
        settings[name]["trained_tokens"] = _mean(trials, "tokens_trained")
        settings[name]["seconds"] = _mean(trials, "seconds")
        settings[name]["peak_memory_bytes"] = _mean(trials, "peak_memory_bytes")
    first = next(iter(sweep.settings))
    if first in whole and len(whole) > 1:
        asked = [finished[0].losses[row]["question"] for row in rows]
        nats = np.array(
            [[together(np.array(_nats(each, rows)), asked) for each in trials] for trials in whole.values()]
        )
        found = differences(nats, together(sizes, asked) * (scale / sizes.sum()))
        for name, each in zip(list(whole)[1:], found, strict=True):
            settings[name] |= {
                "difference": each.difference,
                "interval": [each.low, each.high],
                "verdict": each.verdict,
            }
    value = {
        "recipe": sweep.recipe,
        "trained_tokens": sweep.trained_tokens,
        "seeds": list(sweep.seeds),
        "common": dict(sweep.common),
        "unit": unit,
        "heldout_rows": dict(Counter(finished[0].losses[row]["heldout"] for row in rows)),
        "settings": {name: {"changes": dict(sweep.settings[name])} | each for name, each in settings.items()},
    }
    write_json(folder / "report.json", value)
    return value


def table(found: dict[str, Any]) -> Any:
    """A report as a `pandas.DataFrame`, a row for each setting; a failed seed is said in `verdict`."""
    import pandas

    rows = [_row(name, each) for name, each in found["settings"].items()]
    return pandas.DataFrame(rows).set_index("setting")


def _row(name: str, each: dict[str, Any]) -> dict[str, str]:
    columns = ("untrained", "held-out loss", "difference", "95 % interval")
    cells = {"setting": name, **dict.fromkeys(columns, "-"), "verdict": ""}
    if "mean_loss" in each:
        cells["untrained"] = f"{each['untrained_loss']:.4f}"
        cells["held-out loss"] = f"{each['mean_loss']:.4f}"
        cells["trained tokens"] = f"{each['trained_tokens']:,.0f}"
        cells["seconds"] = f"{each['seconds']:.0f}"
        cells["peak memory"] = f"{each['peak_memory_bytes'] / 1e9:.2f} GB"
        cells["verdict"] = "compared with"
    if "difference" in each:
        low, high = each["interval"]
        cells |= {"difference": f"{each['difference']:+.4f}", "95 % interval": f"{low:+.4f} to {high:+.4f}"}
    said = [f"seed {seed} {text}" for seed, text in each["unfinished"].items()]
    cells["verdict"] = "; ".join(said) or each.get("verdict", cells["verdict"])
    return cells


def _common(finished: list[Outcome]) -> tuple[list[str], str, np.ndarray[Any, Any]]:
    """The rows that all finished trials held out whole, the unit, and each row's tokens, or bytes."""
    if not finished:
        return [], "nats per token", np.ones(0)
    rows = shared_rows([each.losses for each in finished])
    if not rows:
        raise LabError(
            "the sweep's trials have no held-out row in common that is cut alike; "
            "leave the held-out data and model.max_seq_length alone."
        )
    tokens = {tuple(each.losses[row]["tokens"] for row in rows) for each in finished}
    if len(tokens) == 1:
        return rows, "nats per token", np.array(tokens.pop(), float)
    return rows, "bits per byte", np.array([finished[0].losses[row]["bytes"] for row in rows], float)


def _nats(each: Outcome, rows: list[str], model: str = "tuned") -> list[float]:
    return [each.losses[row][model] for row in rows]


def _described(trials: list[Outcome], rows: list[str], scale: float) -> dict[str, Any]:
    done = [each for each in trials if each.state == "finished"]
    return {
        "losses": {str(each.trial.seed): float(sum(_nats(each, rows)) / scale) for each in done},
        "unfinished": {
            str(each.trial.seed): f"{each.state}: {each.reason}" if each.reason else each.state
            for each in trials
            if each.state != "finished"
        },
    }


def _mean(trials: list[Outcome], key: str) -> float:
    return float(np.mean([each.training[key] for each in trials]))

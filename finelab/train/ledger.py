"""Predicted against actual after a run, kept for each machine so that its next plan is nearer.

The ledger is `ledger.json` in the lab's cache folder: a list, the newest entry last.
"""

from __future__ import annotations

import json
import statistics
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from finelab.embedded.model import cache_folder
from finelab.errors import LabError
from finelab.files import rename, write_json, writing
from finelab.machine import Profile
from finelab.recipe import Recipe
from finelab.run import Run

KEYS = ("steps", "padded_tokens", "trained_tokens", "seconds", "tokens_per_s", "peak_memory_bytes")
KEPT = 200
SHORTEST_S = 30  # start-up is most of a shorter run: of some seconds they took 1.5 to 3 times as planned
USED = 5  # the newest runs whose median corrects the next plan


@dataclass(frozen=True)
class Correction:
    """What the newest runs on this machine say: factors on a plan, and seconds per padded token."""

    runs: int = 0
    seconds: float = 1.0
    peak_memory_bytes: float = 1.0
    seconds_per_token: float | None = None

    @property
    def source(self) -> str:
        """Which runs these are."""
        return f"{self.runs} earlier run{'s' * (self.runs > 1)} on this machine"

    def lines(self) -> list[str]:
        """What the plan says of it: nothing where there were no runs."""
        factors = f"x{self.seconds:.2f} (time) and x{self.peak_memory_bytes:.2f} (memory)"
        return [f"corrected by {factors} from {self.source}"] if self.runs else []


NONE = Correction()


def ledger_path() -> Path:
    """Where the ledger is."""
    return cache_folder() / "ledger.json"


def machine_key(recipe: Recipe, profile: Profile) -> str:
    """What runs share that correct each other: the device, a CPU's threads, the model, dtype and adapter."""
    import torch

    lora = recipe.lora
    threads = f" x {torch.get_num_threads()}" if profile.device == "cpu" else ""
    by_hand = ", by hand" * profile.fast_cpu_step + " in two processes" * (profile.processes > 1)
    adapter = f"r {lora.r} on {len(lora.target_modules)} modules" + " with DoRA" * lora.use_dora
    dtype = str(profile.dtype) + " on 4 bit" * profile.load_in_4bit
    return f"{profile.hardware.name}{threads}, {recipe.model.model_name}, {dtype}{by_hand}, {adapter}"


def entries() -> list[dict[str, Any]]:
    """Every entry; a ledger that cannot be read is set aside under another name, and a line says so."""
    path = ledger_path()
    if not path.exists():
        return []
    try:
        return [_checked(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, KeyError) as error:
        aside = path.with_name(f"ledger-damaged-{uuid.uuid4().hex[:6]}.json")
        rename(path, aside)
        print(f"The ledger of earlier runs cannot be read ({error!r}); set aside as {aside.name}.")
        return []


def _checked(entry: Any) -> dict[str, Any]:
    for name in ("seconds", "peak_memory_bytes", "seconds_per_token"):
        if not entry[name] > 0:
            raise ValueError(f"{name} is {entry[name]!r}")
    return {**entry, "key": str(entry["key"])}


def correction(key: str) -> Correction:
    """The median of the last USED runs with this key."""
    last = [entry for entry in entries() if entry["key"] == key][-USED:]
    if not last:
        return NONE
    names = ("seconds", "peak_memory_bytes", "seconds_per_token")
    return Correction(len(last), *(statistics.median(entry[name] for entry in last) for name in names))


def settle(run: Run, profile: Profile, trainer: Any) -> str:
    """Hold the plan of a finished run against what it took: the table of predicted, actual and error.

    Recorded in the evidence; an error is actual / predicted - 1. When this process did the training, all of
    it on one machine, to its last step and for SHORTEST_S at least, the run also enters the ledger, once.
    LabError when the run was not planned.
    """
    plan = run.evidence().get("plan", {})
    if not plan:
        raise LabError(f"run {run.name!r} was not planned; run the cell that plans it before it trains.")
    trained_here, anew = trainer.optimizer is not None, not plan["actual"]
    if trained_here or anew:
        actual, predicted = _actual(run, trainer), plan["predicted"]
        error = {name: round(actual[name] / predicted[name] - 1, 4) for name in KEYS}
        run.record("plan", {"actual": actual, "error": error})
        plan |= {"actual": actual, "error": error}
    one_machine = len(set(run.evidence()["training"].get("machines", []))) <= 1
    whole = one_machine and plan["actual"]["steps"] == plan["predicted"]["steps"]
    if trained_here and anew and whole and plan["actual"]["seconds"] >= SHORTEST_S:
        _remember(machine_key(run.recipe, profile), plan)
    return table(plan)


def _actual(run: Run, trainer: Any) -> dict[str, float]:
    training = run.evidence()["training"]
    # transformers counts 6 FLOPs for each position and parameter, so the positions can be had back exactly
    per_token = 6 * trainer.model.num_parameters(exclude_embeddings=True)
    return {
        "steps": training["steps"],
        "padded_tokens": round(trainer.state.total_flos / per_token),
        "trained_tokens": training["tokens_trained"],
        "seconds": training["seconds"],
        "tokens_per_s": training["tokens_per_s"],
        "peak_memory_bytes": training["peak_memory_bytes"],
    }


def _remember(key: str, plan: dict[str, Any]) -> None:
    """Add a run to the ledger, as factors on what would have been predicted without a correction."""
    actual, predicted, applied = plan["actual"], plan["predicted"], plan["correction"]
    entry = {
        "key": key,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds_per_token": actual["seconds"] / actual["padded_tokens"],
    }
    for name in ("seconds", "peak_memory_bytes"):
        entry[name] = actual[name] / predicted[name] * applied[name]
    path = ledger_path()
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):  # trials of a sweep may end at the same time
                write_json(path, [*entries(), entry][-KEPT:])
    except LabError as error:
        print(f"The ledger is not kept, and the next plan learns nothing from this run: {error}")


def table(plan: dict[str, Any]) -> str:
    """Predicted, actual and error, a line for each key."""
    lines = [f"{'':18}{'predicted':>16}{'actual':>16}{'error':>9}"]
    for name in KEYS:
        predicted, actual = plan["predicted"][name], plan["actual"][name]
        digits = 1 if name in ("seconds", "tokens_per_s") else 0
        lines.append(
            f"{name:18}{predicted:>16,.{digits}f}{actual:>16,.{digits}f}{plan['error'][name]:>+9.1%}"
        )
    return "\n".join(lines)

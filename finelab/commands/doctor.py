"""Say what this machine is, what will be used on it and why, and what is wrong with it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import platform
import sys
from collections.abc import Sequence

from finelab import machine, recipe
from finelab.doctor import Facts, Finding, diagnose, gather
from finelab.doctor.facts import gb, gib
from finelab.recipe import Recipe
from finelab.run import default_recipe, existing_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lab.py doctor`."""
    presets = ", ".join(recipe.preset_names())
    parser.add_argument(
        "--recipe", metavar="NAME", help=f"look whether this machine is fit for it, one of: {presets}"
    )
    parser.add_argument("--json", action="store_true", help="print the facts and the findings as JSON")


def main(args: argparse.Namespace) -> int:
    """Print the report; 1 when a finding stops the lab."""
    chosen = chosen_recipe(args.recipe)
    with contextlib.redirect_stdout(sys.stderr):  # what a library says on its import is no JSON
        facts = gather(chosen)
    findings = diagnose(facts)
    if args.json:
        found = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"facts": dataclasses.asdict(facts), "findings": found}, indent=2))
    else:
        print(machine_text(facts, chosen, args.recipe is None))
        print(findings_text(findings))
    return int(any(finding.severity == "stop" for finding in findings))


def chosen_recipe(name: str | None) -> Recipe:
    """The recipe that is named, else this machine's; the embedded one where torch cannot be asked."""
    if name:
        return recipe.load_preset(name)
    try:
        return recipe.load_preset(default_recipe())
    except (ImportError, OSError):
        return recipe.load_preset("smollm2-135m")


def machine_text(facts: Facts, chosen: Recipe, by_default: bool) -> str:
    """What the machine is, a label and a text on each line, and what it dictates."""
    rows = {
        "system": f"{platform.platform()}, Python {platform.python_version()} in {sys.prefix}",
        "lock": f"environment/{facts.lock}.txt" if facts.lock else "not installed by lab.py",
        "packages": ", ".join(f"{key} {value}" for key, value in machine.versions().items()),
        "out of step": _out_of_step(facts),
        "card": _card(facts),
        "memory": f"{gib(facts.memory_available_bytes)} of {gib(facts.memory_bytes)} free",
        "disk": f"{gb(facts.runs_free_bytes)} free for {facts.runs}",
        "Hub token": f"found in {facts.tokens[0]}" if facts.tokens else "none",
        "recipes": ", ".join(recipe.preset_names()),
        "runs": ", ".join(existing_runs()) or "none yet",
    }
    lines = [f"{label:12}  {text}" for label, text in rows.items()]
    if facts.torch and not facts.override_problem:
        without = "Without --recipe this machine uses" if by_default else "This machine would use"
        lines += ["", f"{without} {chosen.name}, with:", _settings(chosen)]
    return "\n".join(lines)


def findings_text(findings: Sequence[Finding]) -> str:
    """Each finding, what follows from it, and what mends it on a line of its own."""
    if not findings:
        return "\nNothing found that is wrong."
    told = [f"\n{each.severity}: {each.found}\n    {each.consequence}\n    {each.mend}" for each in findings]
    return "\n".join(told)


def _settings(chosen: Recipe) -> str:
    """What the machine dictates, or why that is not known: the findings come all the same."""
    try:
        return machine.profile(chosen).describe()
    except Exception as error:  # of a card or a torch in any state
        return f"what cannot be told, because torch failed: {error!r}"


def _out_of_step(facts: Facts) -> str:
    if facts.lock is None:
        return "unknown"
    return "; ".join(facts.out_of_step) or "nothing, all packages are as locked"


def _card(facts: Facts) -> str:
    if not facts.nvidia:
        return "no NVIDIA card"
    names = ", ".join(f"{card.name} with {gib(card.memory_bytes)}" for card in facts.cards)
    driver = f"driver {facts.driver}" if facts.driver else "a driver that does not answer"
    return f"{names or 'an NVIDIA card'}, {driver}" + ("" if facts.torch_sees_card else ", not seen by torch")

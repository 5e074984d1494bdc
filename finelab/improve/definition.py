"""What a sweep is, kept in `sweep.toml`: settings over a recipe, seeds, a budget of trained tokens."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finelab import recipe
from finelab.errors import LabError
from finelab.files import write_text

FILE = "sweep.toml"
Settings = Mapping[str, Mapping[str, Any]]
# The sweep sets these itself, the same way for every setting, or what it sets overrules them.
RESERVED = {
    *("training.seed", "lora.random_state", "training.tune"),
    *("training.max_steps", "training.num_train_epochs", "training.early_stopping_patience"),
    *("training.eval_steps", "training.eval_rows", "training.save_steps"),
}


@dataclass(frozen=True)
class Trial:
    """One setting with one seed: a normal run called `name`, made from a recipe and `--set` texts."""

    setting: str
    seed: int
    recipe: str
    assignments: tuple[str, ...]
    trained_tokens: int

    @property
    def name(self) -> str:
        """The run's name inside the sweep's folder."""
        return f"{self.setting}-s{self.seed}"

    @property
    def data_assignments(self) -> tuple[str, ...]:
        """The changes that decide the rows: of the data, and of the model with its tokenizer."""
        return tuple(text for text in self.assignments if text.startswith(("data.", "model.")))


@dataclass(frozen=True)
class Sweep:
    """Settings of a recipe, each with every seed; the first one is what the others are compared with.

    `settings` maps a name to changed fields, as `{"lora.r": 64}`; `common` are changes to all of them.
    """

    recipe: str
    trained_tokens: int
    seeds: tuple[int, ...]
    settings: Settings
    common: Mapping[str, Any] = field(default_factory=dict)

    def trials(self) -> list[Trial]:
        """Every setting with every seed, seed by seed, so that what is done can be compared early."""
        return [
            Trial(setting, seed, self.recipe, self.assignments(setting), self.trained_tokens)
            for seed in self.seeds
            for setting in self.settings
        ]

    def assignments(self, setting: str) -> tuple[str, ...]:
        """A setting's changes as `--set` takes them."""
        changes = {**self.common, **self.settings[setting]}
        return tuple(f"{key}={json.dumps(value)}" for key, value in changes.items())


def grid(fields: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Every combination of some fields' values, as settings; the first values make the first setting."""
    found = {}
    for values in itertools.product(*fields.values()):
        changes = dict(zip(fields, values, strict=True))
        name = "_".join(f"{key.partition('.')[2]}-{value}" for key, value in changes.items())
        found[re.sub(r"[^A-Za-z0-9._-]", "-", name)] = changes
    return found


def create_sweep(folder: Path, sweep: Sweep) -> Sweep:
    """Freeze a sweep in `folder`; LabError for a wrong one, or when the folder holds another one."""
    _check(sweep)
    path, text = folder / FILE, _dumps(sweep)
    if path.exists():
        if changed := _differences(open_sweep(folder), sweep):
            raise LabError(
                f"sweep {folder.name!r} was made with other values ({'; '.join(changed)}); "
                "give this one another name, or take the old values to go on."
            )
    else:
        write_text(path, text)
    return sweep


def open_sweep(folder: Path) -> Sweep:
    """The sweep frozen in `folder`; LabError names what is missing or wrong in its file."""
    path = folder / FILE
    if not path.exists():
        raise LabError(f"{path} is not there: make the sweep first, in notebook 07_improve.")
    sweep: Sweep = recipe.from_table(Sweep, recipe.read_tables(path), str(path))
    _check(sweep)
    return sweep


def _check(sweep: Sweep) -> None:
    rules = {
        f"{len(sweep.settings)} setting; at least 2 are compared": len(sweep.settings) >= 2,
        f"seeds = {list(sweep.seeds)}; at least 2 different ones show the noise, 3 or more are better": (
            len(set(sweep.seeds)) == len(sweep.seeds) >= 2
        ),
        f"trained_tokens = {sweep.trained_tokens}; expected at least 1": sweep.trained_tokens >= 1,
    }
    for rule, holds in rules.items():
        if not holds:
            raise LabError(f"sweep: {rule}.")
    preset = recipe.load_preset(sweep.recipe)
    for name, changes in sweep.settings.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise LabError(f"sweep: setting {name!r}: use letters, digits, dots, dashes, underscores.")
        if taken := sorted(RESERVED & {*changes, *sweep.common}):
            raise LabError(f"sweep: setting {name!r} sets {taken[0]}, which the sweep itself decides.")
        try:
            recipe.override(preset, list(sweep.assignments(name)))
        except LabError as error:
            raise LabError(f"sweep: setting {name!r}: {error}") from error


def _dumps(sweep: Sweep) -> str:
    lines = [
        f"recipe = {json.dumps(sweep.recipe)}",
        f"trained_tokens = {sweep.trained_tokens}",
        f"seeds = {list(sweep.seeds)}",
    ]
    tables = {"common": sweep.common} | {f'settings."{name}"': each for name, each in sweep.settings.items()}
    for name, changes in tables.items():
        lines += ["", f"[{name}]"]
        lines += [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in changes.items()]
    return "\n".join(lines) + "\n"


def _differences(old: Sweep, new: Sweep) -> list[str]:
    found = [
        f"{name}: {getattr(old, name)!r} -> {getattr(new, name)!r}"
        for name in ("recipe", "trained_tokens", "seeds")
        if getattr(old, name) != getattr(new, name)
    ]
    before = {"common": old.common, **old.settings}
    after = {"common": new.common, **new.settings}
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            found.append(f"{name}: {before.get(name)} -> {after.get(name)}")
    if not found and list(old.settings) != list(new.settings):
        found.append(f"order: {list(old.settings)} -> {list(new.settings)}")
    return found

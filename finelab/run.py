"""A run's folder and its evidence file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelab import machine, recipe
from finelab.errors import LabError
from finelab.files import write_json, write_text, writing
from finelab.machine import Profile
from finelab.recipe import Recipe

RUN_VARIABLE = "FINELAB_RUN"
RECIPE_VARIABLE = "FINELAB_RECIPE"
RUNS_VARIABLE = "FINELAB_RUNS"  # another folder than runs/
ACCEPT_VARIABLE = "FINELAB_ACCEPT_CHANGES"  # 1: a training goes on although something changed
STDIN_VARIABLE = "FINELAB_END_WITH_STDIN"  # 1: `serve` ends when its standard input does
WORK_LOCK = ".lock"  # in a run's folder: lab.py holds it
TRAINING_LOCK = ".training.lock"  # whoever trains holds it, lab.py's kernel too
NEEDED_BYTES = 2_000_000_000  # of the disk, or `lab.py run` does not begin
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
RUNS = Path(os.environ.get(RUNS_VARIABLE) or Path(__file__).parent.parent / "runs").absolute()


@dataclass(frozen=True)
class Run:
    """One run: `runs/<name>/` with its recipe, the stages' outputs and `evidence.json`."""

    folder: Path
    recipe: Recipe

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def train_data(self) -> Path:
        """The tokenised training rows, a `datasets` folder."""
        return self.folder / "data" / "train"

    @property
    def heldout_data(self) -> Path:
        """The tokenised held-out rows, a `datasets` folder."""
        return self.folder / "data" / "heldout"

    @property
    def checkpoints(self) -> Path:
        """The trainer's output folder."""
        return self.folder / "checkpoints"

    @property
    def training_has_begun(self) -> bool:
        """Whether there is a checkpoint, also one that is not whole."""
        return any(self.checkpoints.glob("checkpoint-*"))

    @property
    def adapter(self) -> Path:
        """The trained adapter as PEFT saves it."""
        return self.folder / "adapter"

    @property
    def merged(self) -> Path:
        """The merged 16-bit model."""
        return self.folder / "merged"

    @property
    def notebooks(self) -> Path:
        """Executed copies of the notebooks; one that is here was executed to its end."""
        return self.folder / "notebooks"

    def figure(self, name: str) -> Path:
        """Where the figure called `name` is kept."""
        return self.folder / "figures" / f"{name}.png"

    def evidence(self) -> dict[str, Any]:
        """Everything recorded so far; LabError when the file was damaged by hand."""
        return read_evidence(self.folder)

    def record(self, stage: str, values: Any) -> None:
        """Keep a stage's numbers: a mapping is laid over what the stage has, a list replaces it."""
        from filelock import FileLock  # here, so that help needs no packages

        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".evidence.lock"):  # two notebooks of a run may record at once
                evidence = self.evidence()
                if isinstance(values, dict):
                    values = evidence.get(stage, {}) | values
                write_json(self.folder / "evidence.json", evidence | {stage: values})

    def require(self, path: Path, made_by: str) -> Path:
        """`path`, which the notebook `made_by` makes; LabError when it is not there yet."""
        if not path.exists():
            raise LabError(f"{path} is not there yet: run notebook {made_by} of this run first.")
        return path

    def profile(self) -> Profile:
        """What this machine dictates for this run, also kept in the evidence."""
        found = machine.profile(self.recipe)
        self.record("machine", machine.evidence(found))
        return found


def read_evidence(folder: Path) -> dict[str, Any]:
    """Everything recorded so far of the run in `folder`; LabError when the file was damaged by hand."""
    path = folder / "evidence.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, got {found!r}")
    except ValueError as error:
        raise LabError(
            f"{path}: not valid JSON ({error}); restore it, or delete it and do the stages again, which "
            f"keep their numbers in it: python lab.py run --run {folder.name} --from data"
        ) from error
    return found


@contextmanager
def alone(run: Run, lock: str) -> Iterator[None]:
    """Hold one of the run's locks, so that no other process does the same to it; LabError when one does."""
    from filelock import FileLock, Timeout  # here, so that help needs no packages

    try:
        with writing(run.folder):
            held = FileLock(run.folder / lock).acquire(timeout=0)
    except Timeout as error:
        raise LabError(
            f"another process is at work on run {run.name!r} (it holds {run.folder / lock}); wait for it, "
            "stop it, or use another --run NAME."
        ) from error
    with held:
        yield


def accepts_changes() -> bool:
    """Whether the user lets a training go on although something that decides the weights changed."""
    return os.environ.get(ACCEPT_VARIABLE) == "1"


def default_recipe() -> str:
    """The recipe used when none is named: Llama 3.2 1B on a CUDA card, the embedded model elsewhere."""
    return "llama-3.2-1b" if machine.has_cuda() else "smollm2-135m"


def open_run(folder: Path | str | None = None) -> Run:
    """Open a run, made from its recipe at first use.

    Which one: `folder`, else the environment variable FINELAB_RUN, else `runs/<recipe>` with the
    recipe named by FINELAB_RECIPE, else by the machine. A bare name is one in `runs/`.
    """
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # its download counter can hang offline
    named = Path(folder or os.environ.get(RUN_VARIABLE) or _named_recipe())
    target = RUNS / named if len(named.parts) == 1 else named
    if (target / "recipe.toml").exists():
        return Run(target, recipe.read(target / "recipe.toml"))
    return create_run(target, recipe.load_preset(_named_recipe()))


def _named_recipe() -> str:
    return os.environ.get(RECIPE_VARIABLE) or default_recipe()  # asking the machine takes seconds


def create_run(folder: Path, preset: Recipe) -> Run:
    """Make a run's folder and freeze its recipe; LabError when it was frozen with one of other weights.

    What leaves the weights as they are (`session_hours`, `publish`, ...) may change in a run that is there,
    and all of it with FINELAB_ACCEPT_CHANGES=1.
    """
    path = folder / "recipe.toml"
    changed = recipe.differences(recipe.read(path), preset) if path.exists() else []
    deciding = [each for each in changed if recipe.decides_weights(each, preset)]
    if deciding and not accepts_changes():
        raise LabError(
            f"run {folder.name!r} was made with another recipe ({'; '.join(deciding)}); "
            "give this one another name with --run NAME, leave the options out to go on, or accept them with "
            "--accept-changes."
        )
    if changed:
        print(f"{path}: {'; '.join(changed)}. Stages that are done stay so: --from does them again.")
    if changed or not path.exists():
        write_text(path, recipe.dumps(preset))
    return Run(folder, preset)


def folder_of(name: str) -> Path:
    """The folder of the run called `name`; LabError when that is a path rather than a name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise LabError(
            f"--run {name}: a run has a name, not a path: letters, digits, dots, dashes and "
            "underscores, and it starts with a letter or a digit."
        )
    return RUNS / name


def named_run(name: str) -> Run:
    """An existing run; LabError lists those that there are."""
    folder = folder_of(name)
    if not (folder / "recipe.toml").exists():
        known = ", ".join(existing_runs())
        raise LabError(
            f"there is no run {name!r} (there are: {known or 'none'}); "
            "`python lab.py run --run NAME` makes one."
        )
    return open_run(folder)


def existing_runs() -> list[str]:
    """The names of the runs that there are."""
    return sorted(path.parent.name for path in RUNS.glob("*/recipe.toml"))

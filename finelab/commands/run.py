"""Fine-tune, merge, check and talk: notebooks 01 to 06 in order; done stages are kept."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from finelab import recipe
from finelab.errors import LabError
from finelab.files import clear_leftovers, rename, writing
from finelab.recipe import Recipe
from finelab.resources import require_free_space
from finelab.run import (
    ACCEPT_VARIABLE,
    NEEDED_BYTES,
    NOTEBOOKS,
    TRAINING_LOCK,
    WORK_LOCK,
    Run,
    alone,
    create_run,
    default_recipe,
    folder_of,
    open_run,
)

if TYPE_CHECKING:
    from rich.console import Console

# What each stage leaves in the run's folder, besides figures and evidence, which it overwrites.
OUTPUTS = {
    "01_data": ("data",),
    "02_adapter": (),
    "03_train": ("checkpoints", "adapter", "heldout_losses.json"),
    "04_publish": ("merged", "served-check.json", "gguf", "pushed", "adapter_for_hub"),
    "05_chat": (),
    "06_evaluate": ("answers.json",),
}
WORDS = ", ".join(stage.partition("_")[2] for stage in OUTPUTS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lab.py run`."""
    presets = ", ".join(recipe.preset_names())
    parser.add_argument("--recipe", metavar="NAME", help=f"one of: {presets}")
    parser.add_argument("--run", metavar="NAME", help="the run's name; the recipe's when left out")
    parser.add_argument("--data", metavar="FILE", help="your conversations: json, jsonl, csv or parquet")
    parser.add_argument(
        "--from",
        dest="from_stage",
        metavar="STAGE",
        help=f"do this stage and the later ones again: {WORDS}",
    )
    parser.add_argument(
        "--stages",
        metavar="STAGE,STAGE",
        help="only these stages, for example data,train; all when left out",
    )
    parser.add_argument(
        "--set",
        dest="assignments",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change the recipe, for example data.limit=200 (may be repeated)",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on training although data, recipe (not its batch, packing or length) or versions changed "
        "since the checkpoint",
    )


def main(args: argparse.Namespace) -> int:
    """Run what is left of a run, and end with the table of what came out."""
    first = stage_called(args.from_stage) if args.from_stage else None
    stages = chosen_stages(args.stages)
    chosen = chosen_recipe(args)
    if "04_publish" in stages:  # said now, and not after hours of training
        recipe.require_publishable(chosen)
    if args.accept_changes:
        os.environ[ACCEPT_VARIABLE] = "1"
    with alone(Run(writable_folder(args), chosen), WORK_LOCK):
        run = prepare(args)  # no earlier: whoever is at work on the run goes by its recipe
        clear_leftovers(run.folder)
        if first:
            with alone(run, TRAINING_LOCK):  # not from under a training in Jupyter
                set_aside(run, stages_from(first), outputs=True)
        return do(run, stages)


def do(run: Run, stages: list[str]) -> int:
    """Execute the stages that are left and show the table; returns the exit code."""
    from rich.console import Console  # here, so that a wrong option is told at once

    from finelab.commands.execute import NotebookError
    from finelab.commands.summary import summary

    console = Console()
    try:
        run_stages(run, NOTEBOOKS, console, stages)
    except NotebookError as error:
        print(f"finelab: {error}", file=sys.stderr)
        return 1
    console.print(summary(run))
    return 0


def prepare(args: argparse.Namespace) -> Run:
    """The run that the options name, made when it is new; LabError before anything is written."""
    chosen = chosen_recipe(args)
    folder = writable_folder(args)
    changed = args.recipe or args.data or args.assignments
    if changed or not (folder / "recipe.toml").exists():
        create_run(folder, chosen)
    return open_run(folder)


def writable_folder(args: argparse.Namespace) -> Path:
    """The folder of the run that the options name, made when it is new; LabError where it has no room."""
    folder = folder_of(args.run or args.recipe or default_recipe())
    require_free_space(folder, NEEDED_BYTES, "a run")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # can anything be written here?
            return folder


def chosen_recipe(args: argparse.Namespace) -> Recipe:
    """The run's recipe if there is one, else the preset, with the user's data and changes laid over it."""
    name = args.recipe or default_recipe()
    frozen = folder_of(args.run or name) / "recipe.toml"
    preset = recipe.read(frozen) if frozen.exists() else recipe.load_preset(name)
    if args.recipe and args.recipe != preset.name:
        preset = recipe.load_preset(args.recipe)
    assignments = args.assignments
    if args.data:
        path = Path(args.data).expanduser().absolute()
        if not path.is_file():
            raise LabError(f"--data {args.data}: there is no such file ({path}).")
        assignments = [f"data.sources={json.dumps([str(path)], ensure_ascii=False)}", *assignments]
    chosen = recipe.override(preset, assignments)
    if chosen.data.sources == preset.data.sources:
        return chosen
    # a file that is named from here: the notebooks look from their own folder
    paths = [str(Path(each).absolute()) if Path(each).is_file() else each for each in chosen.data.sources]
    return replace(chosen, data=replace(chosen.data, sources=tuple(paths)))


def stage_called(text: str, option: str = "--from") -> str:
    """The stage that `train`, `03`, `03_train` or `03_train.ipynb` means; LabError for others."""
    name = text.removesuffix(".ipynb")
    for stage in OUTPUTS:
        number, _, word = stage.partition("_")
        if name in (stage, number, word):
            return stage
    raise LabError(f"{option} {text}: there is no such stage; there are: {WORDS}.")


def chosen_stages(text: str | None) -> list[str]:
    """The stages that `data,train` names, in their order; all when it is None."""
    if text is None:
        return list(OUTPUTS)
    named = {stage_called(word.strip(), "--stages") for word in text.split(",")}
    return [stage for stage in OUTPUTS if stage in named]


def stages_from(first: str) -> list[str]:
    """A stage and those after it."""
    stages = list(OUTPUTS)
    return stages[stages.index(first) :]


def set_aside(run: Run, stages: list[str], outputs: bool) -> None:
    """Move the stages' executed copies, and their outputs too, to `replaced/`: nothing is lost."""
    paths = [copy_of(run, stage) for stage in stages]
    if outputs:
        paths += [run.folder / name for stage in stages for name in OUTPUTS[stage]]
    present = [path for path in paths if path.exists()]
    if not present:
        return
    target = run.folder / "replaced" / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%fZ")
    with writing(target):
        for path in present:
            moved = target / path.relative_to(run.folder)
            moved.parent.mkdir(parents=True, exist_ok=True)
            rename(path, moved)


def run_stages(run: Run, notebooks: Path, console: Console, stages: Sequence[str] = tuple(OUTPUTS)) -> None:
    """Execute those of `stages` that this run has not been through yet; says which ones it has."""
    import nbformat

    from finelab.commands.execute import execute
    from finelab.commands.progress import Progress

    progress = Progress(console)
    for stage in stages:
        copy = copy_of(run, stage)
        if copy.exists():
            word = stage.partition("_")[2]
            console.print(f"{stage}: done before, kept; --from {word} does it again")
            continue
        set_aside(run, stages_from(stage), outputs=False)  # they rest on what is made anew
        notebook = notebooks / f"{stage}.ipynb"
        cells = nbformat.read(notebook, as_version=4).cells
        with progress.stage(stage, sum(cell.cell_type == "code" for cell in cells)):
            execute(notebook, run.folder, copy, progress)


def copy_of(run: Run, stage: str) -> Path:
    """Where the executed notebook of a stage is kept: it is there when the stage is done."""
    return run.notebooks / f"{stage}.ipynb"

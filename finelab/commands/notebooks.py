"""Open the notebooks in JupyterLab with the lab's Python; other arguments go to JupyterLab."""

from __future__ import annotations

import argparse
import os

from finelab.errors import LabError
from finelab.recipe import preset_names
from finelab.run import NOTEBOOKS, RECIPE_VARIABLE, RUN_VARIABLE, RUNS, RUNS_VARIABLE, folder_of, open_run

SAVING_S = 60  # which a kernel has to end and save its training's step; Jupyter's own is 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which run the notebooks open; everything else is JupyterLab's."""
    parser.usage = (
        "lab.py notebooks [--run NAME] [--recipe NAME] [JupyterLab arguments, for example --no-browser]"
    )
    parser.add_argument("--run", metavar="NAME", help="the run that the notebooks open, made if it is new")
    parser.add_argument("--recipe", choices=preset_names(), help="what a new run is made of")
    parser.set_defaults(rest=[])


def main(args: argparse.Namespace) -> int:
    """Serve the notebooks folder until JupyterLab is stopped; LabError where the lock has none."""
    try:
        from jupyterlab.labapp import LabApp  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise LabError(
            f"{error.name} is not installed here, as on Paperspace, whose own Jupyter takes its place: open "
            "notebooks/01_data.ipynb in Gradient's notebook view and choose the kernel finelab there."
        ) from error

    if args.recipe:
        os.environ[RECIPE_VARIABLE] = args.recipe
    if args.run:
        os.environ[RUN_VARIABLE] = str(folder_of(args.run))
    print(f"The run's recipe: {open_run().folder / 'recipe.toml'}")
    os.environ[RUNS_VARIABLE] = str(RUNS)  # a relative one would be another folder from there
    os.chdir(NOTEBOOKS)
    saving = f"--KernelManager.shutdown_wait_time={SAVING_S}"
    LabApp.launch_instance([f"--ServerApp.root_dir={NOTEBOOKS}", saving, *args.rest])
    return 0

"""Open the notebooks in JupyterLab with the lab's Python; arguments go to JupyterLab."""

from __future__ import annotations

import argparse
import os

from finelab.errors import LabError
from finelab.run import NOTEBOOKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything is JupyterLab's."""
    parser.usage = "lab.py notebooks [JupyterLab arguments, for example --no-browser --port 8889]"
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

    os.chdir(NOTEBOOKS)
    LabApp.launch_instance([f"--ServerApp.root_dir={NOTEBOOKS}", *args.rest])
    return 0

"""Open the notebooks in JupyterLab with the lab's Python; arguments go to JupyterLab."""

from __future__ import annotations

import argparse
import os

from finelab.run import NOTEBOOKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything is JupyterLab's."""
    parser.usage = "lab.py notebooks [JupyterLab arguments, for example --no-browser --port 8889]"
    parser.set_defaults(rest=[])


def main(args: argparse.Namespace) -> int:
    """Serve the notebooks folder until JupyterLab is stopped."""
    from jupyterlab.labapp import LabApp  # type: ignore[import-untyped]

    os.chdir(NOTEBOOKS)
    LabApp.launch_instance([f"--ServerApp.root_dir={NOTEBOOKS}", *args.rest])
    return 0

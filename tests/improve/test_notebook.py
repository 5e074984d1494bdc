"""Notebook 07 from its first cell to its last, over trials that have ended; test_sweep.py runs real ones."""

import io
import json

import nbformat
import pytest
from rich.console import Console

from finelab import improve
from finelab.commands.execute import execute
from finelab.commands.progress import Progress
from finelab.run import NOTEBOOKS
from tests.improve.test_sweep import finish

NOTEBOOK = NOTEBOOKS / "07_improve.ipynb"


def defined(runs):
    """The sweep that the notebook's own cell defines, frozen in its folder."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    [source] = [text for cell in cells if "improve.Sweep(" in (text := "".join(cell["source"]))]
    names = {"improve": improve, "RUNS": runs}
    exec(source.replace("from finelab.run import RUNS\n", ""), names)
    return names["folder"], names["sweep"]


@pytest.mark.slow
def test_the_notebook_shows_the_table_and_the_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("FINELAB_RUNS", str(tmp_path / "runs"))
    folder, sweep = defined(tmp_path / "runs")
    for trial in sweep.trials():
        finish(folder, trial, trial.seed / 100 - (trial.setting != "default"))
    copy = tmp_path / "run" / "notebooks" / NOTEBOOK.name
    copy.parent.mkdir(parents=True)
    execute(NOTEBOOK, tmp_path / "run", copy, Progress(Console(file=io.StringIO())))

    outputs = [
        output for cell in nbformat.read(copy, as_version=4).cells for output in cell.get("outputs", [])
    ]
    shown = "".join(str(output.get("data", output.get("text", ""))) for output in outputs)
    assert "better" in shown and "lr-5e-4" in shown
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert (folder / "sweep.png").exists()

"""JupyterLab in a real browser: notebook 01 from its first cell to its last, and its widget by hand."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page, seen or not
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
ENDS_MS = 300_000


@pytest.fixture
def jupyterlab(tmp_path, embedded_folder):
    """JupyterLab's address, on a copy of the notebook, with a run and settings of its own."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*", "*.txt"))
    for name, values in SETTINGS.items():
        path = tmp_path / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.port=0"],
        cwd=tmp_path / "notebooks",
        env={
            **os.environ,
            "FINELAB_RUN": str(tmp_path / "run"),
            "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
            "HF_TOKEN": "",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    said = next(filter(None, (re.search(r"http://127\S+/lab\?token=\w+", line) for line in process.stderr)))
    yield said[0].replace("/lab?", "/lab/tree/01_data.ipynb?")
    process.terminate()
    process.communicate(timeout=30)


def test_notebook_01_runs_and_its_widget_shows_another_row(context, jupyterlab, tmp_path):
    page = context.new_page()
    page.goto(jupyterlab)
    page.get_by_role("heading", name="1. Data").wait_for(timeout=60_000)
    # JupyterLab forgets cells that are run before the kernel is there
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.locator(".jp-OutputArea-output", has_text="report.json").wait_for(timeout=ENDS_MS)

    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert page.locator(".jp-OutputArea-output img").count() >= 3
    assert (tmp_path / "run" / "data" / "report.json").exists()

    title = page.locator(".widget-html p", has_text="embedded")
    first = title.inner_text()
    page.get_by_role("spinbutton", name="row").fill("2")
    page.get_by_role("spinbutton", name="row").press("Enter")
    page.wait_for_function("old => !document.body.innerText.includes(old)", arg=first)
    page.get_by_role("combobox", name="source").select_option("counting")
    page.locator(".widget-html p", has_text="source counting").wait_for()
    assert page.locator(".fl-row mark").first.inner_text()

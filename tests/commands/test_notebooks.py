"""JupyterLab with the lab's Python, and what is said where the lock leaves it out."""

import json
import os
import subprocess
import sys
import types

import httpx
import pytest
from jupyter_client import BlockingKernelClient

import finelab.run
from finelab.__main__ import main
from finelab.run import RECIPE_VARIABLE, RUN_VARIABLE, open_run
from tests.conformance.server import wait_for

WITHOUT = """
import sys
from finelab.__main__ import main

class Paperspace:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jupyterlab", "notebook", "jupyter_server"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Paperspace())
sys.exit(main(["notebooks"]))
"""

RELATIVE = """
import subprocess, sys, types
from finelab.__main__ import main

kernel = [sys.executable, "-c", "from finelab.run import RUNS; print(RUNS)"]
lab = types.ModuleType("jupyterlab.labapp")
lab.LabApp = types.SimpleNamespace(launch_instance=lambda arguments: subprocess.run(kernel, check=True))
sys.modules["jupyterlab.labapp"] = lab
sys.exit(main(["notebooks", "--recipe", "smollm2-135m"]))
"""


def test_a_kernel_has_the_runs_of_the_users_folder(tmp_path):
    root = str(finelab.run.NOTEBOOKS.parent)
    ended = subprocess.run(
        [sys.executable, "-c", RELATIVE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "FINELAB_RUNS": "mine", "PYTHONPATH": root},
    )
    assert ended.returncode == 0, ended.stderr
    assert str(tmp_path / "mine") in ended.stdout.splitlines()


def test_without_jupyterlab_it_says_where_the_notebooks_are_opened(tmp_path):
    """As on Paperspace, whose lock has neither JupyterLab nor its server."""
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("finelab: jupyterlab is not installed here")
    assert ended.stderr.endswith("choose the kernel finelab there.\n")
    assert "Traceback" not in ended.stderr


def test_the_notebooks_open_the_run_that_is_named(tmp_path, monkeypatch, capsys):
    """The kernels have JupyterLab's environment."""
    opened = []
    lab = types.ModuleType("jupyterlab.labapp")
    lab.LabApp = types.SimpleNamespace(
        launch_instance=lambda arguments: opened.append((open_run(), arguments))
    )
    monkeypatch.setitem(sys.modules, "jupyterlab.labapp", lab)
    monkeypatch.setattr(finelab.run, "RUNS", tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in (RUN_VARIABLE, RECIPE_VARIABLE, "FINELAB_RUNS"):
        monkeypatch.setenv(name, "")  # so that it is put back after the test
    assert main(["notebooks", "--run", "mine", "--recipe", "llama-3.2-3b", "--no-browser"]) == 0
    ((run, arguments),) = opened
    assert (run.folder, run.recipe.name) == (tmp_path / "mine", "llama-3.2-3b")
    assert arguments[-1] == "--no-browser"
    assert "--KernelManager.shutdown_wait_time=60" in arguments  # so that a training may save
    assert f"The run's recipe: {tmp_path / 'mine' / 'recipe.toml'}" in capsys.readouterr().out


SAVES = """
import time
print("training", flush=True)
try:
    while True:
        time.sleep(0.1)
except KeyboardInterrupt:
    time.sleep(7)  # Jupyter itself would kill it after 5
    open({!r}, "w").close()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="its kernels are interrupted by an event of their own")
def test_a_kernel_that_is_shut_down_has_the_time_to_save(tmp_path):
    environment = {"FINELAB_RUNS": str(tmp_path / "runs"), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    options = ["--no-browser", "--allow-root", "--ServerApp.port=0", "--ServerApp.token=secret"]
    server = subprocess.Popen(
        [sys.executable, "-m", "finelab", "notebooks", "--recipe", "smollm2-135m", *options],
        cwd=finelab.run.NOTEBOOKS.parent,
        env=os.environ | environment,
    )
    try:
        about = tmp_path / f"jpserver-{server.pid}.json"
        wait_for(about.exists, seconds=60)
        kernels = json.loads(about.read_text("utf-8"))["url"] + "api/kernels"
        headers = {"Authorization": "token secret"}
        kernel = httpx.post(kernels, headers=headers, json={"name": "python3"}, timeout=60).json()["id"]
        client = BlockingKernelClient(connection_file=str(tmp_path / f"kernel-{kernel}.json"))
        client.load_connection_file()
        client.start_channels()
        client.wait_for_ready(60)
        client.execute(SAVES.format(str(tmp_path / "saved")))
        while client.get_iopub_msg(60)["msg_type"] != "stream":
            pass
        httpx.delete(f"{kernels}/{kernel}", headers=headers, timeout=60).raise_for_status()
        client.stop_channels()
    finally:
        server.terminate()
        server.wait()
    assert (tmp_path / "saved").exists()

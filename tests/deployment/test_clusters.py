"""The entries for Ray and SkyPilot: outcomes of a local sweep, and a task file with the lab's commands."""

import json
import os
import signal
import subprocess
import sys

import pytest
import yaml

from finelab import LabError
from finelab import run as run_command
from finelab.files import write_json, write_text
from finelab.improve import Sweep, create_sweep, outcome, report, table
from finelab.recipe import load_preset, override
from tests import needs
from tests.conformance.server import wait_for
from tests.deployment.conftest import DEPLOYMENT

SETTINGS = {"default": {}, "r8": {"lora.r": 8}, "r4": {"lora.r": 4}, "broken": {"lora.r": 2}}


def one(trial, runs, stop=None, retry=False):
    """What `run_trial` does, without training: an outcome that depends on the trial alone."""
    folder = runs / trial.name
    if retry:
        (folder / "failed.json").unlink(missing_ok=True)
    if outcome(trial, runs).state != "waiting":
        return outcome(trial, runs)
    if trial.setting == "broken":
        write_json(folder / "failed.json", {"reason": "it fell over"})
        return outcome(trial, runs)
    nats = 20 + trial.seed + len(trial.assignments) * 1.5 + 0.1 * len(trial.setting) * trial.seed
    row = {"heldout": "row", "question": "q", "tokens": 10, "bytes": 40, "base": 30.0, "tuned": nats}
    write_json(folder / "heldout_losses.json", {"a": row})
    numbers = {"tokens_trained": 1000, "seconds": 5.0, "peak_memory_bytes": 1e9}
    write_json(folder / "evidence.json", {"training": numbers})
    write_text(folder / "notebooks" / "03_train.ipynb", "{}")
    return outcome(trial, runs)


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason=needs.lacking_extra("ray"))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def sweep_on_ray(script):
    return script("ray_sweep").sweep_on_ray


@pytest.mark.slow
def test_a_sweep_of_four_settings_on_ray_has_the_table_of_a_local_one(ray, sweep_on_ray, tmp_path):
    tables, handler = {}, signal.getsignal(signal.SIGINT)
    for name in ("ray", "local"):
        folder = tmp_path / name
        sweep = create_sweep(folder, Sweep("smollm2-135m", 1000, (1, 2, 3), SETTINGS))
        found = (
            sweep_on_ray(folder, one=one) if name == "ray" else [one(each, folder) for each in sweep.trials()]
        )
        assert [each.trial for each in found] == sweep.trials()
        tables[name] = table(report(folder))
    assert signal.getsignal(signal.SIGINT) is handler
    assert tables["ray"].equals(tables["local"])
    assert "seed 2 failed: it fell over" in tables["ray"].loc["broken", "verdict"]


@pytest.mark.slow
def test_trials_that_have_ended_are_not_run_again(ray, sweep_on_ray, tmp_path, capsys):
    sweep = create_sweep(tmp_path, Sweep("smollm2-135m", 1000, (1, 2), SETTINGS))
    first = [one(trial, tmp_path) for trial in sweep.trials()]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert sweep_on_ray(tmp_path, one=one) == first
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert capsys.readouterr().out == "8 of 8 trials have ended before.\n"


@pytest.mark.slow
def test_a_trial_that_failed_is_run_again_when_asked(ray, sweep_on_ray, tmp_path, capsys):
    sweep = create_sweep(tmp_path, Sweep("smollm2-135m", 1000, (1, 2), SETTINGS))
    for trial in sweep.trials():
        one(trial, tmp_path)
    write_json(tmp_path / "r8-s2" / "failed.json", {"reason": "the disk was full"})
    states = {each.trial.name: each.state for each in sweep_on_ray(tmp_path, retry=True, one=one)}
    assert states["r8-s2"] == "finished" and states["broken-s1"] == "failed"
    said = capsys.readouterr().out
    assert said.startswith("5 of 8 trials have ended before.") and "3 of 3: " in said


@pytest.mark.slow
def test_more_than_the_cluster_has_is_refused(ray, sweep_on_ray, tmp_path):
    create_sweep(tmp_path, Sweep("smollm2-135m", 1000, (1, 2), SETTINGS))
    with pytest.raises(LabError, match="a trial wants 1 CPUs and 1 GPUs, and Ray has 2 and 0"):
        sweep_on_ray(tmp_path, gpus=1, one=one)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to a console, not to a process")
def test_ctrl_c_lets_the_trials_save(tmp_path):
    pytest.importorskip("ray", reason=needs.lacking_extra("ray"))
    create_sweep(tmp_path, Sweep("smollm2-135m", 70, (1, 2), {"default": {}, "r8": {"lora.r": 8}}))

    def said():
        return "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*/output.txt"))

    sweep = subprocess.Popen(
        [sys.executable, str(DEPLOYMENT / "ray_sweep.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(DEPLOYMENT.parent)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: "01_data: started" in said(), seconds=120)
    os.killpg(sweep.pid, signal.SIGINT)  # as a terminal does
    out, err = sweep.communicate()
    assert sweep.returncode == 130 and err.endswith("Stopped; run the same command again to go on.\n")
    assert "Stopping when the trials have saved" in out
    assert "stopped; run the same command again to go on" in said()


def test_a_folder_without_a_sweep_is_one_sentence(tmp_path):
    command = [sys.executable, str(DEPLOYMENT / "ray_sweep.py"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(DEPLOYMENT.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"{tmp_path / 'sweep.toml'} is not there")


# SkyPilot


@pytest.fixture
def task():
    return yaml.safe_load((DEPLOYMENT / "sky_train.yaml").read_text(encoding="utf-8"))


def test_the_task_asks_for_what_it_needs(task):
    assert set(task) == {"name", "workdir", "resources", "envs", "file_mounts", "setup", "run"}
    assert task["resources"] == {"accelerators": "L4:1", "use_spot": True, "disk_size": 100}
    assert task["file_mounts"]["/runs"] == {"name": "${BUCKET}", "mode": "MOUNT_CACHED"}
    envs = task["envs"]
    assert override(load_preset(envs["RECIPE"]), [envs["SET"]]).name == envs["RECIPE"]
    assert run_command.folder_of(envs["RUN"]).name == envs["RUN"]


@pytest.fixture
def shell(task, tmp_path):
    """Runs a part of the task among stand-ins that note how they are called: (exit code, calls)."""
    if sys.platform == "win32":
        pytest.skip("the task runs in a Linux shell")
    note = 'echo "${0##*/} $FINELAB_RUNS $*" >> "$HOME/called"\n'
    found = f'{note}[ "$2" = find ] && echo "$HOME/python3.12" || true\n'
    (tmp_path / "called").touch()
    for name, does in (
        (".venv/bin/torchrun", note),
        (".local/bin/uv", found),
        ("python3.12", note),
        ("python3", f"{note}exit $CODE\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{does}", "utf-8")
        path.chmod(0o755)

    def run(part, gpus="1", code=0):
        environment = task["envs"] | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
        environment |= {"SKYPILOT_NUM_GPUS_PER_NODE": gpus, "CODE": str(code)}
        done = subprocess.run(["bash", "-c", task[part]], cwd=tmp_path, env=environment, check=False)
        return done.returncode, (tmp_path / "called").read_text("utf-8").splitlines()

    return run


ROWS = "python3 /runs lab.py run --run mine --recipe llama-3.2-1b --set data.limit=100000 --stages data"


@pytest.mark.parametrize(
    ("gpus", "calls"),
    [
        ("1", [f"{ROWS},train"]),
        ("4", [ROWS, "torchrun /runs --standalone --nproc_per_node 4 -m finelab.train mine"]),
    ],
)
def test_the_tasks_commands_are_those_of_the_lab(task, shell, gpus, calls):
    assert shell("run", gpus) == (0, calls)
    assert json.dumps(task)  # nothing in it that YAML has made a date or the like of


def test_rows_that_failed_are_not_trained_on(shell):
    assert shell("run", gpus="4", code=2) == (2, [ROWS])


def test_the_set_up_brings_its_own_python(shell):
    """The images' python3 may be one that the lab does not run on."""
    code, calls = shell("setup", code=2)
    assert (code, calls[0], calls[-1]) == (0, "uv  python install 3.12", "python3.12  lab.py doctor")

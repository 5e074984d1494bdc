"""Sweeps for real: child processes, the embedded model, a few steps."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finelab.improve import Sweep, create_sweep, report, run_sweep, table
from finelab.improve.trial import FAILED
from finelab.run import open_run

ROOT = Path(__file__).parents[2]
LOSSES = {
    "a": {"tokens": 10, "bytes": 40, "base": 28.0, "tuned": 20.0},
    "b": {"tokens": 5, "bytes": 20, "base": 17.0, "tuned": 11.0},
}


def finish(folder, trial, shift):
    """Leave what a finished trial leaves."""
    run = folder / trial.name
    (run / "notebooks").mkdir(parents=True)
    (run / "notebooks" / "03_train.ipynb").write_text("{}", encoding="utf-8")
    losses = {row: each | {"tuned": each["tuned"] + shift} for row, each in LOSSES.items()}
    (run / "heldout_losses.json").write_text(json.dumps(losses), encoding="utf-8")
    training = {"tokens_trained": 1000, "seconds": 5.0, "peak_memory_bytes": 1e9}
    (run / "evidence.json").write_text(json.dumps({"training": training}), encoding="utf-8")


def test_a_failed_seed_is_said_and_takes_its_settings_verdict(tmp_path):
    settings = {"default": {}, "good": {"lora.r": 8}, "broken": {"lora.r": 4}}
    sweep = create_sweep(tmp_path, Sweep("smollm2-135m", 1000, (1, 2), settings))
    for trial in sweep.trials():
        if trial.name != "broken-s2":
            finish(tmp_path, trial, trial.seed + 3 * (trial.setting == "good"))
    (tmp_path / "broken-s2").mkdir()
    (tmp_path / "broken-s2" / FAILED).write_text('{"reason": "it fell over"}', encoding="utf-8")

    assert [each.state for each in run_sweep(tmp_path, quiet=True)].count("failed") == 1
    found = report(tmp_path)["settings"]
    assert found["good"]["difference"] == pytest.approx(6 / 15)
    assert found["good"]["untrained_loss"] == pytest.approx(45 / 15)
    assert "verdict" not in found["broken"] and found["broken"]["unfinished"] == {"2": "failed: it fell over"}
    assert "seed 2 failed: it fell over" in table(report(tmp_path)).loc["broken", "verdict"]


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_goes_on_and_says_what_failed(tmp_path):
    settings = {"default": {}, "no-rows": {"data.min_score": 99.0}}
    create_sweep(tmp_path, Sweep("smollm2-135m", 250, (1, 2), settings, {"data.limit": 40}))
    code = "import sys; from pathlib import Path; from finelab.improve import run_sweep; "
    code += "run_sweep(Path(sys.argv[1]))"
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        start_new_session=True,
        env={**os.environ, "HF_TOKEN": ""},
    )
    while first.poll() is None and not list(tmp_path.glob("default-s1/checkpoints/checkpoint-*")):
        time.sleep(0.2)
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()

    states = {each.trial.name: each.state for each in run_sweep(tmp_path)}
    assert states == {
        "default-s1": "finished",
        "default-s2": "finished",
        "no-rows-s1": "failed",
        "no-rows-s2": "failed",
    }
    # the recipe's five steps of warm-up would be all of a trial as short as this
    assert open_run(tmp_path / "default-s1").recipe.training.warmup_steps == 0
    found = report(tmp_path)["settings"]
    assert set(found["default"]["losses"]) == {"1", "2"}
    assert "failed: " in found["no-rows"]["unfinished"]["1"]

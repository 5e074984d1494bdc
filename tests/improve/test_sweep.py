"""Sweeps for real: child processes, the embedded model, a few steps."""

import contextlib
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from filelock import FileLock

from finelab.improve import Sweep, create_sweep, left_of, report, run_sweep, table
from finelab.improve.trial import FAILED, outcome, run_trial
from finelab.run import open_run
from tests.conformance.server import wait_for

ROOT = Path(__file__).parents[2]
LOSSES = {
    "a": {"heldout": "row", "question": "q", "tokens": 10, "bytes": 40, "base": 28.0, "tuned": 20.0},
    "b": {"heldout": "row", "question": "r", "tokens": 5, "bytes": 20, "base": 17.0, "tuned": 11.0},
}
ROW_BY_ROW = {
    "data.limit": 40,
    "training.per_device_train_batch_size": 1,
    "training.gradient_accumulation_steps": 1,
}


def finish(folder, trial, shift, losses=LOSSES):
    """Leave what a finished trial leaves, each tuned loss higher by `shift`."""
    run = folder / trial.name
    (run / "notebooks").mkdir(parents=True)
    (run / "notebooks" / "03_train.ipynb").write_text("{}", encoding="utf-8")
    losses = {row: each | {"tuned": each["tuned"] + shift} for row, each in losses.items()}
    (run / "heldout_losses.json").write_text(json.dumps(losses), encoding="utf-8")
    training = {"tokens_trained": 1000, "seconds": 5.0, "peak_memory_bytes": 1e9}
    (run / "evidence.json").write_text(json.dumps({"training": training}), encoding="utf-8")


def test_a_failed_seed_is_said_and_takes_its_settings_verdict(tmp_path, capsys):
    settings = {"default": {}, "good": {"lora.r": 8}, "broken": {"lora.r": 4}}
    sweep = create_sweep(tmp_path, Sweep("smollm2-135m", 1000, (1, 2), settings))
    for trial in sweep.trials():
        if trial.name != "broken-s2":
            finish(tmp_path, trial, trial.seed + 3 * (trial.setting == "good"))
    (tmp_path / "broken-s2").mkdir()
    (tmp_path / "broken-s2" / FAILED).write_text('{"reason": "it fell over"}', encoding="utf-8")

    assert [each.state for each in run_sweep(tmp_path)].count("failed") == 1
    assert "1 of 6 failed; run_sweep(folder, retry=True) runs them again" in capsys.readouterr().out
    found = report(tmp_path)["settings"]
    assert found["good"]["difference"] == pytest.approx(6 / 15)
    assert found["good"]["untrained_loss"] == pytest.approx(45 / 15)
    assert "verdict" not in found["broken"] and found["broken"]["unfinished"] == {"2": "failed: it fell over"}
    assert "seed 2 failed: it fell over" in table(report(tmp_path)).loc["broken", "verdict"]


def test_what_is_left_of_a_sweep_and_what_failed_only_when_asked(tmp_path):
    settings = {"default": {}, "good": {"lora.r": 8}}
    sweep = create_sweep(tmp_path, Sweep("smollm2-135m", 1000, (1, 2), settings))
    first, second, *waiting = sweep.trials()
    finish(tmp_path, first, 0)
    (tmp_path / second.name).mkdir()
    (tmp_path / second.name / FAILED).write_text('{"reason": "it fell over"}', encoding="utf-8")
    assert left_of(tmp_path) == waiting
    assert left_of(tmp_path, retry=True) == [second, *waiting]


def test_rows_that_a_setting_cuts_shorter_are_not_compared(tmp_path):
    settings = {"default": {}, "short": {"model.max_seq_length": 64}}
    sweep = create_sweep(tmp_path, Sweep("smollm2-135m", 1000, (1, 2), settings))
    cut = LOSSES | {"b": LOSSES["b"] | {"tokens": 2, "bytes": 8, "tuned": 4.0}}
    for trial in sweep.trials():
        finish(tmp_path, trial, trial.seed, cut if trial.setting == "short" else LOSSES)
    found = report(tmp_path)
    assert found["heldout_rows"] == {"row": 1} and found["unit"] == "nats per token"
    assert found["settings"]["short"]["difference"] == 0


@pytest.mark.parametrize("questions", [8, 40])
def test_several_answers_to_one_question_are_one_piece_of_evidence(tmp_path, questions):
    """A gain of 0.4 in an answer that varies by 1 from question to question: 40 show it, 8 do not."""
    moved = np.random.default_rng(0).normal(0, 1, 40)
    moved += 0.4 - moved[:questions].mean()
    rows = {str(row): LOSSES["a"] | {"question": str(row % questions)} for row in range(40)}
    other = {row: each | {"tuned": 20 - moved[int(each["question"])]} for row, each in rows.items()}
    sweep = create_sweep(tmp_path, Sweep("smollm2-135m", 1000, (1, 2, 3), {"a": {}, "b": {"lora.r": 8}}))
    for trial in sweep.trials():
        finish(tmp_path, trial, 0, rows if trial.setting == "a" else other)
    _, high = report(tmp_path)["settings"]["b"]["interval"]
    assert (high < 0) == (questions == 40)


@pytest.mark.skipif(sys.platform == "win32", reason="there a child's exit says nothing of a signal")
@pytest.mark.parametrize(
    ("killed", "reason"),
    [
        ("--stages", "ended by signal 9, and the next call goes on"),
        ("ipykernel_launcher", "the next call goes on; before: 01_data: the kernel "),
    ],
    ids=["child", "kernel"],
)
def test_a_trial_whose_child_is_killed_is_left_for_the_next_call(tmp_path, killed, reason):
    settings = {"default": {}, "small": {"lora.r": 8}}
    trial = create_sweep(tmp_path, Sweep("smollm2-135m", 70, (1, 2), settings)).trials()[0]
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run_trial, trial, tmp_path)
        while not (
            children := [
                each for each in psutil.Process().children(recursive=True) if killed in said_to_start(each)
            ]
        ):
            assert not future.done()
        children[0].kill()
        ended = future.result()
    assert ended.state == "waiting" and ended.reason.startswith(reason)
    assert outcome(trial, tmp_path).state == "waiting"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to a console, not to a process")
def test_a_trial_ends_with_a_save_when_its_caller_alone_is_interrupted(tmp_path):
    """Modal takes a container back so, and Ray a task."""
    create_sweep(tmp_path, Sweep("smollm2-135m", 70, (1, 2), {"default": {}, "small": {"lora.r": 8}}))
    code = "import sys; from pathlib import Path; from finelab.improve import open_sweep; "
    code += "from finelab.improve.trial import run_trial; folder = Path(sys.argv[1]); "
    code += "run_trial(open_sweep(folder).trials()[0], folder)"
    caller = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    wait_for(lambda: "01_data: started" in said(tmp_path), seconds=120)
    caller.send_signal(signal.SIGINT)
    assert caller.wait() == -signal.SIGINT
    assert "stopped; run the same command again to go on" in said(tmp_path)


def said_to_start(process):
    """The arguments of a process, if it is still there."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def said(sweep):
    """What the children that prepare a sweep's data have printed."""
    return "".join(path.read_text(encoding="utf-8") for path in sweep.glob("data-*/output.txt"))


@pytest.mark.parametrize(("lock", "look"), [(".default-s1.lock", 2), (".{}.lock", 3), ("{}/.lock", 4)])
def test_a_trial_that_waits_for_another_process_obeys(tmp_path, lock, look):
    sweep = create_sweep(tmp_path, Sweep("smollm2-135m", 70, (1, 2), {"default": {}, "small": {"lora.r": 8}}))
    path = tmp_path / lock.format(f"data-{hashlib.sha256(b'()').hexdigest()[:8]}")
    path.parent.mkdir(exist_ok=True)
    looks = itertools.count(1)
    with ThreadPoolExecutor(1) as pool, FileLock(path):
        trial = pool.submit(run_trial, sweep.trials()[0], tmp_path, lambda: next(looks) == look)
        with pytest.raises(KeyboardInterrupt):
            trial.result(10)


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_goes_on_and_says_what_failed(tmp_path):
    settings = {"default": {}, "no-rows": {"data.min_score": 99.0}}
    create_sweep(tmp_path, Sweep("smollm2-135m", 70, (1, 2), settings, ROW_BY_ROW))
    for name in ("default-s2", "no-rows-s2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / FAILED).write_text('{"reason": "seen before"}', encoding="utf-8")
    code = "import sys; from pathlib import Path; from finelab.improve import run_sweep; "
    code += "run_sweep(Path(sys.argv[1]))"
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        start_new_session=True,
        env={**os.environ, "HF_TOKEN": ""},
    )
    while first.poll() is None and not (tmp_path / "default-s1" / "recipe.toml").exists():
        time.sleep(0.05)
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    [prepared] = tmp_path.glob("data-*/notebooks/01_data.ipynb")
    before = prepared.stat().st_mtime_ns

    states = {each.trial.name: each.state for each in run_sweep(tmp_path)}
    assert states == {
        "default-s1": "finished",
        "default-s2": "failed",
        "no-rows-s1": "failed",
        "no-rows-s2": "failed",
    }
    assert prepared.stat().st_mtime_ns == before, "the rows are not made again"
    # the recipe's five steps of warm-up would be all of a trial as short as this
    assert open_run(tmp_path / "default-s1").recipe.training.warmup_steps == 0
    found = report(tmp_path)["settings"]
    assert set(found["default"]["losses"]) == {"1"}
    assert found["default"]["unfinished"] == {"2": "failed: seen before"}
    assert "failed: " in found["no-rows"]["unfinished"]["1"]

"""One sitting of a run on a volume: its rows, its training, and what they cost so far.

Used inside the containers of modal_train.py, which have finelab, the notebooks and this file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RUNS = Path(os.environ.get("FINELAB_RUNS", "/runs"))
ACCOUNT = "modal.json"  # in the run's folder: every sitting's seconds, and what an hour costs
TICK_S = 30.0  # so often the account is written and the volume told to keep what is there
SILENT_S = 2.5 * TICK_S  # a container that did not write for so long has died
LEAST_S = 600  # a shorter sitting would load the model and do nothing
MARGIN_S = 330  # to load the model, measure the held-out rows, and save at the end
SAVE_S = 25  # for a save that was not planned; Modal gives 30 s when it takes a container back
TOLD = "finelab: "
FINELAB = (sys.executable, "-m", "finelab")
OUTCOME = ("evidence.json", "heldout_losses.json", "failed.json", "pruned.json", "notebooks/03_train.ipynb")


def sitting(job: dict[str, Any], input_id: str | None, commit: Callable[[], None]) -> dict[str, Any]:
    """Train `job["run"]` for `job["hours"]` or until `job["spend_usd"]` is spent, from where it is.

    `input_id` is Modal's name of the call, the same in a container that follows one which was taken back.
    Gives {"state": "finished", "stopped" (call again), "spent", or "failed"; "said", "seconds", "usd"} of the
    whole run, every sitting counted.
    """
    from finelab.errors import LabError
    from finelab.train.session import GO_ON

    began = time.monotonic()
    try:
        before = account(job["run"])
        require_alone(job["run"], before, input_id)
        run = job_run(job, job["hours"])
        left_s = min(job["hours"] * 3600, (job["spend_usd"] - usd(before)) / job["usd_per_hour"] * 3600)
        if left_s < LEAST_S:
            return result("spent", f"the limit of ${job['spend_usd']:.2f} is reached", before)
        ends = began + left_s - SAVE_S
        with accounting(run, before, job["usd_per_hour"], input_id, commit):
            code, said = follow([*FINELAB, "run", "--run", run.name, "--stages", "data"], ends)
            if not code:
                job_run(job, (ends - time.monotonic() - MARGIN_S) / 3600)
                code, said = follow(training(run.name, job["gpus"]), ends)
    except LabError as error:
        return result("failed", str(error), account(job["run"]))
    stopped = GO_ON in said or (code and time.monotonic() >= ends)
    state = "stopped" if stopped else "failed" if code else "finished"
    return result(state, said, account(job["run"]))


def training(name: str, gpus: int) -> list[str]:
    """The command that trains: notebook 03 on one GPU, the same calls in one process a GPU on several."""
    if gpus == 1:
        return [*FINELAB, "run", "--run", name, "--stages", "train"]
    processes = ["--standalone", "--nproc_per_node", str(gpus)]
    return [sys.executable, "-m", "torch.distributed.run", *processes, "-m", "finelab.train", name]


def job_run(job: dict[str, Any], hours: float) -> Any:
    """The job's run, made at first use; the sitting's hours may be others each time, all else may not."""
    from finelab import recipe
    from finelab.files import write_text
    from finelab.run import create_run, folder_of

    sat = [f"training.session_hours={max(hours, 0.01):.3f}"]
    path = folder_of(job["run"]) / "recipe.toml"
    if path.exists():
        write_text(path, recipe.dumps(recipe.override(recipe.read(path), sat)))
    return create_run(path.parent, recipe.override(recipe.load_preset(job["recipe"]), job["changes"] + sat))


def require_alone(name: str, sittings: list[dict[str, Any]], input_id: str | None) -> None:
    """LabError while a container of another call trains the run; a lock does not hold between containers."""
    from finelab.errors import LabError

    last = sittings[-1] if sittings else {}
    silent_s = max(0.0, time.time() - last.get("at", 0))
    if last.get("ended", True) or last["input"] == input_id or silent_s > SILENT_S:
        return
    raise LabError(
        f"another container trains run {name!r} (it wrote {silent_s:.0f} s ago); wait for it, or ask again "
        f"in {SILENT_S - silent_s:.0f} s."
    )


def account(name: str) -> list[dict[str, Any]]:
    """The sittings so far, each with seconds, price, call, when that was written, and whether it ended."""
    path = RUNS / name / ACCOUNT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def usd(sittings: list[dict[str, Any]]) -> float:
    """What sittings cost."""
    return float(sum(each["seconds"] / 3600 * each["usd_per_hour"] for each in sittings))


def result(state: str, said: str, sittings: list[dict[str, Any]]) -> dict[str, Any]:
    """What a sitting gives back."""
    seconds = sum(each["seconds"] for each in sittings)
    return {"state": state, "said": said, "seconds": seconds, "usd": usd(sittings)}


@contextlib.contextmanager
def accounting(
    run: Any,
    before: list[dict[str, Any]],
    usd_per_hour: float,
    input_id: str | None,
    commit: Callable[[], None],
) -> Iterator[None]:
    """Write down what this sitting costs while it lasts, so that one that is killed is counted too."""
    from finelab.files import write_json

    began, ended = time.monotonic(), threading.Event()
    sat: dict[str, Any] = {"usd_per_hour": usd_per_hour, "input": input_id}

    def write() -> None:
        sat["seconds"] = round(time.monotonic() - began, 1)
        sat["at"], sat["ended"] = round(time.time(), 1), ended.is_set()
        write_json(run.folder / ACCOUNT, [*before, sat])
        try:
            commit()
        except Exception as error:  # no reason to stop counting: the next commit takes this along
            print(f"The volume was not committed ({error}); it is tried again.", flush=True)

    def keep() -> None:
        while not ended.wait(TICK_S):
            write()

    write()
    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write()


def follow(command: list[str], ends: float) -> tuple[int, str]:
    """Run a command and show what it says: its exit code, and its last line, or the lab's own last one.

    At `ends` (of time.monotonic), or when the container is taken back, the command may save and stop.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert child.stdout is not None
    timer = threading.Timer(ends - time.monotonic(), child.send_signal, [signal.SIGINT])
    timer.start()
    said = ""
    try:
        for line in child.stdout:
            print(line, end="", flush=True)
            if line.startswith(TOLD) or not said.startswith(TOLD):
                said = line.strip() or said
        return child.wait(), said.removeprefix(TOLD)
    except BaseException:
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(SAVE_S)
        raise
    finally:
        timer.cancel()
        child.kill()


def run_one(values: dict[str, Any], folder: str, retry: bool) -> dict[str, Any]:
    """A sweep's trial, in a folder of its own on the volume: its state, and the files that show it."""
    from finelab.improve import Trial, run_trial

    trial = Trial(**{**values, "assignments": tuple(values["assignments"])})
    runs = trial_runs(trial, folder)
    ended = run_trial(trial, runs, retry=retry)
    made = {name: runs / trial.name / name for name in OUTCOME}
    files = {name: path.read_text(encoding="utf-8") for name, path in made.items() if path.exists()}
    return {"name": trial.name, "state": ended.state, "reason": ended.reason, "files": files}


def trial_runs(trial: Any, folder: str) -> Path:
    """Where a trial of the sweep in `folder` has its rows and its run, on the volume.

    Not with the other trials: containers do not see each other's files while they run. Not with a trial of
    the same name and other values either, which an earlier sweep may have left.
    """
    values = json.dumps(as_values(trial), sort_keys=True)
    return RUNS / "sweeps" / folder / f"{trial.name}-{hashlib.sha256(values.encode()).hexdigest()[:8]}"


def as_values(trial: Any) -> dict[str, Any]:
    """A trial as `run_one` takes it."""
    return dataclasses.asdict(trial)

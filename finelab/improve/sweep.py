"""All trials of a sweep, some at a time, from where it is."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from finelab.errors import LabError
from finelab.improve.definition import Trial, open_sweep
from finelab.improve.trial import Outcome, outcome, run_trial


def run_sweep(folder: Path, workers: int = 1, retry: bool = False) -> list[Outcome]:
    """Run what is left of the sweep in `folder`, `workers` trials at a time, and give every outcome.

    With `retry` failed trials are run again. Ctrl-C lets the running ones save; the next call goes on.
    """
    if workers < 1:
        raise LabError(f"workers = {workers}: expected at least 1.")
    folder = folder.absolute()
    trials, left = open_sweep(folder).trials(), left_of(folder, retry)
    stop, started = threading.Event(), time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run_trial, trial, folder, stop.is_set, retry, workers) for trial in left]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                print(_progress(future.result(), done, len(left), time.monotonic() - started), flush=True)
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    outcomes = [outcome(trial, folder) for trial in trials]
    if failed := sum(each.state == "failed" for each in outcomes):
        print(f"{failed} of {len(trials)} failed; run_sweep(folder, retry=True) runs them again.")
    return outcomes


def left_of(folder: Path, retry: bool = False) -> list[Trial]:
    """The sweep's trials that have not ended yet; with `retry` those that failed are among them."""
    ended = ("finished", "stopped early", *(() if retry else ("failed",)))
    return [trial for trial in open_sweep(folder).trials() if outcome(trial, folder).state not in ended]


def _progress(ended: Outcome, done: int, total: int, seconds: float) -> str:
    rest = seconds / done * (total - done) / 60
    said = f": {ended.reason}" if ended.reason else ""
    return f"{done} of {total}, about {rest:.0f} min left: {ended.trial.name} {ended.state}{said}"

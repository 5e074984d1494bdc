"""One trial: a child process runs notebook 03, and is stopped when it is clearly bad.

Notebook 01 runs once for all trials on the same data, whose rows do not depend on the seed.

`run_trial` needs nothing but its arguments and a disk, so Modal's `.map` or a Ray task can call it on
another machine, with the sweep's folder on a shared volume.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finelab import recipe
from finelab.data import load_split
from finelab.data.xray import packed_rows
from finelab.errors import LabError
from finelab.evaluate.runs import LOSSES
from finelab.files import link_all, staged, write_json
from finelab.improve.definition import Trial
from finelab.run import RUN_VARIABLE, RUNS_VARIABLE, WORK_LOCK, Run, open_run, read_evidence
from finelab.train.batches import token_counts
from finelab.train.checkpoint import MANIFEST

FAILED, PRUNED = "failed.json", "pruned.json"
WORSE = 1.02  # a trial's first steps, still warming up, move the loss by less
WATCHED_ROWS = 24  # show what is clearly bad; all of them would take as long as a third of a short trial
POLL_S = 1.0
INTERRUPTED = (130, -signal.SIGINT)  # how `finelab run` ends after Ctrl-C
KERNEL_GONE = ("the kernel died", "the kernel did not start")  # in the words of `finelab run`
SAVE = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT)  # asks a child to save and end


class Killed(LabError):
    """A signal ended the child or its kernel, which says nothing of the trial: most often memory ran out."""


@dataclass(frozen=True)
class Outcome:
    """What became of a trial: `state` is finished, failed, stopped early or waiting, `reason` says why.

    `losses` maps a held-out row's id to what `evaluate.keep_losses` keeps of it; it is empty unless the
    trial finished.
    """

    trial: Trial
    state: str
    reason: str
    losses: Mapping[str, Mapping[str, Any]]
    training: Mapping[str, Any]


def steps_for(rows: int, tokens: int, effective_batch: int, trained_tokens: int) -> int:
    """The optimizer steps, at least one, that bring a run nearest to so many trained tokens.

    The trainer has `rows` rows with `tokens` trained tokens in all; an epoch's last step has what is left.
    """
    epochs, rest = divmod(trained_tokens, tokens)
    wanted = rest / tokens * rows
    whole = int(wanted // effective_batch)
    steps = min((whole, whole + 1), key=lambda steps: abs(min(steps * effective_batch, rows) - wanted))
    return max(1, epochs * math.ceil(rows / effective_batch) + steps)


def trainer_rows(lengths: Sequence[int], chosen: recipe.Recipe) -> int:
    """The trainer's rows, which hold several conversations when packed."""
    return packed_rows(lengths, chosen.model.max_seq_length) if chosen.training.packing else len(lengths)


def outcome(trial: Trial, runs: Path) -> Outcome:
    """What the trial's folder says became of it."""
    folder = runs / trial.name
    training = read_evidence(folder).get("training", {})
    for name, state in ((PRUNED, "stopped early"), (FAILED, "failed")):
        if (folder / name).exists():
            return Outcome(trial, state, _json(folder / name)["reason"], {}, training)
    if (folder / "notebooks" / "03_train.ipynb").exists() and (folder / LOSSES).exists():
        return Outcome(trial, "finished", "", _json(folder / LOSSES), training)
    return Outcome(trial, "waiting", "", {}, training)


def run_trial(
    trial: Trial,
    runs: Path,
    stop: Callable[[], bool] = lambda: False,
    retry: bool = False,
    at_once: int = 1,
) -> Outcome:
    """Bring a trial to its end in `runs / trial.name`, from where it is; one that has ended is kept.

    With `retry` a failed trial is run again. Once `stop()` is true it saves, and KeyboardInterrupt is raised;
    it goes on next time. So does one that a signal ended: it is waiting, and the reason names the signal.
    `at_once` trials share this machine's cores.
    """
    runs.mkdir(parents=True, exist_ok=True)
    with _held(runs / f".{trial.name}.lock", stop):  # another sweep of this folder may be at it
        if retry:
            (runs / trial.name / FAILED).unlink(missing_ok=True)
        if (known := outcome(trial, runs)).state != "waiting":
            return known
        return _brought_to_its_end(trial, runs, stop, max(1, (os.cpu_count() or 1) // at_once))


def _brought_to_its_end(trial: Trial, runs: Path, stop: Callable[[], bool], threads: int) -> Outcome:
    try:
        steps, warmup_steps = _prepare(trial, runs, stop, threads)
        half = steps // 2 + 1  # one look at the held-out rows, half way; the notebook takes the last one
        added = [
            f"training.seed={trial.seed}",
            f"lora.random_state={trial.seed}",
            f"training.max_steps={steps}",
            f"training.eval_steps={half}",
            f"training.eval_rows={WATCHED_ROWS}",
            f"training.save_steps={half}",
            "training.tune=false",
        ]
        warmup = f"training.warmup_steps={warmup_steps}"  # unless the setting says otherwise
        _run(trial, trial.name, "train", [warmup, *trial.assignments, *added], runs, stop, threads)
    except Killed as error:
        return replace(outcome(trial, runs), reason=str(error))
    except LabError as error:
        write_json(runs / trial.name / FAILED, {"reason": str(error)})
    return outcome(trial, runs)


def clearly_bad(losses: Mapping[int, float]) -> bool:
    """Whether the latest held-out loss by step is not a number, or `WORSE` times that before training."""
    import optuna

    first, last = min(losses), max(losses)
    if first == last:
        return False
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # not a line for every study
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=WORSE * losses[first]))
    watched = study.ask()
    watched.report(losses[last], last)
    return bool(watched.should_prune())


def heldout_losses(checkpoints: Path) -> dict[int, float]:
    """The held-out losses by step in the newest checkpoint's trainer state; empty before the first."""
    sealed = [path.parent for path in checkpoints.glob(f"checkpoint-*/{MANIFEST}")]  # written last
    if not sealed:
        return {}
    newest = max(sealed, key=lambda folder: int(folder.name.rpartition("-")[2]))
    history = _json(newest / "trainer_state.json")["log_history"]
    return {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}


def _prepare(trial: Trial, runs: Path, stop: Callable[[], bool], threads: int) -> tuple[int, int]:
    """Give the trial's run its rows; the steps that bring it nearest to the budget, and those of warm-up.

    The recipe's warm-up is for a whole run: its five steps were all that a short trial of large batches had.
    """
    prepared = _prepared_data(trial, runs, stop, threads)
    own = Run(runs / trial.name, recipe.override(prepared.recipe, list(trial.assignments)))
    if not own.train_data.exists():
        own.record("data", prepared.evidence()["data"])
        with staged(own.folder / "data") as stage:
            link_all(prepared.folder / "data", stage)
    lengths, trained = token_counts(load_split(prepared, "train"))
    training = own.recipe.training
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    rows = trainer_rows(lengths, own.recipe)
    steps = steps_for(rows, sum(trained), batch, trial.trained_tokens)
    return steps, min(training.warmup_steps, steps // 10)


def _prepared_data(trial: Trial, runs: Path, stop: Callable[[], bool], threads: int) -> Run:
    """The run that has been through notebook 01 for all trials on the same data."""
    changes = trial.data_assignments
    name = f"data-{hashlib.sha256(repr(changes).encode()).hexdigest()[:8]}"
    with _held(runs / f".{name}.lock", stop):
        if not (runs / name / "notebooks" / "01_data.ipynb").exists():
            _run(trial, name, "data", changes, runs, stop, threads)
    return open_run(runs / name)


def _run(
    trial: Trial,
    name: str,
    stage: str,
    assignments: Sequence[str],
    runs: Path,
    stop: Callable[[], bool],
    threads: int,
) -> None:
    """`python -m finelab run` in a child; LabError with its last line when it fails, Killed by a signal."""
    folder = runs / name
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder / WORK_LOCK, stop):  # the child of a sweep that was killed may still be at it
        pass
    command = [sys.executable, "-m", "finelab", "run", "--recipe", trial.recipe, "--run", name]
    command += ["--stages", stage, *(part for text in assignments for part in ("--set", text))]
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, RUNS_VARIABLE: str(runs)}
    environment.pop(RUN_VARIABLE, None)
    with (folder / "output.txt").open("w", encoding="utf-8") as output:
        child = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        try:
            _wait(child, folder, stop)
        except BaseException:  # Ctrl-C, a container that is taken back, a full disk
            child.send_signal(SAVE)
            child.wait()
            raise
    if _pruned(folder) or not child.returncode:  # once more: a quick child ends before it is looked at
        return
    if child.returncode in INTERRUPTED or stop():
        raise KeyboardInterrupt
    said = _last_line(folder / "output.txt")
    if child.returncode < 0:
        raise Killed(f"ended by signal {-child.returncode}, and the next call goes on; before: {said}")
    if any(words in said for words in KERNEL_GONE):
        raise Killed(f"the next call goes on; before: {said}")
    raise LabError(said)


def _held(path: Path, stop: Callable[[], bool]) -> AbstractContextManager[Any]:
    """The lock at `path` once no other process has it, for a `with`; KeyboardInterrupt once `stop()`."""
    from filelock import FileLock, Timeout

    while not stop():
        with suppress(Timeout):
            return FileLock(path).acquire(timeout=POLL_S)
    raise KeyboardInterrupt


def _wait(child: subprocess.Popen[bytes], folder: Path, stop: Callable[[], bool]) -> None:
    """Until the child ends: asked to save and end once `stop()` or the trial is clearly bad."""
    asked = False
    while True:
        try:
            child.wait(POLL_S)
            return
        except subprocess.TimeoutExpired:
            pass
        if not asked and (_pruned(folder) or stop()):
            child.send_signal(SAVE)
            asked = True


def _pruned(folder: Path) -> bool:
    """Whether the trial is clearly bad by its newest checkpoint, which is then said in `PRUNED`."""
    losses = heldout_losses(folder / "checkpoints")
    if not losses or not clearly_bad(losses):
        return False
    step = max(losses)
    reason = f"held-out loss {losses[step]:.3f} at step {step}, {losses[min(losses)]:.3f} before training"
    write_json(folder / PRUNED, {"step": step, "reason": reason})
    return True


def _last_line(path: Path) -> str:
    """The sentence the child ended with: of a failed cell its error, the line before `more of it`."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    said = [line for line in lines if line and not line.startswith("more of it: ")]
    return said[-1].removeprefix("finelab: ") if said else "the child ended without a word"


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))

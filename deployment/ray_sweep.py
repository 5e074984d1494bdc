"""Run a sweep with Ray Tune, on a cluster or on this machine.

    python deployment/ray_sweep.py runs/first-sweep                          # Ray on this machine's cores
    python deployment/ray_sweep.py runs/first-sweep --address auto --gpus 1  # on the cluster this node is in

Every node has this checkout with its environment at the same place, and the sweep's folder on a disk that all
of them see. Ray is an extra: `python -m pip install --no-deps -r environment/extras/ray.txt`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finelab.errors import LabError
from finelab.improve import Outcome, Trial, left_of, open_sweep, outcome, report, run_trial, table
from finelab.train.stop import Stop

RETRIES = 3  # of a trial whose node was lost; it goes on from its last checkpoint


def sweep_on_ray(
    folder: Path,
    cpus: float = 1,
    gpus: float = 0,
    retry: bool = False,
    one: Callable[..., Any] = run_trial,
) -> list[Outcome]:
    """Every trial's outcome, in the sweep's order; each that is left is given so many CPUs and GPUs.

    With `retry` failed trials are run again. Ctrl-C lets the running ones save; the next call goes on.
    LabError when Ray has nowhere to run even one, or lost one more often than RETRIES times.
    """
    folder = folder.absolute()
    trials, left = open_sweep(folder).trials(), left_of(folder, retry)
    if ended := len(trials) - len(left):
        print(f"{ended} of {len(trials)} trials have ended before.")
    if left:
        try_on_ray(left, folder, cpus, gpus, lambda trial, stop: one(trial, folder, stop, retry))
    return [outcome(trial, folder) for trial in trials]


def try_on_ray(
    trials: list[Trial],
    folder: Path,
    cpus: float,
    gpus: float,
    one: Callable[[Trial, Callable[[], bool]], Outcome],
) -> None:
    """Each trial by `one`, as many at a time as Ray has CPUs and GPUs for."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # each trial keeps its own evidence
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's ends trials unsaved, and stays after the sweep
    import ray
    from ray import tune

    there = ray.cluster_resources()
    if there.get("CPU", 0) < cpus or there.get("GPU", 0) < gpus:
        raise LabError(
            f"a trial wants {cpus:g} CPUs and {gpus:g} GPUs, and Ray has {there.get('CPU', 0):g} and "
            f"{there.get('GPU', 0):g}; give less with --cpus and --gpus, or start more nodes."
        )
    named = {trial.name: trial for trial in trials}
    stopping = folder / ".ray" / "stopping"  # every node sees it
    stopping.unlink(missing_ok=True)

    def train(config: dict[str, str]) -> None:
        if hasattr(signal, "pthread_sigmask"):  # Ray blocks SIGINT, which asks a trial's child to save
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            ended = one(named[config["trial"]], stopping.exists)
            tune.report({"state": ended.state, "reason": ended.reason})
        except KeyboardInterrupt:
            tune.report({"state": "waiting", "reason": "stopped"})

    stop = Stop(None)
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": cpus, "gpu": gpus}),
        tune_config=tune.TuneConfig(reuse_actors=True),
        param_space={"trial": tune.grid_search(list(named))},
        run_config=tune.RunConfig(
            storage_path=str(folder / ".ray"),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            callbacks=[progress(len(trials), stop, stopping)],
            verbose=0,
        ),
    )
    with stop.listening():  # the signal comes again when the trials have saved
        results = tuner.fit()
    for error in results.errors:
        raise LabError(f"Ray gave up on a trial: {error}; run the same command again to go on.")


def progress(total: int, stop: Stop, stopping: Path) -> Any:
    """Tune's callback: a line for each trial that ended, and the file `stopping` after a signal to `stop`."""
    from ray import tune

    class Progress(tune.Callback):  # type: ignore[misc]
        done = 0

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if stop.reason and not stopping.exists():
                stopping.touch()
                print("Stopping when the trials have saved; Ctrl-C again ends them now.", flush=True)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.done += 1
            state, reason = trial.last_result["state"], trial.last_result["reason"]
            said = f": {reason}" if reason else ""
            print(f"{self.done} of {total}: {trial.config['trial']} {state}{said}", flush=True)

    return Progress()


def main() -> int:
    """Run what is left of the sweep, then print its table; one sentence and 1 for a mistake."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a sweep's folder, as notebook 07_improve makes it")
    parser.add_argument(
        "--address", help="of the cluster: `auto` on one of its nodes; left out: this machine"
    )
    parser.add_argument("--cpus", type=float, default=1, help="of each trial")
    parser.add_argument("--gpus", type=float, default=0, help="of each trial")
    parser.add_argument("--retry", action="store_true", help="try those that failed again")
    args = parser.parse_args()
    try:
        open_sweep(args.folder)
        try:
            import ray
        except ImportError as error:
            raise LabError(
                "Ray is not installed: python -m pip install --no-deps -r environment/extras/ray.txt"
            ) from error
        ray.init(address=args.address, include_dashboard=False, log_to_driver=False)
        sweep_on_ray(args.folder, args.cpus, args.gpus, args.retry)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; run the same command again to go on.", file=sys.stderr)
        return 130
    print(table(report(args.folder)).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())

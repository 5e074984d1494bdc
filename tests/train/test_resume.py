"""Resumed equals uninterrupted, bit for bit: after a deadline, after signals, and after kill -9.

In transformers' own trainer with autograd, and in the notebook's with the step by hand in each dtype.

Run as a script this file is the driver of the kill test: it imports everything once and forks a child for
each sitting.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

from finelab import recipe
from finelab.files import sha256
from finelab.run import create_run
from finelab.train import Session
from finelab.train.certificate import compare
from tests.train.launches import ADAPTER, drive
from tests.train.sittings import at_step, sit, trainer_of

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a child for each sitting")
KILLS = 30
KILLED = {"num_train_epochs": 20, "save_steps": 1}
STEPS = 80  # 30 kills get to the 60th at most
LENGTHS = [{"input_ids": [3 + i] * (4 + i % 5), "labels": [3 + i] * (4 + i % 5)} for i in range(16)]


def padded(rows):
    """A batch of rows of unlike lengths."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    batch = {name: [row[name] + [0] * (longest - len(row[name])) for row in rows] for name in rows[0]}
    return {name: torch.tensor(values) for name, values in batch.items()}


def finish(run, callbacks=(), **args):
    """Sit until the run is trained; gives its recorded training and the hash of its adapter."""
    session = Session(run)
    trainer = trainer_of(session, callbacks, **args)
    sit(session, trainer)
    session.complete(trainer)
    return run.evidence()["training"], sha256(run.adapter / ADAPTER)


def stop_at(run, step, number, **args):
    session = Session(run)
    trainer = trainer_of(session, [at_step(step, lambda: signal.raise_signal(number))], **args)
    sit(session, trainer)
    assert trainer.state.global_step == step


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that was never stopped."""
    run = create_run(tmp_path_factory.mktemp("straight") / "run", recipe.load_preset("smollm2-135m"))
    return finish(run)


def assert_the_same(first, second):
    assert compare(first[0]["certificate"], second[0]["certificate"]) == []
    assert first[1] == second[1]
    assert second[0]["certificate"]["restored_exactly"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_signals_within_and_between_epochs(run, straight, number):
    stop_at(run, 3, number)
    stop_at(run, 4, number)
    resumed = finish(run)
    assert resumed[0]["resumes"] == [3, 4]
    assert_the_same(straight, resumed)


def test_after_deadlines(run, straight, capsys):
    short = type(run)(run.folder, recipe.override(run.recipe, ["training.session_hours=0.000001"]))
    for step in range(1, 8):  # each sitting has the time for one step
        session = Session(short)
        trainer = trainer_of(session)
        sit(session, trainer)
        assert trainer.state.global_step == step
        assert f"hours of this sitting are over: step {step} is saved" in capsys.readouterr().out
    resumed = finish(short)
    assert resumed[0]["resumes"] == [1, 2, 3, 4, 5, 6, 7]
    assert_the_same(straight, resumed)


def test_with_rows_grouped_by_length_in_a_later_epoch(run, tmp_path):
    args = {"rows": LENGTHS, "collator": padded, "train_sampling_strategy": "group_by_length"}
    whole = finish(create_run(tmp_path / "whole", run.recipe), **args)
    stop_at(run, 6, signal.SIGINT, **args)
    assert_the_same(whole, finish(run, **args))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("by-hand")


@pytest.fixture(scope="module")
def by_hand(folder):
    return drive("resumed", folder)


@pytest.mark.slow
@forks
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_step_by_hand_after_a_kill_and_a_signal(folder, by_hand, dtype):
    """Unsloth's model and TRL's trainer, as notebook 03 makes them."""
    straight, *sittings = by_hand[dtype]
    assert [each["ends"] for each in sittings] == [[-signal.SIGKILL], [2], [0]]
    gradients = f"gradients: forward and backward by hand, in {dtype}\n"
    assert [each["said"][0].count(gradients) for each in sittings] == [1, 2, 3]
    assert straight["training"]["steps"] == 12
    assert straight["training"]["resumes"] == []
    assert sittings[-1]["training"]["resumes"] == [6, 9]
    hashes = [sha256(folder / f"{name}-{dtype}" / "adapter" / ADAPTER) for name in ("straight", "broken")]
    assert_the_same((straight["training"], hashes[0]), (sittings[-1]["training"], hashes[1]))


@pytest.mark.slow
@forks
def test_after_kill_9_at_random_moments(tmp_path):
    """One run killed before its first checkpoint is sealed, then 30 times, in turn at any moment of its first
    steps, as soon as a checkpoint appears, and at any moment after a whole one.
    """
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (tmp_path / "log.txt").read_text(encoding="utf-8") + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] == KILLS
    assert told["broken"] >= 1  # that of `dies_before_sealing`, and what the moments met
    assert told["broken"] == len(list((tmp_path / "killed" / "checkpoints").glob("broken-*")))
    assert told["killed"][0]["steps"] == STEPS
    assert told["killed"][0]["resumes"]
    assert_the_same(told["straight"], told["killed"])


def dies_before_sealing():
    """A callback that kills its process when a checkpoint's files are written, and not its manifest."""
    from transformers import TrainerCallback

    class Dies(TrainerCallback):
        def on_save(self, *args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)

    return Dies()


def child(log, run, **args):
    """A sitting in a child process, whose output goes to `log`; its result goes beside the run."""
    number = os.fork()
    if number:
        return number
    try:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        result = finish(run, **args, **KILLED)
        run.folder.with_suffix(".json").write_text(json.dumps(result), encoding="utf-8")
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def killed(log, run, moment):
    """Whether a sitting was killed, at a `moment` after its training began, before it ended by itself."""
    from transformers import TrainerCallback

    began, begins = os.pipe()

    class Begins(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            os.write(begins, b".")

    number = child(log, run, callbacks=[Begins()])
    os.close(begins)
    if os.read(began, 1):  # else it ended before
        moment()
    os.kill(number, signal.SIGKILL)
    os.close(began)
    return os.WIFSIGNALED(os.waitpid(number, 0)[1])


def appears(run, count=1, seconds=math.inf):
    """Wait for so many checkpoints more, the last one's files are still being written, or for so long.

    With both, as the machine may be faster than when a step was timed.
    """
    known, end = set(run.checkpoints.glob("checkpoint-*")), time.monotonic() + seconds
    while time.monotonic() < end and len(set(run.checkpoints.glob("checkpoint-*")) - known) < count:
        time.sleep(0.001)


def kill_again_and_again(folder):
    """Train one run straight and one that is killed 30 times; print how they ended."""
    from transformers import Trainer  # noqa: F401  # here, so that no child has to load it

    dice, preset = random.Random(3407), recipe.load_preset("smollm2-135m")
    straight, broken = (create_run(folder / name, preset) for name in ("straight", "killed"))
    with (folder / "log.txt").open("wb") as log:
        began = time.monotonic()
        os.waitpid(child(log, straight), 0)
        step_s = (time.monotonic() - began) / STEPS  # with its checkpoint
        moments = [
            lambda: appears(broken, 2, dice.uniform(0, 2 * step_s)),
            lambda: appears(broken),
            lambda: (appears(broken, 2), appears(broken, 2, dice.uniform(0, 2 * step_s))),
        ]
        os.waitpid(child(log, broken, before=[dies_before_sealing()]), 0)
        kills = sum(killed(log, broken, moments[number % 3]) for number in range(KILLS))
        os.waitpid(child(log, broken), 0)
    said = (folder / "log.txt").read_text(encoding="utf-8")
    results = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("straight", "killed")}
    print(json.dumps({"kills": kills, "broken": said.count("is not whole"), **results}))


if __name__ == "__main__":
    kill_again_and_again(Path(sys.argv[1]))

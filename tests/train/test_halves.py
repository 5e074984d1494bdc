"""Two processes, half of a batch each, give what one gives; the second one's troubles are the first one's."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finelab import machine, resources
from finelab.data import IGNORE
from finelab.errors import LabError
from finelab.run import create_run
from finelab.train import cpu_llama
from finelab.train.cpu_llama import Llama
from finelab.train.documents import SENT, Batch
from finelab.train.halves import Halves
from tests.tiny import base_model, with_adapter
from tests.train.test_cpu_llama import HARDWARE, assert_same, documents_of, flat, model_of, padded
from tests.train.test_resume import assert_the_same, finish, stop_at

KILLED = 1 if sys.platform == "win32" else -signal.SIGKILL  # how a process ends that was killed
LENGTHS = [600, 80, 540, 620, 360, 300]


def batch_of(lengths, trained=0.6, seed=0):
    batch = flat(*documents_of(lengths, trained, seed))
    return Batch.of(batch["input_ids"], batch["labels"], None, batch["position_ids"])


@pytest.fixture(scope="module")
def halves():
    return Halves(Llama(model_of().get_base_model(), torch.float32))


@pytest.fixture
def profile(preset):
    return machine.decide(HARDWARE, preset, "processes=2")


def assert_as_alone(halves, batch):
    """Both processes together give what one of them gives for the whole batch."""
    with torch.no_grad():
        loss, gradients = halves.step(batch)
        alone, by_one = halves.llama.step(batch)
        torch.testing.assert_close(loss, alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(halves.score(batch), alone, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients, by_one, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-6


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 800), min_size=1, max_size=9),
    trained=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradients_are_those_of_one_process(halves, lengths, trained, seed):
    assert_as_alone(halves, batch_of(lengths, trained, seed))


@settings(deadline=None)
@given(
    prompt=st.integers(0, 60),
    lengths=st.lists(st.integers(2, 800), min_size=1, max_size=9),
    threads=st.sampled_from([(1, 1), (2, 1), (4, 4)]),
)
def test_each_document_is_in_one_half_and_whole(prompt, lengths, threads):
    (system,), rest = documents_of([prompt], 0)[0], documents_of(lengths, 1)[0]
    documents = [[*system, *each] for each in rest]
    labels = [[IGNORE] * len(system) + each for each in rest]
    made = flat(documents, labels)
    batch = Batch.of(made["input_ids"], made["labels"], None, made["position_ids"])
    parts = batch.halves(threads)
    if parts is None:
        return
    found = sorted(documents_in(parts[0]) + documents_in(parts[1]))
    learned = [tuple(label for label in each[1:] if label != IGNORE) for each in labels]
    assert found == sorted(zip((tuple(each[:-1]) for each in documents), learned, strict=True))


def documents_in(batch):
    """(what goes in, the labels) of each document."""
    at, found = dict(zip(batch.labelled.tolist(), batch.targets.tolist(), strict=True)), []
    for each in batch.documents:
        rows = batch.sees(each).tolist()
        if rows[-1] in at:
            labels = tuple(at[row] for row in rows if row in at)
            found.append((tuple(batch.ids[rows].tolist()), labels))
    return found


@pytest.mark.parametrize("lengths", [[900], [800, 90], [SENT, SENT]], ids=["one", "unlike", "small"])
def test_what_two_would_not_do_faster_stays_whole(lengths):
    assert batch_of(lengths).halves((1, 1)) is None


def test_the_models_forward_takes_it_in_training_and_in_looks(profile):
    documents, labels = documents_of(LENGTHS, 0.6)
    model, before = model_of(), resources.peak_memory_bytes()
    loss = assert_same(model, profile, documents, labels, "in float32, in two processes")
    with torch.no_grad():
        for batch in (padded(documents, labels), flat(documents, labels)):
            torch.testing.assert_close(model(**batch).loss, loss, rtol=1e-5, atol=1e-6)
    assert resources.peak_memory_bytes() > before + 100e6  # the second one's Python and torch, at least


def test_a_changed_adapter_is_the_second_ones_too(halves):
    batch = batch_of(LENGTHS)
    with torch.no_grad():
        before, _ = halves.step(batch)
        for each in halves.parameters:
            each += 0.1
        assert halves.step(batch)[0] != before
    assert_as_alone(halves, batch)


def test_what_is_kept_for_the_next_step_can_be_given_back(halves):
    batch = batch_of([1200] * 4)
    assert_as_alone(halves, batch)
    taken = halves.second.memory_bytes
    resources.release_memory()
    assert halves.second.memory_bytes < taken - 40e6
    assert_as_alone(halves, batch)


def test_a_second_process_that_was_killed_is_said_and_another_takes_its_place(halves):
    batch = batch_of(LENGTHS)
    assert_as_alone(halves, batch)
    halves.second.process.kill()
    with pytest.raises(LabError, match=rf"has ended \({KILLED}; .* FINELAB_MACHINE=processes=1"):
        halves.step(batch)
    assert_as_alone(halves, batch)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of another process")
def test_memory_that_the_second_process_lacks_is_an_error_of_the_first(halves):
    import resource

    halves = Halves(halves.llama)  # whose second process has not had memory that it could use again
    batch = batch_of(LENGTHS)
    assert_as_alone(halves, batch)
    process = psutil.Process(halves.second.process.pid)
    process.rlimit(resource.RLIMIT_AS, (process.memory_info().vms + 8_000_000, -1))
    with pytest.raises((RuntimeError, MemoryError)) as error:
        halves.step(batch_of([2400] * 4))  # which takes 230 MB more
    assert resources.out_of_memory(error.value)
    assert_as_alone(halves, batch)


def test_an_interrupt_in_the_middle_of_a_step_leaves_nothing_for_the_next(halves):
    one, other = batch_of(LENGTHS), batch_of(LENGTHS, seed=1)
    assert_as_alone(halves, one)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(halves.llama, "loss", lambda *_: signal.raise_signal(signal.SIGINT))
        halves.step(one)
    assert_as_alone(halves, other)


def test_an_interrupt_while_memory_is_given_back_leaves_nothing_for_the_next(halves):
    batch = batch_of(LENGTHS)
    assert_as_alone(halves, batch)
    second = halves.second
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(second, "answer", lambda: signal.raise_signal(signal.SIGINT))
        resources.release_memory()
    assert second.memory_bytes == 0
    assert_as_alone(halves, batch)


@pytest.mark.slow
def test_the_second_process_ends_with_the_first():
    script = """
        import os, signal
        from tests.train.test_halves import *
        halves = Halves(Llama(model_of().get_base_model(), torch.float32))
        halves.step(batch_of(LENGTHS))
        print(halves.second.process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    second = int(done.stdout)
    if psutil.pid_exists(second):
        psutil.Process(second).wait(30)


def test_nothing_is_left_of_it_when_the_model_goes():
    halves = Halves(Llama(model_of().get_base_model(), torch.float32))
    assert_as_alone(halves, batch_of(LENGTHS))
    process = halves.second.process
    del halves
    resources.release_memory()
    assert process.returncode == KILLED


@pytest.mark.slow
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path, preset, profile):
    documents, labels = documents_of([600, 620, 580, 610] * 8, 0.6)
    rows = [{"input_ids": ids, "labels": learned} for ids, learned in zip(documents, labels, strict=True)]

    def args():
        model = with_adapter(base_model()).train()
        assert cpu_llama.install(model, profile).endswith("in two processes")
        return {"model": model, "rows": rows, "collator": collated, "per_device_train_batch_size": 4}

    straight = finish(create_run(tmp_path / "straight", preset), **args())
    run = create_run(tmp_path / "broken", preset)
    stop_at(run, 3, signal.SIGINT, **args())
    resumed = finish(run, **args())
    assert resumed[0]["resumes"] == [3]
    assert_the_same(straight, resumed)


def collated(rows):
    return flat([row["input_ids"] for row in rows], [row["labels"] for row in rows])

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from finelab import LabError
from finelab.data.pool import in_order

ROOT = Path(__file__).parents[2]


def double(chunk):
    return [2 * number for number in chunk]


def where(_chunk):
    return os.getpid()


def die(_chunk):
    os._exit(1)


def fail(chunk):
    raise LabError(f"row {chunk} is wrong")


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 20])
def test_results_come_in_the_order_of_the_chunks(workers, count):
    chunks = ([number, number + 1] for number in range(count))
    expected = [[2 * number, 2 * number + 2] for number in range(count)]
    assert list(in_order(double, chunks, workers)) == expected


def test_many_chunks_are_worked_on_in_other_processes_and_few_are_not():
    assert os.getpid() not in set(in_order(where, range(8), 2))
    assert list(in_order(where, range(1), 2)) == [os.getpid()]


def test_only_a_few_chunks_are_taken_ahead():
    taken = []
    chunks = (taken.append(number) or [number] for number in range(100))
    results = in_order(double, chunks, 2)
    next(results)
    assert len(taken) <= 2 + 2 * 2 + 1
    results.close()


def test_a_users_mistake_in_a_worker_reaches_the_user():
    with pytest.raises(LabError, match="row 0 is wrong"):
        list(in_order(fail, range(8), 2))


def test_a_value_too_deep_to_be_sent_is_worked_on_here():
    deep = []
    for _ in range(900):
        deep = [deep]
    chunks = [[1], [2], [deep], [4], [5]]
    assert list(in_order(len, chunks, 2)) == [1] * 5


def test_a_worker_that_dies_is_said():
    with pytest.raises(LabError, match="a worker process died"):
        list(in_order(die, range(8), 2))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_workers_end_when_their_process_is_killed():
    code = (
        "import os, signal, sys\n"
        "from finelab.data.pool import in_order\n"
        "from tests.data.test_pool import where\n"
        "results = in_order(where, range(100), 2)\n"
        "print(*{next(results) for _ in range(50)}, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    workers = [psutil.Process(int(pid)) for pid in killed.stdout.split() if psutil.pid_exists(int(pid))]
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive

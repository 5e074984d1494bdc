import os

import pytest

from finelab import LabError
from finelab.data.pool import in_order


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

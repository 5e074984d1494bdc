import math

import pytest

from finelab import LabError
from finelab.train import curve, first_and_last
from finelab.train.curve import Growing


def logged(step, loss=1.0, **more):
    return {"loss": loss, "learning_rate": 1e-4, "step": step, **more}


def counted(step, tokens, seconds):
    return logged(step, num_input_tokens_seen=tokens, train_runtime=seconds)


def test_the_curve_leaves_out_the_final_summary():
    log = [
        {"loss": 2.0, "learning_rate": 1e-4, "step": 1},
        {"loss": 1.0, "learning_rate": 0.0, "step": 2},
        {"train_runtime": 3.0, "train_loss": 1.5, "step": 2},
    ]
    assert curve(log)[:3] == ([1, 2], [2.0, 1.0], [1e-4, 0.0])


def test_validation_losses_stand_at_their_own_steps():
    log = [logged(1), logged(2), {"eval_loss": 1.4, "eval_runtime": 3.0, "step": 2}, logged(3)]
    found = curve(log)
    assert (found.validation_steps, found.validation_losses) == ([2], [1.4])
    assert found.steps == [1, 2, 3]


def test_the_token_rate_is_that_between_two_logs():
    assert curve([counted(1, 100, 2.0), counted(2, 400, 4.0)]).tokens_per_s == [50.0, 150.0]


def test_a_log_that_grows_gives_the_same_curve():
    log = [counted(1, 100, 2.0), {"eval_loss": 1.4, "eval_runtime": 3.0, "step": 1}, counted(2, 400, 7.0)]
    growing = Growing()
    for length in range(len(log) + 1):
        assert growing.read(log[:length]) == curve(log[:length])


def test_the_time_of_an_evaluation_is_not_the_trainings():
    log = [
        {"eval_loss": 2.0, "eval_runtime": 5.0, "num_input_tokens_seen": 0, "step": 0},
        counted(1, 100, 7.0),
        {"eval_loss": 1.4, "eval_runtime": 30.0, "num_input_tokens_seen": 100, "step": 1},
        counted(2, 200, 39.0),
    ]
    assert curve(log).tokens_per_s == [50.0, 50.0]


def test_after_a_resume_the_trainers_clock_begins_again():
    log = [counted(1, 100, 2.0), counted(2, 200, 4.0), counted(3, 300, 1.0)]
    assert curve(log).tokens_per_s == [50.0, 50.0, 100.0]


def test_without_counted_tokens_there_is_no_rate():
    assert all(math.isnan(rate) for rate in curve([logged(1), logged(2)]).tokens_per_s)


def test_first_and_last_are_means_of_their_windows():
    assert first_and_last([4.0, 2.0, 1.0, 1.0], window=2) == (3.0, 1.0)
    assert first_and_last([4.0], window=5) == (pytest.approx(4.0), pytest.approx(4.0))


def test_without_any_loss_there_is_no_first_and_no_last():
    with pytest.raises(LabError, match="logged no loss"):
        first_and_last([])

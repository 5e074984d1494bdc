import pytest

from finelab.train import curve, first_and_last


def test_the_curve_leaves_out_the_final_summary():
    log = [
        {"loss": 2.0, "learning_rate": 1e-4, "step": 1},
        {"loss": 1.0, "learning_rate": 0.0, "step": 2},
        {"train_runtime": 3.0, "step": 2},
    ]
    assert curve(log) == ([1, 2], [2.0, 1.0], [1e-4, 0.0])


def test_first_and_last_are_means_of_their_windows():
    assert first_and_last([4.0, 2.0, 1.0, 1.0], window=2) == (3.0, 1.0)
    assert first_and_last([4.0], window=5) == (pytest.approx(4.0), pytest.approx(4.0))

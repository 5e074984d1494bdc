"""The verdict of a sweep, against scipy and against simulated sweeps in which nothing differs."""

import numpy as np
import pytest
from scipy.stats import binom, ttest_rel

from finelab.improve import differences


def test_two_settings_on_identical_rows_are_the_paired_t_test():
    losses = np.array([[2.0, 2.1, 1.9, 2.3], [1.8, 2.0, 1.85, 2.05]])
    nats = np.repeat(losses[:, :, None], 50, axis=2)
    [found] = differences(nats, np.ones(50))
    interval = ttest_rel(losses[1], losses[0]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def simulated(random, settings, seeds, rows, effect=0.0, noisier=None, row_noise=0.1):
    """Losses with an effect of the setting, the seed, their noise, and of each row under each setting."""
    noise = random.normal(0, 0.02, (settings, seeds, 1))
    if noisier is not None:
        noise[noisier] *= 5
    noise += random.normal(0, 0.05, (1, seeds, 1))
    per_row = random.normal(0, row_noise, (settings, 1, rows))
    level = 2 + effect * (np.arange(settings) == settings - 1)[:, None, None]
    return (level + noise + per_row) * np.ones(rows)


@pytest.mark.parametrize(("settings", "seeds"), [(2, 3), (6, 3), (4, 5)])
def test_without_a_difference_at_most_one_sweep_in_twenty_calls_any(settings, seeds):
    random, sweeps = np.random.default_rng(0), 1000
    called = sum(
        any(each.verdict != "within noise" for each in differences(nats, np.ones(60)))
        for nats in (simulated(random, settings, seeds, 60) for _ in range(sweeps))
    )
    assert called <= binom.ppf(0.99, sweeps, 0.05)


@pytest.mark.parametrize(("settings", "noisier"), [(6, None), (6, 5), (6, 0), (3, 2), (2, 1)])
@pytest.mark.parametrize("row_noise", [0.0, 0.1])
def test_a_setting_whose_seeds_differ_five_times_as_much_raises_no_false_alarms(settings, noisier, row_noise):
    """Put together, the noise of all settings called up to 19 % of such sweeps a change."""
    random, sweeps = np.random.default_rng(0), 1000
    called = sum(
        any(each.verdict != "within noise" for each in differences(nats, np.ones(60)))
        for nats in (
            simulated(random, settings, 3, 60, noisier=noisier, row_noise=row_noise) for _ in range(sweeps)
        )
    )
    assert called <= binom.ppf(0.99, sweeps, 0.05)


@pytest.mark.parametrize(("effect", "verdict"), [(-0.4, "better"), (0.4, "worse")])
def test_a_real_difference_is_found_and_only_there(effect, verdict):
    found = differences(simulated(np.random.default_rng(1), 6, 3, 60, effect), np.ones(60))
    assert found[-1].verdict == verdict
    assert [each.verdict for each in found[:-1]] == ["within noise"] * 4

import numpy as np
import pytest

from finelab.evaluate import by_kind, compare, evidence


def rows(nats, tokens=10):
    nats = np.asarray(nats, dtype=float)
    return np.stack([nats, np.full(len(nats), float(tokens))], axis=1)


@pytest.fixture
def noise():
    return np.random.default_rng(0).normal(0, 1, 200)


@pytest.mark.parametrize(
    ("shift", "verdict"), [(-1.0, "improved"), (0.0, "no measurable change"), (1.0, "worse")]
)
def test_the_verdict_follows_the_interval(noise, shift, verdict):
    base = rows(np.full(200, 20.0))
    result = compare(base, rows(20.0 + noise - noise.mean() + shift))
    assert result.verdict == verdict
    assert result.difference == pytest.approx(shift / 10)
    assert result.interval[0] < result.difference < result.interval[1]


def test_the_loss_is_per_token_not_per_row():
    base = np.array([[10.0, 10.0], [90.0, 30.0]])
    assert compare(base, base).base == pytest.approx(100 / 40)


def test_the_interval_is_near_the_normal_one(noise):
    result = compare(rows(np.full(200, 20.0)), rows(20.0 + noise))
    half = 1.96 * noise.std() / np.sqrt(200) / 10
    assert result.interval[1] - result.interval[0] == pytest.approx(2 * half, rel=0.1)


def test_rows_and_families_are_judged_apart(noise):
    base = rows(np.full(200, 20.0))
    tuned = rows(20.0 + 0.1 * noise - np.repeat([1.0, 0.0], 100) + np.repeat([0.0, 1.0], 100))
    results = by_kind(["row"] * 100 + ["family"] * 100, base, tuned)
    kept = evidence(results)
    assert kept["verdict"] == "improved"
    assert kept["rows"] == 100
    assert kept["families"]["verdict"] == "worse"
    assert set(evidence(by_kind(["row"] * 200, base, tuned))) == {
        "rows",
        "heldout_nll_base",
        "heldout_nll_tuned",
        "difference",
        "interval",
        "verdict",
    }

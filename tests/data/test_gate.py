import dataclasses

import pytest

from finelab import LabError
from finelab.data import gate

REPORT = {
    "dropped_share": 0.01,
    "truncated_share": 0.1,
    "tokens_total": 1000,
    "tokens_trained": 400,
    "leaked_share": 0.0,
    "faults": {"rows with nothing to learn": 0},
}


def failing(report, preset, **thresholds):
    data = dataclasses.replace(preset.data, **thresholds)
    found = gate.checks(REPORT | report, data)
    return [check.name for check in found if not check.passed]


def test_good_data_passes(preset):
    found = gate.checks(REPORT, preset.data)
    assert all(check.passed for check in found)
    gate.require(found)


@pytest.mark.parametrize(
    ("report", "thresholds", "name"),
    [
        ({"dropped_share": 0.21}, {}, "dropped_share"),
        ({"dropped_share": 0.11}, {"max_dropped_share": 0.1}, "dropped_share"),
        ({"truncated_share": 0.81}, {}, "truncated_share"),
        ({"tokens_trained": 10}, {}, "trained_share"),
        ({"leaked_share": 0.2}, {"max_leaked_share": 0.1}, "leaked_share"),
        ({"leaked_share": 0.3}, {}, "leaked_share"),
        ({"faults": {"rows with nothing to learn": 1}}, {}, "rows with nothing to learn"),
    ],
)
def test_each_threshold_stops_the_run_by_its_name(preset, report, thresholds, name):
    assert failing(report, preset, **thresholds) == [name]


def test_the_error_says_what_was_measured_what_is_allowed_and_what_to_do(preset):
    found = gate.checks(REPORT | {"truncated_share": 0.85}, preset.data)
    with pytest.raises(LabError) as error:
        gate.require(found)
    for part in ("truncated_share", "0.85", "data.max_truncated_share = 0.8", "model.max_seq_length"):
        assert part in str(error.value)
    assert "leaked_share" not in str(error.value)

"""A short load run; `python -m tests.conformance.load --minutes 5` is the long one."""

import pytest

from tests.conformance.load import measure

pytestmark = pytest.mark.slow


def test_four_clients_get_right_answers_and_leave_nothing_behind(own_server):
    result = measure(own_server, seconds=40, warm=15)
    assert result["faults"] == []
    assert (result["wrong"], result["stuck"], result["errors"]) == (0, 0, 0)
    assert min(result["requests"], result["aborts"], result["tokens"]) > 0
    assert result["rss_end_bytes"] < 1.05 * result["rss_warm_bytes"]

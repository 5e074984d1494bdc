"""A short load run; `python -m tests.conformance.load --minutes 5` is the long one."""

from contextlib import closing

import pytest

from tests.conformance.load import Load, measure

pytestmark = pytest.mark.slow


@pytest.fixture
def half_sent(own_server):
    """A request whose body never comes."""
    address = own_server.address
    with closing(address.connection()) as connection:
        connection.request("POST", "/v1/completions", headers={"Content-Length": "5"} | address.headers)
        yield connection.sock


def test_four_clients_get_right_answers_and_leave_nothing_behind(own_server, half_sent):
    result = measure(own_server, Load.ended, warm=20, end=80)
    assert result["faults"] == []
    assert (result["wrong"], result["stuck"], result["errors"]) == (0, 0, 0)
    assert min(result["requests"], result["aborts"], result["tokens"]) > 0
    assert result["rss_end_bytes"] < 1.05 * result["rss_warm_bytes"]
    assert half_sent.recv(1) == b"", "a request that was sent by half is let go meanwhile"

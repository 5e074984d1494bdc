"""The token and its role, asked of a Hub on this machine; the token itself is never kept."""

import dataclasses

import pytest

from finelab.doctor.gather import hub
from tests.hub.loopback import LoopbackHub, point_client_at

TOKEN, OTHER = "hf_" + "a1B2c3D4e5" * 3, "hf_" + "z9Y8x7W6v5" * 3


@pytest.fixture(autouse=True)
def no_token_here(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "login"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def server(tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub") as server:
        point_client_at(server, monkeypatch)
        yield server


@pytest.mark.parametrize(
    ("role", "scopes", "writes"),
    [
        ("write", (), True),
        ("read", (), True),  # the rule goes by the role
        ("fineGrained", ("ada",), True),
        ("fineGrained", (), False),
    ],
)
def test_the_role_of_a_token(server, role, scopes, writes):
    told = hub.asking(server.token("ada", role, scopes))()
    assert told == {"hub_asked": True, "hub_answer": 200, "hub_role": role, "hub_writes": writes}


@pytest.mark.parametrize(("token", "authorized"), [(TOKEN, True), (None, False)])
def test_a_token_that_the_hub_does_not_know_and_none(server, token, authorized):
    assert hub.asking(token)() == hub.NO_ANSWER | {"hub_answer": 401}
    assert [(each.path, each.authorized) for each in server.requests] == [("/api/whoami-v2", authorized)]


def test_a_hub_with_a_trouble_of_its_own(server):
    server.fail("/api/whoami-v2", status=503)
    assert hub.asking(TOKEN)() == hub.NO_ANSWER | {"hub_answer": 503}


def test_an_answer_that_is_no_json_is_none(server):
    server.fail("/api/whoami-v2", cut=10)
    assert hub.asking(server.token("ada"))() == hub.NO_ANSWER


def test_a_hub_that_does_not_answer_is_waited_for_no_longer_than_said(server, monkeypatch):
    monkeypatch.setattr(hub, "WAIT_S", 0.3)
    server.fail("/api/whoami-v2", delay_s=60)
    assert hub.asking(TOKEN)() == hub.NO_ANSWER
    server.wait_until(lambda: server.busy == 1)  # it still holds its answer


def test_nobody_listens(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert hub.asking(TOKEN)() == hub.NO_ANSWER


def test_offline_nothing_is_asked(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.asking(TOKEN)() == hub.NOT_ASKED
    assert server.requests == []
    assert hub.tokens().facts()["hub_offline"] is True


def test_where_tokens_stand_and_whether_they_differ(tmp_path, monkeypatch):
    file = tmp_path / ".hftoken"
    assert hub.tokens(tmp_path) == hub.Tokens()
    file.write_text(TOKEN)
    assert hub.tokens(tmp_path) == hub.Tokens(TOKEN, (str(file),), False)
    (tmp_path / "login").write_text(TOKEN)
    assert hub.tokens(tmp_path) == hub.Tokens(TOKEN, (str(file), "the Hub login"), False)
    monkeypatch.setenv("HF_TOKEN", OTHER)
    assert hub.tokens(tmp_path) == hub.Tokens(OTHER, ("HF_TOKEN", str(file)), True)


def test_a_file_that_holds_no_token_is_a_problem_unless_another_is_used(tmp_path, monkeypatch):
    (tmp_path / ".hftoken").write_text("password123")
    told = hub.tokens(tmp_path)
    assert told.used is None
    assert "holds no Hub token" in told.problem
    assert "password123" not in told.problem
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub.tokens(tmp_path) == hub.Tokens(TOKEN, ("HF_TOKEN",))


def test_a_file_that_others_can_read_is_named_and_nothing_is_printed(tmp_path, capsys):
    path = tmp_path / ".hftoken"
    path.write_text(TOKEN)
    path.chmod(0o644)
    assert hub.tokens(tmp_path).facts()["token_readable"] == str(path)
    path.chmod(0o600)
    assert hub.tokens(tmp_path).facts()["token_readable"] == ""
    assert capsys.readouterr().out == ""


def test_the_token_is_in_no_text(tmp_path):
    (tmp_path / ".hftoken").write_text(TOKEN)
    told = hub.tokens(tmp_path)
    assert TOKEN in dataclasses.asdict(told).values()
    assert TOKEN not in f"{told!r} {told} {told.facts()}"

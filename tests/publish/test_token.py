import os
import subprocess

import pytest

from finelab import LabError
from finelab.publish.token import check_token, find_tokens, read_token
from tests.hub.loopback import LoopbackHub, point_client_at
from tests.hub.store import Account

TOKEN = "hf_" + "a1B2c3D4e5" * 3


@pytest.fixture(autouse=True)
def no_token_here(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "login"))


@pytest.mark.parametrize(
    "raw",
    [
        TOKEN.encode(),
        f"{TOKEN}\r\n".encode(),
        f"\n\n  {TOKEN}  \n".encode(),
        f'"{TOKEN}"'.encode(),
        f"HF_TOKEN={TOKEN}".encode(),
        f"HF_TOKEN='{TOKEN}'\r\n".encode(),
        TOKEN.encode("utf-8-sig"),
        f"{TOKEN}\r\n".encode("utf-16"),
    ],
)
@pytest.mark.parametrize("name", [".hftoken", "token.txt"])
def test_a_token_file_is_read_however_it_was_written(tmp_path, raw, name):
    (tmp_path / name).write_bytes(raw)
    assert read_token(tmp_path) == TOKEN


def test_the_environment_comes_first(tmp_path, monkeypatch):
    (tmp_path / ".hftoken").write_text("hf_" + "x" * 30, encoding="utf-8")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read_token(tmp_path) == TOKEN


def test_the_hubs_login_comes_last(tmp_path):
    assert read_token(tmp_path) is None
    (tmp_path / "login").write_text(TOKEN, encoding="utf-8")
    assert read_token(tmp_path) == TOKEN


@pytest.mark.parametrize("raw", [b"", b"\n", b"password123", b"hf_short"])
def test_a_file_without_a_token_says_so_and_does_not_show_it(tmp_path, raw):
    (tmp_path / ".hftoken").write_bytes(raw)
    with pytest.raises(LabError) as error:
        read_token(tmp_path)
    assert ".hftoken holds no Hub token" in str(error.value)
    assert "password123" not in str(error.value)


def test_a_token_that_git_would_publish_is_refused(tmp_path):
    (tmp_path / ".hftoken").write_text(TOKEN, encoding="utf-8")
    for command in (["init", "-q"], ["add", "-f", ".hftoken"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    with pytest.raises(LabError, match="is tracked by git") as error:
        read_token(tmp_path)
    assert TOKEN not in str(error.value)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such permissions")
@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o644, True), (0o640, True)])
def test_a_token_that_others_can_read_is_pointed_out(tmp_path, capsys, mode, warned):
    path = tmp_path / ".hftoken"
    path.write_text(TOKEN, encoding="utf-8")
    path.chmod(mode)
    assert read_token(tmp_path) == TOKEN
    said = capsys.readouterr().out
    assert (f"chmod 600 {path}" in said) == warned
    assert TOKEN not in said


@pytest.fixture
def server(tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub") as server:
        point_client_at(server, monkeypatch)
        yield server


@pytest.mark.parametrize(
    ("role", "scopes", "exists"),
    [
        ("write", (), False),
        ("fineGrained", ("alice",), False),
        ("fineGrained", ("alice",), True),
        ("fineGrained", ("alice/model",), True),
    ],
)
def test_a_token_that_may_write_passes_and_says_for_whom(server, capsys, role, scopes, exists):
    if exists:
        server.store.create("alice/model", True, Account("alice"))
    token = server.token("alice", role, scopes)
    assert check_token(token, "model") == "alice"
    said = capsys.readouterr().out
    assert f"alice may push to alice/model with the token hf_…{token[-4:]}" in said
    assert token not in said
    assert server.count("GET", "/api/whoami-v2") == 1


@pytest.mark.parametrize(
    ("role", "scopes", "exists", "said"),
    [
        ("read", (), False, "may only read"),
        ("fineGrained", (), False, "may not write to alice/model"),
        ("fineGrained", ("alice/another",), False, "may not write to alice/model"),
        ("fineGrained", ("alice/another",), True, "may not write to alice/model"),
    ],
)
def test_a_token_that_may_not_write_is_refused_before_the_training(server, role, scopes, exists, said):
    if exists:
        server.store.create("alice/model", True, Account("alice"))
    token = server.token("alice", role, scopes)
    with pytest.raises(LabError, match=said) as error:
        check_token(token, "model")
    assert token not in str(error.value)
    assert "Access Tokens" in str(error.value)


def test_a_token_that_the_hub_does_not_know_is_refused(server):
    with pytest.raises(LabError, match=r"does not accept the token hf_…d4e5.*expired"):
        check_token("hf_" + "a1b2c3d4e5" * 3, "model")


def test_a_machine_that_only_trains_takes_a_token_that_reads(server, capsys, monkeypatch):
    monkeypatch.setenv("FINELAB_PUSHES", "0")
    assert check_token(server.token("alice", "read"), "model") == "alice"
    assert "alice trains here" in capsys.readouterr().out
    with pytest.raises(LabError, match="does not accept the token"):
        check_token("hf_" + "a1b2c3d4e5" * 3, "model")


@pytest.mark.parametrize("status", [429, 500])
def test_a_hub_that_cannot_answer_stops_no_training(server, capsys, status):
    server.fail("/api/whoami-v2", status=status)
    assert check_token(server.token("alice"), "model") is None
    assert "training does not need it" in capsys.readouterr().out


def test_without_network_or_token_the_training_goes_on(server, capsys):
    token = server.token("alice")
    server.__exit__()
    assert check_token(token, "model") is None
    assert "could not be asked" in capsys.readouterr().out
    assert check_token(None, "model") is None
    assert "pushed to a folder" in capsys.readouterr().out


LETTERS = "Ab3dEf6hIj9lMn2pQr5tUv8xYz1BcD4eFgH7"
SECRETS = {
    "hf_": LETTERS[:34],
    "hf_oauth_": "eyJh.bGci_OiJ-" * 3 + "x",
    "hf_jwt_": "eyJh.bGci_OiJ-" * 3 + "x",
    "api_org_": LETTERS[:34],
    "ak-": LETTERS[:22],
    "as-": LETTERS[:22],
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize(
    "around",
    [
        "{}",
        'HF_TOKEN="{}"',
        "login(token='{}')",
        r'"source": ["import os\n{}\n"]',
        r'"token = \"{}\""',
        "https://user:{}@host/x",
    ],
)
def test_tokens_are_found_wherever_they_stand_and_not_shown(kind, around):
    secret = kind + SECRETS[kind]
    text = around.format(secret)
    for content in (text, text.encode(), text.encode("utf-16")):
        (found,) = find_tokens(content)
        shown, _, end = found.partition("…")
        assert kind.startswith(shown)
        assert end == secret[-4:]


@pytest.mark.parametrize(
    "text",
    [
        "hf_hub_download, hf_raise_for_status_of_a_very_long_function_name",
        "hf_xet-1.8.0-cp38-abi3-manylinux_2_17_x86_64.whl",
        "hf_token = os.environ['HF_TOKEN']",
        "sha256-" + "0123456789abcdef" * 4,
        "pandas-" + "0123456789abcdef" * 2,
        "as-needed, ak-47",
        "hf_short",
    ],
)
def test_what_only_looks_like_a_token_is_left_alone(text):
    assert find_tokens(text) == []


def test_a_real_tokenizers_words_are_no_tokens(embedded_folder):
    assert find_tokens((embedded_folder / "tokenizer.json").read_bytes()) == []

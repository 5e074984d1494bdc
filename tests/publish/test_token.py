import subprocess

import pytest

from finelab import LabError
from finelab.publish import read_token

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

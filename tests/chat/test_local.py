"""The server that a notebook starts."""

import httpx
import pytest

from finelab.chat import start_server
from finelab.errors import LabError
from finelab.run import create_run
from tests.conformance.server import write_adapters, write_tiny_base


@pytest.mark.slow
def test_why_it_did_not_start_is_said_in_any_alphabet(tmp_path, preset, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")  # what Windows takes for a file
    run = create_run(tmp_path / "läuft-🦙", preset)
    with pytest.raises(LabError, match=r"läuft-🦙.* is not there yet: run notebook 03_train"):
        start_server(run)


@pytest.mark.slow
def test_it_needs_no_key_also_where_one_is_exported(run, tmp_path, monkeypatch):
    """The notebook sends none, and `lab.py run` neither."""
    monkeypatch.setenv("FINELAB_API_KEYS", "a-key-of-another-server")
    write_tiny_base(tmp_path / "base")
    write_adapters(tmp_path / "base", tmp_path)
    (tmp_path / "tuned").rename(run.adapter)
    server = start_server(run)
    try:
        models = httpx.get(f"{server.url}/v1/models", timeout=60).raise_for_status().json()["data"]
    finally:
        server.stop()
    assert [each["id"] for each in models] == ["base", "tuned"]

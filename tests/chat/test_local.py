"""The server that a notebook starts."""

import pytest

from finelab.chat import start_server
from finelab.errors import LabError
from finelab.run import create_run


@pytest.mark.slow
def test_why_it_did_not_start_is_said_in_any_alphabet(tmp_path, preset, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")  # what Windows takes for a file
    run = create_run(tmp_path / "läuft-🦙", preset)
    with pytest.raises(LabError, match=r"läuft-🦙.* is not there yet: run notebook 03_train"):
        start_server(run)

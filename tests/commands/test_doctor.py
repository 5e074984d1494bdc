"""The doctor's report: the machine, the lock, and never the token itself."""

from importlib import metadata

from finelab.__main__ import main
from finelab.commands.doctor import out_of_step


def test_the_report_covers_the_machine_and_the_profile(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "secret" * 6)
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    for label in ("lock", "packages", "card", "memory", "disk", "Hub token     found", "dtype"):
        assert label in told
    assert "secret" not in told


def test_packages_out_of_step_are_named():
    pytest_version = metadata.version("pytest")
    pins = f"""
# a comment
pytest=={pytest_version}
rich==0.0.1
no-such-package==1.0
appnope==1.0 ; sys_platform == "nowhere"
"""
    assert out_of_step(pins) == [
        f"rich {metadata.version('rich')} instead of ==0.0.1",
        "no-such-package is missing",
    ]

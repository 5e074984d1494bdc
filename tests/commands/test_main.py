"""The command line as such: help without packages, exit codes, arguments handed on."""

import subprocess
import sys
from pathlib import Path

import pytest

from finelab.__main__ import COMMANDS, build_parser, main
from finelab.commands import doctor

ROOT = Path(__file__).parents[2]


def test_help_works_before_any_package_is_installed():
    told = subprocess.run(
        [sys.executable, "-S", "-m", "finelab", "--help"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
    )
    assert told.returncode == 0, told.stderr
    for name, module in COMMANDS.items():
        assert name in told.stdout
        assert module.__doc__.split()[0] in told.stdout


def test_pytest_arguments_are_handed_on_in_order():
    parser = build_parser()
    args, rest = parser.parse_known_args(["test", "-k", "one and two", "tests/lab", "-x"])
    assert args.rest == []
    assert rest == ["-k", "one and two", "tests/lab", "-x"]


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--recipes", "x"])
    assert ended.value.code == 2
    assert "--recipes" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "default_recipe", interrupted)
    assert main(["doctor"]) == 130
    assert "run the same command again to go on" in capsys.readouterr().err


def test_pytest_runs_in_the_repository_and_its_exit_code_is_kept(tmp_path):
    command = [sys.executable, "-m", "finelab", "test", "--collect-only", "-q", "tests/lab"]
    told = subprocess.run(
        [*command, "-k", "nothing_at_all"], cwd=tmp_path, capture_output=True, encoding="utf-8"
    )
    assert told.returncode == 5, told.stdout + told.stderr  # pytest's own code for "no test"

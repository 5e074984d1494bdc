"""The command line as such: help without packages, exit codes, arguments handed on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finelab.__main__ import COMMANDS, build_parser, main
from finelab.commands import doctor

ROOT = Path(__file__).parents[2]
CHAT = """
import runpy, sys
from finelab.commands import chat

class Model:
    def stream(self, messages, tuned):
        yield "a llama: \\U0001f999"

chat.main = lambda args: chat.Talk(Model(), None, True).ask("Hello") or 0
sys.argv = ["finelab", "chat"]
runpy.run_module("finelab", run_name="__main__")
"""


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


def told_with_cp1252(*arguments):
    """What Python says into pipes that are cp1252, as they are on Windows."""
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")


def test_an_answer_with_an_emoji_can_go_into_a_file():
    told = told_with_cp1252("-c", CHAT)
    assert told.returncode == 0, told.stderr
    assert told.stdout == "a llama: \U0001f999\n"


def test_an_error_names_what_is_in_another_alphabet():
    told = told_with_cp1252("-m", "finelab", "chat", "--run", "лама")
    assert told.returncode == 2
    assert told.stderr.startswith("finelab: --run лама: a run has a name")


def test_pytest_runs_in_the_repository_and_its_exit_code_is_kept(tmp_path):
    command = [sys.executable, "-m", "finelab", "test", "--collect-only", "-q", "tests/lab"]
    told = subprocess.run(
        [*command, "-k", "nothing_at_all"], cwd=tmp_path, capture_output=True, encoding="utf-8"
    )
    assert told.returncode == 5, told.stdout + told.stderr  # pytest's own code for "no test"

"""The set-up scripts: what they choose, that they can be run again, and that they end in the doctor."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import lab
from tests import needs

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "environment"

# A lab.py that notes how it was called and makes an environment whose Python notes how it was called.
LAB = """
import os, pathlib, sys
log = pathlib.Path(os.environ["LOG"])
with log.open("a") as file:
    print("lab.py", *sys.argv[1:], os.environ["FINELAB_VENV"], os.environ["HF_HOME"], file=file)
python = pathlib.Path(os.environ["FINELAB_VENV"], "bin", "python")
python.parent.mkdir(parents=True, exist_ok=True)
python.write_text('#!/bin/sh\\necho python "$@" >> "$LOG"\\n')
python.chmod(0o755)
print("all is well")
sys.exit(int(os.environ.get("CODE", "0")))
"""


class Machine:
    """A Paperspace machine: a home, the repository's folder and two disks with some room."""

    def __init__(self, folder):
        self.home, self.repository, self.log = folder / "home", folder / "notebooks" / "lab", folder / "log"
        programs = folder / "bin"
        for each in (self.home, self.repository / "environment", programs):
            each.mkdir(parents=True)
        shutil.copy(SCRIPTS / "setup-paperspace.sh", self.repository / "environment")
        (self.repository / "lab.py").write_text(LAB, encoding="utf-8")
        df = programs / "df"
        df.write_text('#!/bin/sh\nfor path; do :; done\necho Avail\n[ $path = . ] && echo " ${HERE}G" || ')
        df.write_text(df.read_text() + 'echo " ${STORAGE}G"\n')
        df.chmod(0o755)
        self.variables = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.home),
            "LOG": str(self.log),
        }

    def set_up(self, here, storage, **variables):
        """What the script prints, its exit code, and the calls it made."""
        self.log.write_text("")
        done = subprocess.run(
            ["bash", str(self.repository / "environment" / "setup-paperspace.sh")],
            cwd=self.home,  # it finds the repository by itself
            env={**self.variables, "HERE": str(here), "STORAGE": str(storage), **variables},
            capture_output=True,
            encoding="utf-8",
        )
        return done, self.log.read_text(encoding="utf-8").splitlines()

    def in_a_new_terminal(self, name):
        return subprocess.run(
            ["bash", "-c", f'. ~/.bashrc && echo "${name}"'],
            env=self.variables,
            capture_output=True,
            encoding="utf-8",
        ).stdout.strip()


@pytest.fixture
def machine(tmp_path):
    if os.name == "nt" or shutil.which("bash") is None:
        pytest.skip("the script is for Linux and needs bash")
    return Machine(tmp_path)


def test_with_room_everything_goes_where_it_stays(machine):
    done, calls = machine.set_up(here=50, storage=50)
    venv = machine.repository / ".venv"
    assert done.returncode == 0, done.stderr
    assert calls == [
        f"lab.py doctor {venv} /storage/huggingface",
        "python -m ipykernel install --user --name finelab --display-name finelab"
        " --env HF_HOME /storage/huggingface",
        f"lab.py doctor {venv} /storage/huggingface",
    ]
    assert done.stdout.count("all is well") == 1, "the doctor is heard once, at the end"
    assert done.stdout.splitlines()[-1].endswith("in this one after: source ~/.bashrc")
    assert machine.in_a_new_terminal("HF_HOME") == "/storage/huggingface"


def test_small_disks_send_it_to_the_machines_own(machine):
    _, calls = machine.set_up(here=4, storage=4)
    venv, models = machine.home / "finelab-venv", machine.home / ".cache" / "huggingface"
    assert calls[-1] == f"lab.py doctor {venv} {models}"
    assert machine.in_a_new_terminal("FINELAB_VENV") == str(venv)


def test_again_with_less_room_left_keeps_its_place(machine):
    _, first = machine.set_up(here=16, storage=21)
    _, again = machine.set_up(here=6, storage=21)
    assert again == first
    assert len((machine.home / ".bashrc").read_text(encoding="utf-8").splitlines()) == 1


def test_the_users_own_folders_are_kept(machine):
    _, calls = machine.set_up(here=4, storage=4, FINELAB_VENV=str(machine.home / "mine"), HF_HOME="/models")
    assert calls[-1] == f"lab.py doctor {machine.home / 'mine'} /models"


def test_the_exit_code_is_the_doctors(machine):
    done, calls = machine.set_up(here=50, storage=50, CODE="1")
    assert (done.returncode, len(calls)) == (1, 3)


def test_an_environment_that_cannot_be_made_ends_it(machine):
    done, calls = machine.set_up(here=50, storage=50, CODE="2")
    assert done.returncode != 0
    assert len(calls) == 1


# Windows: no PowerShell runs here, so the script is parsed and read


@pytest.fixture
def windows():
    return (SCRIPTS / "setup-windows.ps1").read_text(encoding="utf-8")


def test_the_windows_script_is_powershell(windows):
    reason = needs.lacking("tree-sitter", "tree-sitter-powershell")
    tree_sitter = pytest.importorskip("tree_sitter", reason=reason)
    grammar = pytest.importorskip("tree_sitter_powershell", reason=reason)
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    assert not parser.parse(windows.encode()).root_node.has_error
    assert parser.parse(windows.replace("}", "", 1).encode()).root_node.has_error


def test_the_windows_script_does_without_what_windows_powershell_lacks(windows):
    code = "\n".join(
        line for line in windows.splitlines() if not line.lstrip().startswith(("#", "Write-Host"))
    )
    assert not re.search(r"&&|\|\||\?\?|\?\.| \? ", code)
    # Windows PowerShell reads a file without a byte order mark in the system's own code page
    assert windows.isascii()


def test_the_windows_script_ends_in_the_doctor(windows):
    *_, call, end = windows.splitlines()
    assert (call, end) == ("& $python[0] @rest lab.py doctor", "exit $LASTEXITCODE")


def test_the_windows_script_takes_the_pythons_and_drivers_that_the_lab_takes(windows):
    (_, oldest), (_, newest) = lab.OLDEST, lab.NEWEST
    served = {f"3.{minor}" for minor in range(oldest, newest + 1)}
    assert set(re.findall(r'"-(3\.\d+)"', windows)) == served
    assert set(re.search(r"-in (.*)\)", windows)[1].replace('"', "").split(", ")) == served
    readme = (SCRIPTS / "README.md").read_text(encoding="utf-8")
    least = re.search(r"needs an NVIDIA driver (\d+) or newer", readme)[1]
    assert f"-lt {least})" in windows

"""lab.py: says what is wrong before it installs, and makes, keeps and repairs an environment."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

import lab
from finelab.__main__ import COMMANDS

ROOT = Path(lab.__file__).parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("lab") / "repository"


@pytest.fixture
def repository(place):
    return write_repository(place)


def write_repository(place):
    """A repository whose lock is one small package."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "environment").mkdir(parents=True)
    (place / "environment" / "cpu.txt").write_text("six==1.17.0\n", encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def environment(place):
    """The repository's environment, made once and put aside."""
    lab.install(write_repository(place), place / ".venv", "cpu")
    return (place / ".venv").rename(place.with_name("environment"))


@pytest.fixture
def installed(environment, repository):
    """Where it was made: an environment has its own path in it."""
    return shutil.copytree(environment, repository / ".venv", symlinks=True)


def call(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "lab.py"), *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, **environment},
    )


def starts(venv, code):
    return subprocess.run([lab.python_of(venv), "-c", code], cwd=venv).returncode == 0


def test_an_old_python_can_parse_it():
    ast.parse((ROOT / "lab.py").read_text(encoding="utf-8"), feature_version=(3, 6))


def test_it_needs_nothing_but_the_standard_library():
    tree = ast.parse((ROOT / "lab.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module.split(".")[0] for node in imports if isinstance(node, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 15), (3, 10, 13), (3, 14, 0)])
def test_an_unsupported_python_is_told_which_to_use(version):
    with pytest.raises(lab.SetupError, match=rf"Python {version[0]}\.{version[1]}, .*3\.11"):
        lab.check_python(version)


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 4), (3, 13, 9)])
def test_a_supported_python_goes_on(version):
    lab.check_python(version)


@pytest.mark.parametrize(
    ("system", "nvidia", "paperspace", "lock"),
    [
        ("Linux", True, False, "cuda"),
        ("Linux", False, False, "cpu"),
        ("Linux", True, True, "paperspace"),
        ("Linux", False, True, "cpu"),
        ("Windows", True, False, "windows"),
        ("Windows", False, False, "cpu"),
        ("Darwin", False, False, "cpu"),
    ],
)
def test_the_lock_fits_the_machine(system, nvidia, paperspace, lock):
    assert lab.choose_lock(system, nvidia, paperspace) == lock


def test_a_lock_may_be_forced_and_else_the_installed_one_stays(tmp_path, monkeypatch):
    (tmp_path / lab.STAMP).write_text('{"lock": "paperspace"}', encoding="utf-8")
    monkeypatch.delenv("FINELAB_LOCK", raising=False)
    assert lab.lock_for(tmp_path) == "paperspace"
    monkeypatch.setenv("FINELAB_LOCK", "cpu")
    assert lab.lock_for(tmp_path) == "cpu"


def test_every_lock_that_can_be_chosen_is_there():
    for lock in ("cpu", "cuda", "windows", "paperspace"):
        assert lab.wanted_stamp(ROOT, lock)["lock"] == lock


def test_torch_comes_as_the_build_for_the_machine():
    linux = lab.torch_sources("cpu", "Linux", "torch==2.13.0")
    assert lab.TORCH_INDEX["cpu"] in linux[0]
    assert linux[1] == ["torch==2.13.0"]  # with its dependencies: it does not import without
    assert lab.torch_sources("cpu", "Darwin", "torch==2.13.0") == [["--no-deps", "torch==2.13.0"]]
    assert lab.torch_sources("cuda", "Linux", "torch==2.13.0") == [["--no-deps", "torch==2.13.0"]]
    (windows,) = lab.torch_sources("windows", "Windows", "torch==2.13.0")
    assert lab.TORCH_INDEX["windows"] in windows  # never the CPU build beside a card


@pytest.mark.parametrize(
    ("system", "machine"), [("Linux", "aarch64"), ("Darwin", "x86_64"), ("Windows", "ARM64")]
)
def test_a_processor_without_packages_is_told(system, machine):
    with pytest.raises(lab.SetupError, match=f"made for {system} {machine}, and the lab's packages"):
        lab.check_machine(system, machine)


@pytest.mark.parametrize(
    ("system", "machine"), [("Linux", "x86_64"), ("Darwin", "arm64"), ("Windows", "AMD64")]
)
def test_a_processor_with_packages_goes_on(system, machine):
    lab.check_machine(system, machine)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
         "the disk is full"),
        ("WARNING: Retrying: NewConnectionError('<pip>: Failed to establish a new connection')",
         "no network"),
        ("ERROR: No matching distribution found for nonsense==1", "No matching distribution"),
        ("HINT: This error might have occurred since this system does not have Windows Long Path support "
         "enabled.", "shorter folder"),
    ],
)  # fmt: skip
def test_a_failed_pip_is_explained(line, sentence):
    assert sentence in lab.explain(["Collecting something", line, ""])


def test_the_commands_are_those_of_the_library():
    assert set(lab.COMMANDS) == set(COMMANDS)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("run", "--help")])
def test_help_installs_nothing(tmp_path, arguments):
    told = call(*arguments, FINELAB_VENV=str(tmp_path / "venv"))
    assert told.returncode == 0
    assert "run" in told.stdout
    assert not (tmp_path / "venv").exists()


def test_what_lies_in_the_users_folder_is_not_run(tmp_path, monkeypatch):
    for name in ("queue.py", "finelab.py"):
        (tmp_path / name).write_text("raise SystemExit('mine was run')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    told = call("run", "--help", FINELAB_VENV=str(tmp_path / "venv"))
    assert (told.returncode, told.stderr) == (0, "")


def test_an_unknown_command_is_named_and_installs_nothing(tmp_path):
    told = call("trian", FINELAB_VENV=str(tmp_path / "venv"))
    assert told.returncode == 2
    assert told.stderr.startswith("finelab: there is no command 'trian'; there are: run, ")
    assert not (tmp_path / "venv").exists()


def test_an_unknown_lock_is_named(tmp_path):
    told = call("doctor", FINELAB_VENV=str(tmp_path / "venv"), FINELAB_LOCK="amiga")
    assert told.returncode == 2
    assert "FINELAB_LOCK to one of: cpu, cuda, paperspace, windows" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_place_that_cannot_hold_the_environment_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    told = call("doctor", FINELAB_VENV=str(tmp_path / "file" / "venv"))
    assert told.returncode == 2
    assert "cannot write into" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_folder_with_other_files_is_left_as_it_is(tmp_path):
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    told = call("doctor", FINELAB_VENV=str(tmp_path), FINELAB_LOCK="cpu")
    assert told.returncode == 2
    assert "thesis.txt" in told.stderr and "nothing was touched" in told.stderr
    assert "Traceback" not in told.stderr
    assert thesis.read_text() == "years of work"


@pytest.mark.slow
def test_an_environment_whose_making_was_cut_off_is_made_anew(repository, installed):
    """Killed while the old one was removed: half of it is there, under a stamp of no lock."""
    (installed / lab.STAMP).write_text('{"lock": ""}')
    (installed / "pyvenv.cfg").unlink()
    lab.install(repository, installed, "cpu")
    assert lab.is_ready(repository, installed, "cpu")
    assert starts(installed, "import six")


@pytest.mark.slow
def test_installing_leaves_a_working_environment_and_a_stamp(repository, installed):
    assert starts(installed, "import six; assert six.__version__ == '1.17.0'")
    assert lab.is_ready(repository, installed, "cpu")
    assert starts(installed, f"import sys; assert sys.path.count({str(repository)!r}) == 1")
    assert "six" in (installed / lab.LOG).read_text(encoding="utf-8")


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_the_library_is_found_in_a_folder_of_any_letters(tmp_path, locale):
    """Before 3.13 Python reads finelab.pth in the locale's encoding, and does not start when it cannot."""
    place, venv = tmp_path / "Ádám Łukasz's", tmp_path / "venv"
    (place / "finelab").mkdir(parents=True)
    (place / "finelab" / "__init__.py").write_text("print('found')\n", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    lab.link(place, venv)
    told = subprocess.run(
        [str(lab.python_of(venv)), "-X", "utf8=0", "-c", "import finelab"],
        cwd=venv,
        env={**os.environ, "LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": ""},
        capture_output=True,
        encoding="utf-8",
    )
    assert (told.stdout, told.stderr) == ("found\n", "")


def test_an_environment_that_an_older_lab_linked_to_such_a_folder_is_not_ready(tmp_path):
    place, venv = write_repository(tmp_path / "Jürgen"), tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    stamp = lab.wanted_stamp(place, "cpu")
    (venv / lab.STAMP).write_text(json.dumps(stamp), encoding="utf-8")
    assert lab.is_ready(place, venv, "cpu")
    (venv / lab.STAMP).write_text(json.dumps({**stamp, "root": str(place)}), encoding="utf-8")
    assert not lab.is_ready(place, venv, "cpu")


@pytest.mark.slow
def test_a_second_call_does_not_run_pip(repository, installed):
    before = (installed / lab.LOG).read_bytes()
    lab.install(repository, installed, "cpu")
    assert (installed / lab.LOG).read_bytes() == before


@pytest.mark.slow
def test_a_changed_lock_is_installed(repository, installed):
    (repository / "environment" / "cpu.txt").write_text("six==1.16.0\n", encoding="utf-8")
    assert not lab.is_ready(repository, installed, "cpu")
    lab.install(repository, installed, "cpu")
    assert starts(installed, "import six; assert six.__version__ == '1.16.0'")
    assert lab.is_ready(repository, installed, "cpu")


@pytest.mark.slow
def test_the_lock_for_another_machine_gets_a_fresh_environment(repository, installed):
    (repository / "environment" / "cuda.txt").write_text("six==1.17.0\n", encoding="utf-8")
    left_over = installed / "left-over"
    left_over.touch()
    lab.install(repository, installed, "cuda")
    assert lab.is_ready(repository, installed, "cuda")
    assert not left_over.exists()


def install_on_its_own_python(repository, lock):
    """lab.py as it is called where the environment is active: it runs on that one's Python."""
    code = "import lab, pathlib, sys; root = pathlib.Path(sys.argv[1])\n"
    code += "try:\n    lab.install(root, root / '.venv', sys.argv[2])\n"
    code += "except lab.SetupError as error:\n    sys.exit(str(error))"
    return subprocess.run(
        [str(lab.python_of(repository / ".venv")), "-c", code, str(repository), lock],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the environment's Python is a copy there, and stays")
def test_an_active_environment_gets_the_lock_for_another_machine_too(repository, installed):
    (repository / "environment" / "cuda.txt").write_text("six==1.17.0\n", encoding="utf-8")
    done = install_on_its_own_python(repository, "cuda")
    assert done.returncode == 0, done.stderr
    assert lab.is_ready(repository, installed, "cuda")
    assert starts(installed, "import six")


@pytest.mark.slow
def test_an_active_environment_whose_python_is_a_copy_is_left_as_it_is(repository, installed):
    (repository / "environment" / "cuda.txt").write_text("six==1.17.0\n", encoding="utf-8")
    python = lab.python_of(installed)
    if python.is_symlink():  # elsewhere than on Windows
        base = python.resolve()
        python.unlink()
        shutil.copy(base, python)
    told = install_on_its_own_python(repository, "cuda")
    assert told.returncode == 1
    assert "`deactivate` first" in told.stderr and "nothing was touched" in told.stderr
    assert lab.is_ready(repository, installed, "cpu")
    assert starts(installed, "import six")


@pytest.mark.slow
def test_an_installation_that_was_cut_off_is_completed(repository, installed):
    (installed / lab.STAMP).unlink()
    assert not lab.is_ready(repository, installed, "cpu")
    lab.install(repository, installed, "cpu")
    assert lab.is_ready(repository, installed, "cpu")


@pytest.mark.slow
def test_an_environment_whose_python_is_gone_is_made_anew(repository, installed):
    lab.python_of(installed).unlink()
    assert not lab.is_ready(repository, installed, "cpu")
    lab.install(repository, installed, "cpu")
    assert starts(installed, "import six")


@pytest.mark.slow
def test_an_environment_without_pip_is_made_anew(repository, installed):
    (installed / lab.STAMP).unlink()
    pip = lab.site_packages(installed) / "pip"
    pip.rename(installed / "not-pip")
    lab.install(repository, installed, "cpu")
    assert starts(installed, "import six, pip")
    assert not (installed / "not-pip").exists()


@pytest.mark.slow
def test_an_environment_whose_base_python_is_gone_is_not_ready(repository, installed):
    settings = installed / "pyvenv.cfg"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(
        re.sub(r"^home = .+$", "home = /gone/bin", text, flags=re.MULTILINE), encoding="utf-8"
    )
    assert not lab.is_ready(repository, installed, "cpu")


@pytest.mark.slow
def test_a_base_python_that_was_upgraded_in_its_place_is_ready(repository, installed):
    """Homebrew's link stays, and the patch release behind it goes."""
    settings = installed / "pyvenv.cfg"
    text = settings.read_text(encoding="utf-8")
    gone = re.sub(r"^executable = .+$", "executable = /gone/3.12.1/bin/python", text, flags=re.MULTILINE)
    settings.write_text(gone, encoding="utf-8")
    assert lab.is_ready(repository, installed, "cpu")


@pytest.mark.slow
def test_an_environment_that_was_moved_is_made_anew(repository, installed, tmp_path):
    """Its scripts name the place where they were made."""
    moved = tmp_path / "another place" / "venv"
    moved.parent.mkdir()
    installed.rename(moved)
    place = repository.rename(tmp_path / "another place" / "repository")
    assert not lab.is_ready(place, moved, "cpu")
    lab.install(place, moved, "cpu")
    assert lab.is_ready(place, moved, "cpu")
    pip = moved / ("Scripts/pip.exe" if os.name == "nt" else "bin/pip")
    told = subprocess.run([str(pip), "--version"], capture_output=True, encoding="utf-8", check=True)
    assert str(moved) in told.stdout


@pytest.mark.parametrize("arguments", [["doctor"], ["--help"], ["run", "--help"]])
def test_another_python_runs_what_is_installed(tmp_path, monkeypatch, arguments):
    """On Windows `py -3.12` sets up and `python` may be 3.14: nothing is installed again, or refused."""
    environment = lab.wanted_stamp(ROOT, "cpu")
    venv = tmp_path / "venv"
    lab.python_of(venv).parent.mkdir(parents=True)
    lab.python_of(venv).touch()
    (venv / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).parent}\n", encoding="utf-8")
    (venv / lab.STAMP).write_text(json.dumps(environment), encoding="utf-8")
    started = []
    monkeypatch.setenv("FINELAB_VENV", str(venv))
    monkeypatch.setattr(lab, "start", lambda python, arguments: started.append((python, arguments)) or 0)
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    monkeypatch.setenv("PYTHONPATH", "")  # so that it is put back after the test
    assert lab.main(arguments) == 0
    assert started == [(lab.python_of(venv), arguments)]


def test_help_on_an_unsupported_python_says_which_to_use(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FINELAB_VENV", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    assert lab.main(["--help"]) == 2
    assert "this is Python 3.14" in capsys.readouterr().err


@pytest.mark.slow
def test_a_lock_that_cannot_be_installed_is_one_sentence(repository):
    lock = repository / "environment" / "cpu.txt"
    lock.write_text("six==1.17.0\nsix-of-nothing==0.0.1\n", encoding="utf-8")
    venv = repository / ".venv"
    with pytest.raises(lab.SetupError, match=r"six-of-nothing==0\.0\.1.*install\.log"):
        lab.install(repository, venv, "cpu")
    assert not lab.is_ready(repository, venv, "cpu")
    lock.write_text("six==1.17.0\n", encoding="utf-8")
    lab.install(repository, venv, "cpu")
    assert lab.is_ready(repository, venv, "cpu")


def test_the_environment_of_a_run_at_work_is_left_as_it_is(repository):
    lock = repository / "runs" / "mine" / ".training.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock), pytest.raises(lab.SetupError, match=r"mine is at work.*wait for it, or stop it"):
        lab.install(repository, repository / ".venv", "cpu")
    assert not (repository / ".venv" / "pyvenv.cfg").exists()
    lab.require_idle(repository / "runs")  # what it left is no run at work


@pytest.mark.slow
def test_two_at_once_install_one_after_the_other(repository):
    code = (
        "import lab, pathlib, sys; root = pathlib.Path(sys.argv[1]); lab.install(root, root / '.venv', 'cpu')"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(repository)], cwd=ROOT) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    log = (repository / ".venv" / lab.LOG).read_text(encoding="utf-8")
    assert log.count("$ pip install") == 1
    assert starts(repository / ".venv", "import six")

"""Notebooks executed by real kernels: what is kept, what is shown, and how each failure reads."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from finelab import LabError
from finelab.commands.execute import NotebookError, execute, stopping_signals
from finelab.commands.progress import Progress

pytestmark = pytest.mark.slow


@pytest.fixture
def attempt(tmp_path, console):
    """Executes a notebook for a run in `tmp_path/run`, and gives its copy's path."""

    def attempt(notebook, every_s=0.0):
        copy = tmp_path / "run" / "notebooks" / notebook.name
        progress = Progress(console, every_s)
        with progress.stage(notebook.stem, 1):
            execute(notebook, tmp_path / "run", copy, progress)
        return copy

    return attempt


def failed_copy(tmp_path):
    return tmp_path / "run" / "notebooks" / "03_train.failed.ipynb"


def test_the_kernel_knows_the_run_the_folder_and_this_python(attempt, write_notebook, tmp_path):
    notebook = write_notebook(
        "import os, sys; print(os.environ['FINELAB_RUN'], os.getcwd(), sys.executable, sep='|')"
    )
    before = notebook.read_bytes()
    copy = nbformat.read(attempt(notebook), as_version=4)
    run, folder, python = copy.cells[0].outputs[0].text.strip().split("|")
    assert run == str(tmp_path / "run")
    assert Path(folder).samefile(notebook.parent)
    assert python == sys.executable
    assert notebook.read_bytes() == before


def test_progress_lines_are_shown_from_streams_and_displays(attempt, write_notebook, console):
    attempt(
        write_notebook(
            "print('loading'); print('step 1/3  loss 2.0', flush=True)",
            "handle = display({'text/plain': 'step 2/3  loss 1.5'}, raw=True, display_id=True)\n"
            "handle.update({'text/plain': 'step 3/3  loss 1.2'}, raw=True)",
        )
    )
    shown = console.file.getvalue()
    for line in ("step 1/3  loss 2.0", "step 2/3  loss 1.5", "step 3/3  loss 1.2"):
        assert line in shown
    assert "loading" not in shown
    assert re.search(r"03_train: done in \d+:\d\d\b", shown)


def test_a_lab_error_keeps_its_sentence(attempt, write_notebook, tmp_path):
    notebook = write_notebook(
        "from finelab import LabError", "raise LabError('row 3 has no answer; add one.')"
    )
    with pytest.raises(LabError, match=r"^03_train: row 3 has no answer; add one\.$"):
        attempt(notebook)
    assert nbformat.read(failed_copy(tmp_path), as_version=4).cells[0].execution_count == 1
    assert not (tmp_path / "run" / "notebooks" / "03_train.ipynb").exists()


def test_another_error_shows_its_end_its_cell_and_the_failed_copy(attempt, write_notebook, tmp_path):
    with pytest.raises(NotebookError) as raised:
        attempt(write_notebook("x = 1", "x / 0"))
    text = str(raised.value)
    assert "03_train: cell 2 failed" in text
    assert "ZeroDivisionError: division by zero" in text
    assert str(failed_copy(tmp_path)) in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("raise OSError(28, 'No space left on device')", "the disk is full"),
        ("raise MemoryError", "not enough memory in cell 1"),
        ("raise RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED')", "not enough memory in cell 1"),
        ("raise RuntimeError('Triton Error [CUDA]: out of memory')", "not enough memory in cell 1"),
        (
            "raise NotImplementedError('Unsloth cannot find any torch accelerator? You need a GPU.')",
            "there is an NVIDIA card, and torch does not see it",
        ),
        ("import os; os._exit(9)", "the kernel died in cell 1, most often for want of memory"),
    ],
)
def test_a_machine_at_its_limit_is_one_sentence(attempt, write_notebook, code, sentence):
    with pytest.raises(LabError, match=f"^03_train: {sentence}"):
        attempt(write_notebook(code))


def test_a_stage_after_the_training_is_not_sent_back_to_train(attempt, write_notebook):
    notebook = write_notebook("raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')")
    with pytest.raises(LabError, match="run the same command again, which keeps what was trained") as raised:
        attempt(notebook.rename(notebook.with_stem("04_publish")))
    assert "batch" not in str(raised.value)


def test_a_notebook_that_ends_well_leaves_no_failed_copy(attempt, write_notebook, tmp_path):
    with pytest.raises(NotebookError):
        attempt(write_notebook("1 / 0"))
    assert failed_copy(tmp_path).exists()
    assert attempt(write_notebook("1")).exists()
    assert not failed_copy(tmp_path).exists()


RUNNER = """
import sys
from pathlib import Path
from rich.console import Console
from finelab.commands.execute import execute
from finelab.commands.progress import Progress

notebook, run = Path(sys.argv[1]), Path(sys.argv[2])
try:
    execute(notebook, run, run / notebook.name, Progress(Console(), every_s=0))
except KeyboardInterrupt:
    sys.exit(130)
"""
WAITS = """
import os, pathlib, signal, time
try:
    print("step", os.getpid(), flush=True)
    while True:
        time.sleep(0.1)
except KeyboardInterrupt:
    run = pathlib.Path(os.environ["FINELAB_RUN"])
    (run / "saving").touch()
    time.sleep(0.5)  # what a save takes
    (run / "saved").write_text("whole")
"""

WAITS_FOR_LEAVE = """
import os, pathlib, time
print("step", os.getpid(), flush=True)
while not pathlib.Path(os.environ["FINELAB_RUN"], "leave").exists():
    time.sleep(0.1)
"""

DEAF = """
import os, time
print("step", os.getpid(), flush=True)
while True:
    try:
        time.sleep(0.1)
    except KeyboardInterrupt:
        pass
"""


@pytest.fixture
def code():
    """What the runner's first cell does."""
    return WAITS


@pytest.fixture
def started_by():
    """The command that starts the runner."""
    return []


@pytest.fixture
def runner(tmp_path, write_notebook, code, started_by):
    """A runner in its own process, in the midst of a cell; gives it and its kernel's process id."""
    (tmp_path / "run").mkdir()
    notebook = write_notebook(code, "raise SystemError('the next cell was executed')")
    process = subprocess.Popen(
        [*started_by, sys.executable, "-c", RUNNER, str(notebook), str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    line = process.stdout.readline()
    while "step" not in line:
        assert line, "the runner ended before its cell began"
        line = process.stdout.readline()
    yield process, int(line.rpartition("step ")[2])
    process.kill()
    process.wait()
    process.stdout.close()


def wait_for_end(pid):
    """Return when a process that is not this one's child has ended; pytest's time limit bounds it."""
    import psutil

    try:
        psutil.Process(pid).wait()
    except psutil.NoSuchProcess:
        return


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a console, not to a process")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_stop_lets_the_cell_save_and_ends_the_kernel(runner, tmp_path, name):
    number = getattr(signal, name)
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, and by what is started from here")
    process, kernel = runner
    process.send_signal(number)
    assert process.wait() == 130
    wait_for_end(kernel)
    assert (tmp_path / "run" / "saved").read_text() == "whole"
    assert not (tmp_path / "run" / "03_train.ipynb").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no hangup")
@pytest.mark.parametrize(("started_by", "code"), [(["nohup"], WAITS_FOR_LEAVE)])
def test_a_closed_terminal_is_nothing_under_nohup(runner, tmp_path):
    process, _ = runner
    process.send_signal(signal.SIGHUP)
    (tmp_path / "run" / "leave").touch()
    assert process.wait() == 1  # it came to the second cell, which fails
    failed = nbformat.read(tmp_path / "run" / "03_train.failed.ipynb", as_version=4)
    assert failed.cells[1].outputs[0].ename == "SystemError"


def test_signals_are_listened_for_no_longer_than_a_notebook_lasts(attempt, write_notebook):
    before = {number: signal.getsignal(number) for number in stopping_signals()}
    attempt(write_notebook("1"))
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a console, not to a process")
def test_one_stop_that_comes_twice_lets_the_cell_save(runner, tmp_path):
    """A terminal's Ctrl-C reaches a sweep's trial by the terminal and by the sweep."""
    process, kernel = runner
    process.send_signal(signal.SIGINT)
    while not (tmp_path / "run" / "saving").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    wait_for_end(kernel)
    assert (tmp_path / "run" / "saved").read_text() == "whole"


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a console, not to a process")
@pytest.mark.parametrize("code", [DEAF])
def test_a_stop_asked_for_again_and_again_ends_a_stuck_kernel(runner):
    process, kernel = runner
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)  # a user presses on
    assert process.returncode in (130, -signal.SIGINT)  # the last press may meet the runner's own end
    wait_for_end(kernel)


def test_the_kernel_does_not_outlive_a_killed_runner(runner):
    process, kernel = runner
    process.kill()
    wait_for_end(kernel)

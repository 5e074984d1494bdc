"""A full disk, a folder that cannot be written, too little memory: a clear sentence, and nothing lost.

Run as a script this file trains two runs under limits that hold for a whole process.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from finelab import LabError, recipe
from finelab.run import create_run, open_run
from finelab.train import Session
from finelab.train.checkpoint import clear_errors
from tests.tiny import base_model, with_adapter
from tests.train.sittings import at_step, sit, trainer_of

LONG = [{"input_ids": [3] * 512, "labels": [3] * 512} for _ in range(16)]


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """Two runs that met a limit in their third step, of file size and of memory, and what was said."""
    folder, root = tmp_path_factory.mktemp("limited"), Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits on a process")
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("disk", "cannot write disk/checkpoints: the file would be larger than this system allows."),
        ("memory", "not enough memory for batches of 2: close other programs, or set training.per_device"),
    ],
)
def test_a_limit_is_said_in_a_sentence_and_the_previous_checkpoint_kept(limited, fault, sentence):
    folder, said = limited
    assert said[fault].startswith(sentence)
    session = Session(open_run(folder / fault))
    trainer = wide(session)
    sit(session, trainer)
    session.complete(trainer)
    assert session.run.evidence()["training"]["resumes"] == [2]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(28, "No space left on device"), "the disk is full; free some space"),
        (OSError(30, "Read-only file system"), "the folder is on a read-only disk"),
        (
            RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
            "the disk is full",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
            "the disk is full",
        ),
        (RuntimeError("Error while serializing: I/O error: No space left (os error 28)"), "the disk is full"),
        (MemoryError(), "not enough memory for batches of 4"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), "not enough memory for"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "not enough memory for"),
    ],
)
def test_the_libraries_words_become_a_sentence(error, sentence):
    with pytest.raises(LabError, match=sentence), clear_errors(Path("run/checkpoints"), 4):
        raise error


def test_another_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match="shapes cannot be"), clear_errors(Path("checkpoints"), 4):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.fixture
def readonly_run(preset):
    """A run whose checkpoints this user may not write; root is not asked, so it becomes another user."""
    folder = Path(tempfile.mkdtemp(prefix="finelab-"))
    folder.chmod(0o755)
    run = create_run(folder / "run", preset)
    run.checkpoints.mkdir()
    run.checkpoints.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield run
    os.seteuid(user)
    run.checkpoints.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="a folder's write bit means nothing there")
def test_a_read_only_folder_is_named_before_anything_is_trained(readonly_run):
    with pytest.raises(LabError, match="cannot write run/checkpoints: this user may not write there"):
        Session(readonly_run)


def wide(session, callbacks=()):
    """A trainer whose scores of one micro-batch are 67 MB, which no free memory of the process holds."""
    model = with_adapter(base_model(vocab_size=16384))
    return trainer_of(session, callbacks, LONG, model, max_steps=3, gradient_accumulation_steps=1)


def drive(folder):
    """Train two runs, each until it meets a limit that is set in its third step; print what was said."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {"disk": (resource.RLIMIT_FSIZE, 10_000), "memory": (resource.RLIMIT_AS, used)}
    said = {}
    for fault, (kind, limit) in limits.items():
        session = Session(create_run(folder / fault, recipe.load_preset("smollm2-135m")))
        before = resource.getrlimit(kind)
        lower = functools.partial(resource.setrlimit, kind, (limit, before[1]))
        try:
            sit(session, wide(session, [at_step(3, lower)]))
        except LabError as error:
            said[fault] = str(error)
        finally:
            resource.setrlimit(kind, before)
    print(json.dumps(said))


if __name__ == "__main__":
    drive(Path(sys.argv[1]))

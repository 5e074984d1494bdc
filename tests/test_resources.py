"""Memory and disk: what can be had, what is said where there is too little, and what is given back."""

import gc
import platform
import subprocess
import sys
import types
import weakref
from pathlib import Path

import pytest
import torch

from finelab import LabError, resources
from finelab.resources import out_of_memory

GIB = 2**30


def test_too_little_disk_is_one_sentence(tmp_path):
    with pytest.raises(LabError, match="not enough disk for a test"):
        resources.require_free_space(tmp_path / "not" / "there", 10**18, "a test")


def test_a_disk_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr("os.path.exists", lambda path: False)  # as on Windows below a letter without a disk
    with pytest.raises(LabError, match=r"there is no disk .*, on which .*runs should be; connect it"):
        resources.require_free_space(Path("runs"), 1, "a run")


def test_a_folder_that_cannot_be_looked_at_counts_as_not_there(tmp_path):
    folder = tmp_path / ("a" * 300) / "b"  # its name is too long; another user's folder is refused like it
    assert resources.existing_part(folder) == tmp_path


def others_hold(monkeypatch, total, available):
    there = types.SimpleNamespace(total=total, available=available)
    monkeypatch.setattr("psutil.virtual_memory", lambda: there)


def test_a_process_reaches_its_own_memory_and_what_is_available(monkeypatch):
    others_hold(monkeypatch, 2**60, 0)
    own = resources.memory_within_reach()
    assert 0 < own < resources.peak_memory_bytes()
    others_hold(monkeypatch, 2**60, 2**50)
    assert 2**50 < resources.memory_within_reach() < 2**51
    others_hold(monkeypatch, own // 2, 2**50)
    assert resources.memory_within_reach() == own // 2


def test_in_a_container_memory_ends_at_its_limit(monkeypatch):
    others_hold(monkeypatch, 64 * GIB, 32 * GIB)
    monkeypatch.setattr(resources, "container_memory", lambda: (8 * GIB, 6 * GIB))
    assert resources.main_memory() == (8 * GIB, 2 * GIB)


def test_a_deleted_model_that_refers_to_itself_is_released():
    model = torch.nn.Linear(2, 2)
    model.generate = types.MethodType(lambda self: None, model)  # as Unsloth binds its own
    weight = weakref.ref(model.weight)
    gc.disable()  # so that no collection comes by chance
    try:
        del model
        assert weight() is not None
        resources.release_memory()
        assert weight() is None
    finally:
        gc.enable()


@pytest.mark.skipif("glibc" not in platform.libc_ver()[0], reason="it is glibc that is told to keep memory")
def test_freed_memory_is_used_again_without_a_page_fault():
    program = """
import resource, torch
from finelab import resources
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(8, 2**20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
resources.keep_freed_memory()
print(faults())
resources.release_memory()
print(faults())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    given_back, kept, anew = map(int, ended.stdout.split())
    assert kept < given_back / 4
    assert anew > kept  # what a trial of the tuner kept is given back, so that the next one's peak is its own


def test_memory_that_runs_out_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**50)
    assert out_of_memory(failed.value)
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("Triton Error [CUDA]: out of memory"))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"))
    assert not out_of_memory(RuntimeError("shapes do not fit"))

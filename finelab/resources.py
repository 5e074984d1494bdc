"""Memory and disk, as they are now: what is there, what is taken, and giving it back."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import shutil
import sys
import weakref
from pathlib import Path
from typing import Any

from finelab.errors import LabError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT: weakref.WeakSet[Any] = weakref.WeakSet()  # what holds memory for later, and gives it back by `free()`
HELPERS: weakref.WeakSet[Any] = weakref.WeakSet()  # processes' memory: `memory_bytes`, `peak_memory_bytes`
# In the words of Python, torch, CUDA, Triton and cuBLAS
NO_MEMORY = re.compile(r"MemoryError|can't allocate memory|out of memory|ALLOC_FAILED", re.IGNORECASE)


def main_memory() -> tuple[int, int]:
    """Main memory in all and what is available of it, in bytes, or what a container may have."""
    import psutil

    there = psutil.virtual_memory()
    limit, used = container_memory()
    return min(there.total, limit), min(there.available, limit - used)


def memory_within_reach() -> int:
    """The most bytes that this process can hold beside the others: its own and what is available."""
    import psutil

    total, available = main_memory()
    own = psutil.Process().memory_info()
    files = getattr(own, "shared", 0)  # mapped ones, on Linux, which are available to whoever needs memory
    return int(min(total, available + own.rss - files + helpers_memory()))


def helpers_memory() -> int:
    """Bytes that helping processes take now, as they said last, besides what they share with others."""
    return sum(each.memory_bytes for each in HELPERS)


def container_memory(folder: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """A container's limit and what it holds of it, which /proc/meminfo does not know; without one 2**63.

    The cache of files that were read counts as free: it makes way.
    """

    def read(name: str) -> int:
        return int((folder / name).read_text())  # without a limit "max", which is no number

    try:
        parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cache = int(parts["active_file"]) + int(parts["inactive_file"])
        return read("memory.max"), read("memory.current") - cache
    except (OSError, ValueError, KeyError):
        return 2**63, 0


def peak_memory_bytes() -> int:
    """The most memory used so far: reserved by torch on CUDA, else resident here and in helping processes."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    helped = sum(int(each.peak_memory_bytes) for each in HELPERS)
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset) + helped
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak if sys.platform == "darwin" else peak * 1024) + helped  # macOS counts bytes, Linux KiB


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory was not enough, on a card or in the process."""
    import torch

    known = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, known) or NO_MEMORY.search(str(error)) is not None


def release_memory() -> None:
    """Give back what was deleted, on the card too, whose peak begins anew; that of a process never falls.

    `del` alone does not: an Unsloth model refers to itself (its `generate` is bound to it) and waits for the
    garbage collector, torch keeps a card's freed memory, and glibc what `keep_freed_memory` lets it keep.
    What is KEPT for a next step goes too; such a step takes it anew.
    """
    import torch

    gc.collect()
    for each in KEPT:
        each.free()
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def keep_freed_memory() -> None:
    """Let the C library keep what a training step frees for the next step, where it is glibc.

    It would give large blocks back to the system and have them again page by page: the step by hand takes
    0.87 of the time over 64 batches of many lengths, in the same memory.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):  # musl has none
            library.mallopt(M_TRIM_THRESHOLD, 2**30)
            library.mallopt(M_MMAP_THRESHOLD, 2**30)


def existing_part(folder: Path) -> Path:
    """`folder`, or the nearest one above it that is there; LabError when there is none, not even its disk."""
    for path in (folder, *folder.absolute().parents):
        if os.path.exists(path):  # noqa: PTH110 - Path.exists raises where this user may not look
            return path
    raise LabError(
        f"there is no disk {folder.absolute().anchor}, on which {folder} should be; connect it, or choose "
        "another folder."
    )


def free_bytes(folder: Path) -> int:
    """What is free on the disk that holds `folder`, which need not exist yet; LabError without the disk."""
    return shutil.disk_usage(existing_part(folder)).free


def require_free_space(folder: Path, needed_bytes: int, what: str) -> None:
    """LabError when the disk that holds `folder` has less than `needed_bytes` free for `what`."""
    free = free_bytes(folder)
    if free < needed_bytes:
        raise LabError(
            f"not enough disk for {what}: {folder} has {free / 1e9:.2f} GB free and "
            f"{needed_bytes / 1e9:.2f} GB are needed; free some space and run the same command again."
        )

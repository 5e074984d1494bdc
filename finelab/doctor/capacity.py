"""Rules about memory and disk."""

from __future__ import annotations

from finelab.doctor.facts import Facts, gb
from finelab.doctor.finding import Finding
from finelab.doctor.shell import DOCTOR, with_variable
from finelab.recipe import SMALLER_BATCHES
from finelab.run import NEEDED_BYTES

ELSEWHERE = {"Windows": r"D:\finelab"}  # on another disk; what else a disk is called, only its owner knows
EMBEDDED_RECIPE = "smollm2-135m"  # its base is converted into a cache of the lab


def read_only_runs(facts: Facts) -> Finding | None:
    """Nowhere to keep a run."""
    if facts.runs_writable:
        return None
    return Finding("stop", f"{facts.runs} cannot be written", "no run can be kept", _other_runs(facts))


def full_disk(facts: Facts) -> Finding | None:
    """Less than `lab.py run` asks for."""
    if _enough(facts.runs_free_bytes, NEEDED_BYTES):
        return None
    return Finding(
        "stop",
        f"{gb(facts.runs_free_bytes)} are free for {facts.runs}",
        f"a run asks for {gb(NEEDED_BYTES)} and is refused; free some space, or keep runs on another disk:",
        _other_runs(facts),
    )


def short_disk(facts: Facts) -> Finding | None:
    """Enough to begin, not for all that the recipe keeps."""
    if full_disk(facts) or _enough(facts.runs_free_bytes, facts.needed_run_bytes):
        return None
    return Finding(
        "warning",
        f"{gb(facts.runs_free_bytes)} are free for {facts.runs}, and {facts.recipe} keeps "
        f"{gb(facts.needed_run_bytes)}",
        "the disk is full before the model is published; free some space, or keep runs on another disk:",
        _other_runs(facts),
    )


def cache_read_only(facts: Facts) -> Finding | None:
    """The models' cache."""
    if facts.cache_writable:
        return None
    return Finding(
        "stop",
        f"the models' cache {facts.cache} cannot be written",
        "no model can be downloaded or converted",
        _other_cache(facts),
    )


def cache_short(facts: Facts) -> Finding | None:
    """The base model has no room."""
    if _enough(facts.cache_free_bytes, facts.needed_cache_bytes):
        return None
    return Finding(
        "warning",
        f"{gb(facts.cache_free_bytes)} are free for the models' cache {facts.cache}, and the base of "
        f"{facts.recipe} takes {gb(facts.needed_cache_bytes)}",
        "the download ends in the middle; free some space, or keep models on another disk:",
        _other_cache(facts),
    )


def low_memory(facts: Facts) -> Finding | None:
    """Training on the processor takes main memory."""
    if _enough(facts.memory_available_bytes, facts.needed_memory_bytes):
        return None
    return Finding(
        "warning",
        f"{gb(facts.memory_available_bytes)} of memory are free, and {facts.recipe} takes about "
        f"{gb(facts.needed_memory_bytes)} to train here",
        "the machine swaps, or the system ends the kernel; close other programs, or take smaller batches:",
        f"python lab.py run --recipe {facts.recipe} --run small {SMALLER_BATCHES}",
    )


def merge_memory(facts: Facts) -> Finding | None:
    """The merge's share of main memory."""
    if _enough(facts.memory_available_bytes, facts.merge_bytes):
        return None
    return Finding(
        "warning",
        f"{gb(facts.memory_available_bytes)} of memory are free, and the merge takes {gb(facts.merge_bytes)}",
        "the system ends the kernel in notebook 04; close other programs and kernels, then do that stage:",
        "python lab.py run --from publish",
    )


def _enough(there: int | None, needed: int) -> bool:
    return there is None or there >= needed


def _other_runs(facts: Facts) -> str:
    return _elsewhere(facts, "FINELAB_RUNS")


def _other_cache(facts: Facts) -> str:
    return _elsewhere(facts, "FINELAB_CACHE" if facts.recipe == EMBEDDED_RECIPE else "HF_HOME")


def _elsewhere(facts: Facts, variable: str) -> str:
    return with_variable(facts, variable, ELSEWHERE.get(facts.system, "/another/disk/finelab"), DOCTOR)


RULES = (
    read_only_runs,
    full_disk,
    short_disk,
    cache_read_only,
    cache_short,
    low_memory,
    merge_memory,
)

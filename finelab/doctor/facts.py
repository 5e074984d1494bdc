"""What the rules look at: plain values, so that a test can make any machine."""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = "an unknown amount"
Version = tuple[int, int]


@dataclass(frozen=True)
class Card:
    """An NVIDIA card as its driver tells it; memory in bytes, `used_bytes` by all programs; None: unsaid."""

    name: str
    uuid: str
    capability: Version | None
    memory_bytes: int | None
    used_bytes: int | None


@dataclass(frozen=True)
class Facts:
    """One machine, read once; sizes in bytes, paths as text, None where it could not be asked."""

    # system
    system: str  # Linux, Windows or Darwin
    release: str
    machine: str
    python: Version
    pythons: tuple[Version, Version]  # the oldest and the newest that the locks serve
    program: str  # this Python
    root: str  # the repository
    environment: str  # the lab's own, here or not
    translated: bool  # Rosetta
    long_paths: bool
    symlinks: bool
    workers: int  # that tokenise the rows
    openmp: tuple[str, ...]  # Intel's OpenMP libraries that can be loaded into one process
    on_battery: bool
    clock: float  # seconds since 1970
    published: float  # when an installed package came out, as `clock`
    host: str  # of rented machines, one that ends its sessions
    host_hours: float
    # packages
    lock: str | None
    out_of_step: tuple[str, ...]
    foreign: tuple[str, ...]  # packages that would be imported from outside the environment
    kernel: str  # the program of the kernel python3 where it is not this Python
    kernel_registered: bool  # whether a Jupyter that is not the lab's finds the lab's Python
    torch: str | None  # its version
    torch_error: str
    torch_cuda: str | None  # the CUDA its wheel was built for
    torch_sees_card: bool
    override_problem: str  # of FINELAB_MACHINE
    # card
    nvidia_on_bus: bool  # a card, with a driver or without
    nvidia: bool  # a driver
    driver: str | None  # its version
    driver_error: str  # what nvidia-smi said instead
    cards: tuple[Card, ...]  # the one that is used stands first
    visible_devices: str | None  # CUDA_VISIBLE_DEVICES
    container: bool
    lacking_to_compile: tuple[str, ...]  # of what Triton's launchers need, by apt's names
    # what the recipe needs; 0 where that is not known
    recipe: str
    session_hours: float | None
    needed_gpu_bytes: int
    publish_gpu_bytes: int  # the least that notebook 04 takes
    needed_memory_bytes: int
    merge_bytes: int
    needed_run_bytes: int
    needed_cache_bytes: int
    # what there is
    memory_bytes: int | None
    memory_available_bytes: int | None
    runs: str
    runs_writable: bool
    runs_free_bytes: int | None
    cache: str
    cache_writable: bool
    cache_free_bytes: int | None
    # hub
    tokens: tuple[str, ...]  # where a token stands, the one that is used first; never the token
    tokens_differ: bool
    token_problem: str
    token_readable: str  # the file that other users can read
    hub_offline: bool  # HF_HUB_OFFLINE
    hub_asked: bool
    hub_answer: int | None  # the HTTP status; None: no answer
    hub_role: str
    hub_writes: bool  # whether the role lets the token write anywhere; True where that is not known


def gb(size: float | None) -> str:
    """Bytes of a disk as a finding says them: 1.5 GB."""
    return UNKNOWN if size is None else f"{size / 1e9:.1f} GB"


def gib(size: float | None) -> str:
    """Bytes of a memory as a finding says them: 1.5 GiB."""
    return UNKNOWN if size is None else f"{size / 2**30:.1f} GiB"

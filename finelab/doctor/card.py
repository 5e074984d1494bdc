"""Rules about NVIDIA cards."""

from __future__ import annotations

from finelab.doctor.facts import Card, Facts, Version, gib
from finelab.doctor.finding import Finding
from finelab.doctor.shell import DOCTOR, remove, restart, with_variable, without_variable

# The oldest driver for the major version of the CUDA that torch was built for (NVIDIA, "CUDA Compatibility").
DRIVERS = {"12": {"Linux": 525, "Windows": 528}, "13": {"Linux": 580, "Windows": 580}}
LEAST: Version = (7, 0)  # what Unsloth asks for, and the oldest card that the locks' torch has code for
BFLOAT16: Version = (8, 0)
LOCKS = {"Windows": "windows", "Paperspace": "paperspace"}  # by system or host; "cuda" elsewhere
RUN = "python lab.py run"


def is_hidden(facts: Facts) -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every card."""
    return facts.visible_devices is not None and facts.visible_devices.strip() in ("", "-1")


def used_card(facts: Facts) -> Card | None:
    """The card that trains, as its driver tells it."""
    return facts.cards[0] if facts.cards and not is_hidden(facts) else None


def no_driver(facts: Facts) -> Finding | None:
    """A card that only shows a picture."""
    if facts.system != "Linux" or not facts.nvidia_on_bus or facts.nvidia or facts.container:
        return None
    return Finding(
        "warning",
        "there is an NVIDIA card, and no NVIDIA driver",
        "the lab trains on the processor, with the small embedded model; on Ubuntu this installs one:",
        "sudo ubuntu-drivers install && sudo reboot",
    )


def hidden_card(facts: Facts) -> Finding | None:
    """A variable left from a test, or meant."""
    if not facts.nvidia or not is_hidden(facts):
        return None
    return Finding(
        "warning",
        f'CUDA_VISIBLE_DEVICES="{facts.visible_devices}" hides the NVIDIA card',
        "the lab trains on the processor, with the small embedded model",
        without_variable(facts, "CUDA_VISIBLE_DEVICES"),
    )


def cpu_torch(facts: Facts) -> Finding | None:
    """The package index has a CPU build for Windows, and lab.py one for machines without a card."""
    if facts.torch is None or facts.torch_cuda is not None or not facts.nvidia or is_hidden(facts):
        return None
    if low_capability(facts):  # no build helps it
        return None
    if facts.lock == "cpu":
        lock = LOCKS.get(facts.system) or LOCKS.get(facts.host) or "cuda"
        mend = with_variable(facts, "FINELAB_LOCK", lock, DOCTOR)
    else:
        mend = DOCTOR if facts.lock is None else remove(facts, facts.environment, DOCTOR)
    return Finding(
        "stop",
        f"torch {facts.torch} is a CPU build, beside an NVIDIA card",
        "Unsloth refuses to start; with CUDA_VISIBLE_DEVICES=-1 it trains on the processor",
        mend,
    )


def old_driver(facts: Facts) -> Finding | None:
    """A wheel brings its CUDA, but the driver must know it."""
    if facts.driver is None or facts.torch_cuda is None or is_hidden(facts):
        return None
    least = DRIVERS.get(facts.torch_cuda.partition(".")[0], {}).get(facts.system)
    if least is None or int(facts.driver.partition(".")[0]) >= least:
        return None
    windows = facts.system == "Windows"
    return Finding(
        "stop",
        f"NVIDIA driver {facts.driver} is too old for CUDA {facts.torch_cuda}, which needs {least} or newer",
        "torch does not see the card",
        "start https://www.nvidia.com/drivers" if windows else "sudo ubuntu-drivers install && sudo reboot",
    )


def card_outside(facts: Facts) -> Finding | None:
    """A container sees the kernel's driver, but was not given the card."""
    if not facts.container or not facts.nvidia or facts.driver or facts.torch_sees_card or is_hidden(facts):
        return None
    return Finding(
        "stop",
        "the machine has an NVIDIA driver, and this container was not given the card",
        "torch finds no card, and Unsloth refuses to start; start the container with:",
        "docker run --gpus all",
    )


def silent_card(facts: Facts) -> Finding | None:
    """A driver that is there and does not answer."""
    if facts.torch_cuda is None or not facts.nvidia or facts.torch_sees_card or is_hidden(facts):
        return None
    if old_driver(facts) or card_outside(facts):
        return None
    said = f" (nvidia-smi: {facts.driver_error})" if facts.driver_error else ""
    return Finding(
        "stop",
        f"there is an NVIDIA driver, but torch finds no card{said}",
        "nothing can be trained on it; after an update of the driver this lasts until a restart",
        restart(facts),
    )


def low_capability(facts: Facts) -> Finding | None:
    """Cards before Volta."""
    card = used_card(facts)
    if card is None or card.capability is None or card.capability >= LEAST:
        return None
    return Finding(
        "stop",
        f"{card.name} has compute capability {_dotted(card.capability)}",
        f"Unsloth and the lab's torch need {_dotted(LEAST)} (V100, T4, GTX 16, RTX 20 or newer)",
        with_variable(facts, "CUDA_VISIBLE_DEVICES", "-1", RUN),
    )


def no_compiler(facts: Facts) -> Finding | None:
    """Triton compiles the launcher of each kernel, in C; its build for Windows brings a compiler."""
    if facts.system != "Linux" or not facts.lacking_to_compile:
        return None
    if facts.torch_cuda is None or used_card(facts) is None:
        return None
    return Finding(
        "stop",
        f"{' and '.join(facts.lacking_to_compile)} is missing",
        "Unsloth's kernels are compiled at their first use, and the first notebook that computes ends there",
        f"sudo apt install {' '.join(facts.lacking_to_compile)}",
    )


def no_bfloat16(facts: Facts) -> Finding | None:
    """Turing and Volta."""
    card = used_card(facts)
    if card is None or card.capability is None or not LEAST <= card.capability < BFLOAT16:
        return None
    return Finding(
        "note",
        f"{card.name} has no bfloat16",
        "the lab trains in float16 with a scaled loss, which works; should a loss be nan:",
        f"{RUN} --run slower --set training.learning_rate=1e-4",
    )


def small_card(facts: Facts) -> Finding | None:
    """The recipe does not fit, even on an empty card."""
    card = used_card(facts)
    if card is None or card.memory_bytes is None or facts.needed_gpu_bytes <= card.memory_bytes:
        return None
    return Finding(
        "stop",
        f"{facts.recipe} needs {gib(facts.needed_gpu_bytes)}, and {card.name} has {gib(card.memory_bytes)}",
        "training ends at its first step, out of memory; the plan names the nearest setting that fits",
        f"python lab.py plan --recipe {facts.recipe}",
    )


def spill(facts: Facts) -> Finding | None:
    """Other programs hold what the recipe needs; on Windows (WDDM) the driver then moves memory out."""
    card = used_card(facts)
    if card is None or not card.memory_bytes or not card.used_bytes or not facts.needed_gpu_bytes:
        return None
    if small_card(facts) or card.used_bytes + facts.needed_gpu_bytes <= card.memory_bytes:
        return None
    moves = (
        "the driver moves memory of the card into main memory and a step takes ten times as long, of which "
        "the run warns when it happens; close what this lists"
    )
    return Finding(
        "warning",
        f"other programs hold {gib(card.used_bytes)} of {card.name}'s {gib(card.memory_bytes)}, and "
        f"{facts.recipe} needs {gib(facts.needed_gpu_bytes)}",
        moves if facts.system == "Windows" else "training ends out of memory; close what this lists",
        "nvidia-smi",
    )


def publish_spill(facts: Facts) -> Finding | None:
    """Notebook 04 loads 16 bit, which takes more of the card than training in 4 bit, hours later."""
    card = used_card(facts)
    if card is None or not card.memory_bytes or small_card(facts) or spill(facts):
        return None
    if (card.used_bytes or 0) + facts.publish_gpu_bytes <= card.memory_bytes:
        return None
    return Finding(
        "warning",
        f"notebook 04 needs at least {gib(facts.publish_gpu_bytes)} for {facts.recipe} in 16 bit, and of "
        f"{card.name}'s {gib(card.memory_bytes)} other programs hold {gib(card.used_bytes or 0)}",
        "the training fits, and what follows it may not; before notebook 04 close what this lists",
        "nvidia-smi",
    )


def several_cards(facts: Facts) -> Finding | None:
    """The lab uses one."""
    if len(facts.cards) < 2 or facts.visible_devices is not None:
        return None
    used, other = facts.cards[:2]
    return Finding(
        "note",
        f"there are {len(facts.cards)} cards: {', '.join(_described(card) for card in facts.cards)}",
        f"the lab uses one, {used.name}; to take {other.name} instead:",
        with_variable(facts, "CUDA_VISIBLE_DEVICES", other.uuid, RUN),
    )


def _described(card: Card) -> str:
    return f"{card.name} ({gib(card.memory_bytes)})" if card.memory_bytes else card.name


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


RULES = (
    no_driver,
    hidden_card,
    cpu_torch,
    old_driver,
    card_outside,
    silent_card,
    low_capability,
    no_compiler,
    no_bfloat16,
    small_card,
    spill,
    publish_spill,
    several_cards,
)

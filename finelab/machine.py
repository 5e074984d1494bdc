"""What the machine dictates, decided once: each setting is a value and its reason.

`FINELAB_MACHINE="dtype=float32,load_in_4bit=false"` overrides any of them.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from typing import Any

from finelab.errors import LabError
from finelab.recipe import Recipe
from finelab.resources import main_memory

OVERRIDE = "FINELAB_MACHINE"
PACKAGES = (
    "torch",
    "unsloth",
    "trl",
    "peft",
    "transformers",
    "datasets",
    "bitsandbytes",
    "huggingface_hub",
)


@dataclass(frozen=True)
class Hardware:
    """The facts that the decisions rest on; memory in bytes, `capability` as CUDA's (major, minor)."""

    device: str
    name: str
    system: str
    cores: int
    memory_bytes: int
    gpu_memory_bytes: int = 0
    capability: tuple[int, int] = (0, 0)
    cpu_bfloat16: bool = False
    cpu_tiles: bool = False  # bfloat16 is multiplied in tiles, several times as fast
    threads: int = 1  # of torch, in one operation


@dataclass(frozen=True)
class Decision:
    """One setting, its value and why."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Profile:
    """Every setting that depends on the machine; read them as attributes (`profile.bf16`)."""

    hardware: Hardware
    decisions: dict[str, Decision]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["decisions"][name].value
        except KeyError:
            raise AttributeError(name) from None

    @property
    def weights(self) -> str:
        """What the base's weights are held in: "4 bit", or the dtype."""
        return "4 bit" if self.load_in_4bit else str(self.dtype)

    def torch_dtype(self, setting: str = "dtype") -> Any:
        """The dtype that a setting names, as `from_pretrained` takes it."""
        import torch

        return getattr(torch, self.decisions[setting].value)

    def describe(self) -> str:
        """One line per setting: name, value, reason."""
        width = max(map(len, self.decisions))
        return "\n".join(
            f"{name:{width}}  {decision.value!s:9}  {decision.reason}"
            for name, decision in self.decisions.items()
        )


def read_hardware() -> Hardware:
    """Ask torch and the system what this machine is."""
    import torch

    cpu: dict[str, Any] = {
        "system": platform.system(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": main_memory()[0],
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return Hardware(
            device="cuda",
            name=card.name,
            gpu_memory_bytes=card.total_memory,
            capability=(card.major, card.minor),
            **cpu,
        )
    tiles = bool(torch.cpu._is_amx_tile_supported())
    bfloat16 = tiles or bool(torch.cpu._is_avx512_bf16_supported())
    ask = getattr(torch.cpu, "get_capabilities", None)  # torch 2.10, of the CUDA locks, has none
    known = ask().get("cpu_name") if ask else None
    name = str(known or platform.processor() or platform.machine())
    return Hardware(device="cpu", name=name, cpu_bfloat16=bfloat16, cpu_tiles=tiles, **cpu)


def decide(hardware: Hardware, recipe: Recipe, overrides: str = "") -> Profile:
    """Settle every machine-dependent setting for this recipe; a pure function of its arguments."""
    forced = _read_overrides(overrides)
    decisions: dict[str, Decision] = {}

    def settle(name: str, value: Any, reason: str) -> None:
        if name in forced:
            value, reason = forced.pop(name), f"set by {OVERRIDE}"
        decisions[name] = Decision(value, reason)

    settle("device", hardware.device, f"{hardware.name}, {_memory(hardware)}")
    settle("dtype", *_dtype(hardware))
    settle("bf16", decisions["dtype"].value == "bfloat16", "autocast in the dtype above")
    settle("fp16", decisions["dtype"].value == "float16", "autocast above, with a scaled loss")
    settle("merge_dtype", *_merge_dtype(hardware))
    settle("load_in_4bit", *_load_in_4bit(hardware, recipe))
    settle("use_gradient_checkpointing", *_checkpointing(hardware, recipe))
    settle("fast_cpu_step", *_fast_cpu_step(hardware, recipe))
    settle("processes", *_processes(hardware, decisions))
    settle("dataset_num_proc", *_workers(hardware))
    settle("dataloader_num_workers", 0, "the rows are tokenised beforehand")
    if forced:
        unknown = sorted(forced)[0]
        raise LabError(f"{OVERRIDE}: no setting {unknown!r}; there are: {', '.join(decisions)}.")
    _require_possible(hardware, recipe, decisions)
    return Profile(hardware, decisions)


def _require_possible(hardware: Hardware, recipe: Recipe, decisions: dict[str, Decision]) -> None:
    """LabError for what Unsloth would refuse after a download, or do otherwise without a word."""
    start = recipe.lora.init_lora_weights
    if decisions["load_in_4bit"].value and start not in (True, "gaussian", "olora"):
        raise LabError(
            f"lora.init_lora_weights = {start!r} starts from the base's own weights, which are packed in 4 "
            "bit here: --set model.load_in_4bit=false, or another start."
        )
    if hardware.device != "cuda":
        return
    if _card_bfloat16(hardware) and decisions["dtype"].value == "float32":
        raise LabError(
            f"{OVERRIDE}: dtype=float32: Unsloth trains in bfloat16 on {hardware.name} whatever it is asked; "
            "leave it out."
        )
    asked = {"bfloat16", True} & {decisions[name].value for name in ("dtype", "merge_dtype", "bf16")}
    if asked and not _card_bfloat16(hardware):
        raise LabError(f"{OVERRIDE}: {hardware.name} has no bfloat16; take dtype=float16 or dtype=float32.")


def profile(recipe: Recipe) -> Profile:
    """This machine's profile for a recipe, overrides from the environment applied."""
    return decide(read_hardware(), recipe, os.environ.get(OVERRIDE, ""))


def has_cuda() -> bool:
    """Whether torch can use an NVIDIA card here."""
    import torch

    return bool(torch.cuda.is_available())


def versions() -> dict[str, str]:
    """Python and the packages that decide a run's numbers; one that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def evidence(profile: Profile) -> dict[str, Any]:
    """What `evidence.json` keeps of the machine."""
    hardware = profile.hardware
    return {
        "device": f"{hardware.device}: {hardware.name}",
        "system": hardware.system,
        "cores": hardware.cores,
        "memory_bytes": hardware.memory_bytes,
        "gpu_memory_bytes": hardware.gpu_memory_bytes,
        "versions": versions(),
        "profile": {name: decision.value for name, decision in profile.decisions.items()},
    }


def _memory(hardware: Hardware) -> str:
    if hardware.device == "cuda":
        return f"{hardware.gpu_memory_bytes / 2**30:.1f} GiB of GPU memory"
    return f"{hardware.cores} cores, {hardware.memory_bytes / 2**30:.1f} GiB of memory, no CUDA card"


def _dtype(hardware: Hardware) -> tuple[str, str]:
    if hardware.device == "cuda":
        if _card_bfloat16(hardware):
            return "bfloat16", "compute capability 8.0 or newer has it"
        major, minor = hardware.capability
        return "float16", f"compute capability {major}.{minor} has no bfloat16"
    if hardware.cpu_bfloat16:
        return "bfloat16", "this processor has bfloat16 instructions"
    return "float32", "this processor has no bfloat16 instructions"


def _card_bfloat16(hardware: Hardware) -> bool:
    return hardware.capability >= (8, 0)


def _merge_dtype(hardware: Hardware) -> tuple[str, str]:
    if hardware.device == "cuda":
        dtype = "bfloat16" if _card_bfloat16(hardware) else "float16"
        return dtype, "Unsloth reads the 16-bit base itself, shard by shard"
    return "bfloat16", "the base's files are bfloat16; a float32 model would be saved as float16"


def _load_in_4bit(hardware: Hardware, recipe: Recipe) -> tuple[bool, str]:
    if recipe.model.load_in_4bit and hardware.device != "cuda":
        return False, "without a card 4 bit saves nothing and cannot be merged"
    return recipe.model.load_in_4bit, "as the recipe says"


def _checkpointing(hardware: Hardware, recipe: Recipe) -> tuple[str | bool, str]:
    if recipe.lora.use_gradient_checkpointing and hardware.device != "cuda":
        return False, "memory is no limit here, recomputing costs 1.2x the time"
    return recipe.lora.use_gradient_checkpointing, "as the recipe says"


def _fast_cpu_step(hardware: Hardware, recipe: Recipe) -> tuple[bool, str]:
    if hardware.device != "cpu":
        return False, "Unsloth's kernels are faster on a card"
    if not recipe.training.fast_cpu_step:
        return False, "as the recipe says"
    if recipe.lora.lora_dropout or recipe.lora.use_dora:
        return False, "the step by hand is written for LoRA without dropout or DoRA"
    return True, "twice as fast as PyTorch's autograd, where the model allows it"


def _processes(hardware: Hardware, decisions: dict[str, Decision]) -> tuple[int, str]:
    if not decisions["fast_cpu_step"].value:
        return 1, "the second one is for the step by hand"
    if hardware.threads == 1:
        return 1, "torch has one thread"
    if not hardware.cpu_tiles or decisions["dtype"].value != "bfloat16":
        without = "without, two take 0.92 to 0.97 of the time"
        return 1, f"matrix products in tiles would gain by a second; {without}"
    return 2, "each computes half of a batch of long rows: 0.8 of the time of one with all threads"


def _workers(hardware: Hardware) -> tuple[int, str]:
    if hardware.system == "Windows":
        return 1, "Windows starts workers by spawn, which crashes in notebooks"
    return hardware.cores, "one per core"


def _read_overrides(text: str) -> dict[str, Any]:
    words = {"true": True, "false": False}
    found: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = item.partition("=")
        if not equals:
            raise LabError(f"{OVERRIDE}={text}: expected name=value, got {item!r}.")
        found[name] = words.get(value.lower(), int(value) if value.isdecimal() else value)
    for name in ("dtype", "merge_dtype"):
        if found.get(name, "float32") not in ("float32", "float16", "bfloat16"):
            raise LabError(f"{OVERRIDE}: {name} must be float32, float16 or bfloat16.")
    for name in ("bf16", "fp16", "load_in_4bit", "fast_cpu_step"):
        if type(found.get(name, True)) is not bool:
            raise LabError(f"{OVERRIDE}: {name} must be true or false, got {found[name]}.")
    if found.get("use_gradient_checkpointing", True) not in ("unsloth", True, False):
        value = found["use_gradient_checkpointing"]
        raise LabError(f"{OVERRIDE}: use_gradient_checkpointing must be unsloth, true or false, got {value}.")
    if str(found.get("processes", 1)) not in ("1", "2"):
        raise LabError(f"{OVERRIDE}: processes must be 1 or 2, got {found['processes']}.")
    for name in ("dataset_num_proc", "dataloader_num_workers"):
        if type(found.get(name, 1)) is not int:
            raise LabError(f"{OVERRIDE}: {name} must be a whole number, got {found[name]}.")
    return found

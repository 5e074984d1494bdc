"""What a recipe needs by the plan's own arithmetic, and what there is of memory and disk."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from finelab import machine, resources
from finelab.doctor.gather.attempt import attempt
from finelab.embedded.model import EMBEDDED, GGUF_SHA256, cache_folder
from finelab.errors import LabError
from finelab.machine import Profile
from finelab.recipe import Recipe
from finelab.run import RUNS

SAMPLE = 2000  # rows; the longest of them are as long as those of 100,000
UNKNOWN = {
    "needed_gpu_bytes": 0,
    "publish_gpu_bytes": 0,
    "needed_memory_bytes": 0,
    "merge_bytes": 0,
    "needed_run_bytes": 0,
    "needed_cache_bytes": 0,
}


def facts(recipe: Recipe, profile: Profile | None) -> dict[str, Any]:
    """What `Facts` holds of a recipe's needs, of memory and of disk."""
    unknown: tuple[int | None, int | None] = (None, None)
    total, available = attempt(resources.main_memory, unknown)
    cache = attempt(lambda: model_cache(recipe), cache_folder())
    return {
        "recipe": recipe.name,
        "session_hours": recipe.training.session_hours,
        **attempt(lambda: needs(recipe, profile), UNKNOWN),
        "memory_bytes": total,
        "memory_available_bytes": available,
        "runs": str(RUNS),
        "runs_writable": is_writable(RUNS),
        "runs_free_bytes": attempt(lambda: resources.free_bytes(RUNS), None),
        "cache": str(cache),
        "cache_writable": is_writable(cache),
        "cache_free_bytes": attempt(lambda: resources.free_bytes(cache), None),
    }


def profile_for(recipe: Recipe) -> tuple[Profile | None, str]:
    """What this machine dictates for a recipe, or None and what is wrong with FINELAB_MACHINE."""
    try:
        return machine.profile(recipe), ""
    except LabError as error:
        return None, str(error)
    except Exception:  # torch cannot be imported, which is a fact of its own
        return None, ""


def needs(recipe: Recipe, profile: Profile | None) -> dict[str, int]:
    """The plan's memory and disk for this recipe, without its time."""
    from finelab.train.plan import plan_here

    if profile is None:
        return UNKNOWN
    plan = plan_here(recipe, profile, token_counts(recipe))
    on_card = profile.device == "cuda"
    base = plan.disk["base model"]
    return {
        "needed_gpu_bytes": plan.memory_needed_bytes if on_card else 0,
        "publish_gpu_bytes": plan.publish_memory_bytes,
        "needed_memory_bytes": 0 if on_card else plan.memory_needed_bytes,
        "merge_bytes": plan.merge_memory_bytes,
        "needed_run_bytes": sum(plan.disk.values()) - base,
        "needed_cache_bytes": 0 if has_base(recipe) else base,
    }


def token_counts(recipe: Recipe) -> tuple[list[int], list[int]]:
    """Length and trained tokens of rows like the recipe's, before they are tokenised."""
    from finelab.data.read import EMBEDDED as CONVERSATIONS
    from finelab.train.workload import assumed_counts

    longest = recipe.model.max_seq_length
    if recipe.data.sources != (EMBEDDED,):
        return assumed_counts(SAMPLE, longest)
    rows = map(json.loads, CONVERSATIONS.read_text(encoding="utf-8").splitlines())
    characters = [sum(len(turn["value"]) for turn in row["conversations"]) for row in rows]
    lengths = [min(longest, each) for each in characters]  # more tokens than characters there are not
    return lengths, lengths


def has_base(recipe: Recipe) -> bool:
    """Whether the recipe's model lies in its cache."""
    name, revision = recipe.model.model_name, recipe.model.revision
    if name == EMBEDDED:
        return any(cache_folder().glob(f"*{GGUF_SHA256[:12]}"))
    from huggingface_hub import try_to_load_from_cache

    if Path(name).is_dir():
        return True
    return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)


def model_cache(recipe: Recipe) -> Path:
    """Where the recipe's model is kept."""
    if recipe.model.model_name == EMBEDDED:
        return cache_folder()
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_writable(folder: Path) -> bool:
    """Whether this user can write to a folder, or make it."""
    try:
        with tempfile.TemporaryFile(dir=resources.existing_part(folder)):
            return True
    except (OSError, LabError):
        return False

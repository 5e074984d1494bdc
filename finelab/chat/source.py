"""Loading what is served: one base model, the adapters on it, and the facts of their runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from finelab import recipe as recipes
from finelab.chat.engine import BASE, Engine
from finelab.chat.prompt import plain_rows
from finelab.chat.routes import Served
from finelab.data import load_split
from finelab.errors import LabError
from finelab.machine import Profile
from finelab.publish.adapter_files import ADAPTER
from finelab.recipe import Recipe
from finelab.run import Run

T = TypeVar("T")
TUNED = "tuned"
CONTEXT = 4096  # tokens, where the model has more and nobody asked for another length
PER_SOURCE, PROMPTS = 3, 24  # what of the held-out rows is shown as a gallery
FACTS = {
    "data": ("source", "train_rows", "heldout_rows"),
    "adapter": ("trainable_parameters", "total_parameters"),
    "training": ("steps", "first_loss", "last_loss", "seconds", "trained_tokens_per_s"),
    "evaluation": ("heldout_nll_base", "heldout_nll_tuned", "difference", "interval", "verdict"),
}


@dataclass(frozen=True)
class Source:
    """A base model (a folder or a name on the Hub), its adapters by model id, and the runs they came from."""

    base: str
    adapters: Mapping[str, Path]
    recipe: Recipe
    runs: Mapping[str, Run] = field(default_factory=dict)


def of_runs(runs: Sequence[Run]) -> Source:
    """The runs' adapters: the first is "tuned", the others have their runs' names."""
    pairs = ((TUNED if number == 0 else run.name, run) for number, run in enumerate(runs))
    named = by_id(pairs, "serve that run with --run, or give its folder another name")
    adapters = {name: run.require(run.adapter, "03_train") for name, run in named.items()}
    return Source(base_of(runs[0].adapter), adapters, runs[0].recipe, named)


def of_folders(base: str, adapters: Iterable[tuple[str, Path]]) -> Source:
    """A model without a run; the default recipe says how it answers."""
    named = by_id(adapters, "choose another NAME in --adapter NAME=FOLDER")
    return Source(base, named, recipes.load_preset("smollm2-135m"))


def by_id(pairs: Iterable[tuple[str, T]], mend: str) -> dict[str, T]:
    """The pairs by model id; LabError when two have one id, or one has the base's."""
    found: dict[str, T] = {}
    for id_, item in pairs:
        if id_ == BASE or id_ in found:
            taken = "the base model" if id_ == BASE else "another adapter"
            raise LabError(f"an adapter would be served as {id_!r}, which {taken} is called already; {mend}.")
        found[id_] = item
    return found


def peft_names(adapters: Iterable[str]) -> dict[str, str]:
    """PEFT's name for each adapter, which may be no attribute of a layer and hold no dot, as ids may."""
    return {id_: f"adapter_{number}" for number, id_ in enumerate(adapters)}


def serve(
    source: Source, dtype: Any, device: str, max_concurrency: int, max_queue: int, max_model_len: int | None
) -> Served:
    """Load a source for a server."""
    model, tokenizer = load_model(source.base, source.adapters, dtype, device)
    first = next(iter(source.runs.values()), None)
    chat = source.recipe.chat
    return Served(
        engine=Engine(model, tokenizer, max_concurrency, max_queue, peft_names(source.adapters)),
        models=entries(source),
        max_model_len=context_length(model, max_model_len),
        date_string=source.recipe.data.date_string,
        defaults={"temperature": chat.temperature, "min_p": chat.min_p},
        gallery=gallery(first) if first else [],
    )


def load_model(base: str, adapters: Mapping[str, Path], dtype: Any, device: str) -> tuple[Any, Any]:
    """The base model with its adapters under their `peft_names`, and the tokenizer.

    Weights are read from safetensors only. LabError where there are none, when an adapter belongs to another
    base, or the model is of a kind that is not served here.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name, folder in adapters.items():
        if (theirs := base_of(folder)) != base:
            raise LabError(
                f"the adapter {name!r} was trained on {theirs}, not on {base}; serve it by itself."
            )
        if not (folder / ADAPTER).exists():
            raise LabError(f"the adapter {name!r} has no {ADAPTER} in {folder}; other formats are not read.")
    kinds = set(getattr(read_config(base), "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise LabError(f"{base} has layers of kind {sorted(kinds)[0]}, which are not served here; use vLLM.")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, device_map=device, use_safetensors=True
        )
    except OSError as error:
        raise LabError(f"{base} has no whole safetensors weights ({error}); get the model again.") from error
    for module in model.modules():
        if hasattr(module, "compute_dtype"):  # a 4-bit file says bfloat16, also on a card that has none
            module.compute_dtype = dtype
    for name, folder in zip(peft_names(adapters).values(), adapters.values(), strict=True):
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name=name, autocast_adapter_dtype=False)
        else:
            model = PeftModel.from_pretrained(model, folder, adapter_name=name, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # one dtype throughout: casting at each layer would take longer than the product
            parameter.data = parameter.data.to(dtype)
    with_tokenizer = (folder for folder in adapters.values() if (folder / "tokenizer_config.json").exists())
    return model.eval(), AutoTokenizer.from_pretrained(next(with_tokenizer, base))


def read_config(base: str) -> Any:
    """A model's config; LabError when there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise LabError(
            f"{base} is no model that transformers can load; "
            "expected a folder with a config.json, or a name on the Hub."
        ) from error


def serving_dtype(base: str, profile: Profile) -> str:
    """The machine's dtype, unless it is bfloat16 and would round a float16 file's weights."""
    import torch

    if profile.dtype != "bfloat16" or read_config(base).dtype is not torch.float16:
        return str(profile.dtype)
    return "float16" if profile.device == "cuda" else "float32"


def base_of(adapter: Path) -> str:
    """The base model that an adapter was trained on."""
    from peft import PeftConfig

    return str(PeftConfig.from_pretrained(adapter).base_model_name_or_path)


def context_length(model: Any, asked: int | None) -> int:
    """How many tokens prompt and answer may have together; LabError for more than the model knows."""
    known = int(model.config.max_position_embeddings)
    if asked and asked > known:
        raise LabError(f"--max-model-len {asked}: this model knows {known} positions; ask for fewer.")
    return asked or min(known, CONTEXT)


def entries(source: Source) -> dict[str, dict[str, Any]]:
    """What `/v1/models` says of the base and of each adapter."""
    known = next((run.recipe.publish.base_model for run in source.runs.values()), Path(source.base).name)
    found: dict[str, dict[str, Any]] = {BASE: {"root": known, "parent": None, "finelab": {}}}
    for name in source.adapters:
        told = facts(source.runs[name]) if name in source.runs else {}
        found[name] = {"root": name, "parent": BASE, "finelab": told}
    return found


def facts(run: Run) -> dict[str, Any]:
    """A run's recipe and what was measured of it, as far as a reader of the page wants to know."""
    evidence = run.evidence()
    measured = {
        stage: {key: evidence[stage][key] for key in keys if key in evidence[stage]}
        for stage, keys in FACTS.items()
        if stage in evidence
    }
    chosen: dict[str, float] = {"r": run.recipe.lora.r, "lora_alpha": run.recipe.lora.lora_alpha}
    training = run.recipe.training
    chosen |= {"learning_rate": training.learning_rate, "num_train_epochs": training.num_train_epochs}
    return {"run": run.name, "base_model": run.recipe.publish.base_model, "recipe": chosen, **measured}


def gallery(run: Run) -> list[dict[str, Any]]:
    """Some held-out prompts of each source, with the data set's own answers."""
    if not run.heldout_data.exists():
        return []
    return [
        {"source": row["source"], "messages": prompt, "reference": last["content"]}
        for row, (*prompt, last) in plain_rows(load_split(run, "heldout"), PER_SOURCE)
    ][:PROMPTS]

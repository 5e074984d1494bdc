"""What a run is: model, data, LoRA, training. Fields carry the names of the library that takes them."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelab.errors import LabError
from finelab.files import read_text

PRESETS = Path(__file__).parent / "recipes"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
DUPLICATES = ("keep", "exact", "near")
TRUNCATION = ("drop", "cut_turn", "cut")
SAMPLING = ("random", "group_by_length", "sequential")
INIT_LORA_WEIGHTS = (True, "gaussian", "pissa", "pissa_niter_16", "olora", "loftq")
BIAS = ("none", "all", "lora_only")
OPTIM = ("adamw_8bit", "adamw_torch", "adamw_torch_fused", "paged_adamw_8bit")  # the usual ones
LR_SCHEDULER_TYPE = ("linear", "cosine", "constant", "constant_with_warmup")
NEEDS_MORE = re.compile(  # arguments of their own, measurements on the way, or packages of their own
    r"reduce_lr_on_plateau|greedy|cosine(_warmup)?_with_min_lr|warmup_stable_decay"
    r"|(ada)?lomo|galore|apollo|grokadamw|stable_adamw|schedule_free"
)
REPORT_TO = ("none", "trackio", "tensorboard", "wandb")
NO_EFFECT = {  # fields of data and training that leave the weights as they are
    *("session_hours", "report_to", "tune", "max_first_loss", "eval_steps", "eval_rows"),
    *("logging_steps", "save_steps"),
    *("max_dropped_share", "max_truncated_share", "min_trained_share", "max_leaked_share"),
}
MERGED_DTYPE = ("base", "float16")
SMALLER_BATCHES = (  # of a preset's eight rows a step, where memory is short
    "--set training.per_device_train_batch_size=1 --set training.gradient_accumulation_steps=8 "
    "--set training.tune=false"  # or the tuner may go back to larger ones
)


@dataclass(frozen=True)
class Model:
    """What `FastLanguageModel.from_pretrained` takes; `embedded` names the model inside the lab.

    With a `revision` it takes the folder of the model's files at that commit of the Hub.
    """

    model_name: str
    max_seq_length: int
    load_in_4bit: bool
    revision: str | None = None


@dataclass(frozen=True)
class Data:
    """Which conversations are used and how they are split; shares from 0 to 1, lengths in tokens.

    A source is `embedded`, a file, or a data set on the Hub: `owner/name`, `owner/name:part@revision`, where
    `part` is a configuration, a split or `configuration:split`.
    `weights` are the sources' shares in the mix; without them all rows of all sources are used.
    """

    sources: tuple[str, ...]
    heldout_share: float
    heldout_sources: tuple[str, ...] = ()
    validation_share: float = 0.0
    weights: tuple[float, ...] = ()
    limit: int | None = None
    duplicates: str = "exact"
    near_duplicate_threshold: float = 0.8
    languages: tuple[str, ...] = ()
    min_score: float | None = None
    min_trained_tokens: int = 1
    truncation: str = "cut_turn"
    max_dropped_share: float = 0.2
    max_truncated_share: float = 0.8
    min_trained_share: float = 0.02
    max_leaked_share: float = 0.2
    date_string: str = "26 Jul 2024"


@dataclass(frozen=True)
class Lora:
    """What `FastLanguageModel.get_peft_model` takes."""

    r: int
    target_modules: tuple[str, ...]
    lora_alpha: int
    lora_dropout: float
    bias: str
    use_gradient_checkpointing: str | bool
    random_state: int
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True


@dataclass(frozen=True)
class Training:
    """What `SFTConfig` takes, and what watches over the run; `max_steps = -1` means whole epochs.

    `eval_steps = 0`: the held-out loss is measured before and after only; in between it is that of
    `eval_rows` validation rows, 0 for all. `early_stopping_patience` counts such measurements without a new
    best one; 0 never stops early. `tune` measures which batches are fastest here before the run, at the same
    effective batch. `fast_cpu_step` replaces PyTorch's autograd on a CPU.
    """

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    num_train_epochs: int
    learning_rate: float
    lr_scheduler_type: str
    warmup_steps: int
    weight_decay: float
    optim: str
    seed: int
    save_steps: int
    logging_steps: int = 1
    max_steps: int = -1
    train_sampling_strategy: str = "random"
    packing: bool = False
    eval_steps: int = 0
    eval_rows: int = 0
    early_stopping_patience: int = 0
    report_to: str = "none"
    session_hours: float | None = None
    max_first_loss: float = 3.0
    tune: bool = True
    fast_cpu_step: bool = True


@dataclass(frozen=True)
class Chat:
    """What `model.generate` takes."""

    max_new_tokens: int
    temperature: float
    min_p: float


@dataclass(frozen=True)
class Publish:
    """The names on the Hub: a base model's id for the card, and the repository the merge goes to.

    `merged_dtype` is the merged file's: its base's, or float16, which rounds 8 times as finely as bfloat16.
    """

    base_model: str
    repo_name: str
    license: str
    private: bool = True
    merged_dtype: str = "base"


@dataclass(frozen=True)
class Recipe:
    """One run's whole configuration, frozen into `runs/<run>/recipe.toml` at first use."""

    name: str
    model: Model
    data: Data
    lora: Lora
    training: Training
    chat: Chat
    publish: Publish


SECTIONS: dict[str, type] = {
    "model": Model,
    "data": Data,
    "lora": Lora,
    "training": Training,
    "chat": Chat,
    "publish": Publish,
}


def preset_names() -> list[str]:
    """The recipes that ship with the lab."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_preset(name: str) -> Recipe:
    """The shipped recipe called `name`; LabError when there is none."""
    if name not in preset_names():
        raise LabError(f"there is no recipe {name!r}; there are: {', '.join(preset_names())}.")
    return read(PRESETS / f"{name}.toml")


def read(path: Path) -> Recipe:
    """Read a recipe from a TOML file; LabError names the file, the section and the key at fault."""
    return _from_tables(read_tables(path), str(path))


def read_tables(path: Path) -> dict[str, Any]:
    """A TOML file that a person may have edited; LabError when it is none, or in an unknown encoding."""
    text = read_text(path)
    if "\ufffd" in text:  # what cannot be decoded becomes this
        raise LabError(f"{path}: its letters are not UTF-8; save it as UTF-8 in your editor.")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LabError(f"{path}: not valid TOML: {error}{_backslash_hint(text, error)}.") from error


def dumps(recipe: Recipe) -> str:
    """The recipe as TOML; `read` gives it back. A key that is not set is left out."""
    lines = [f"name = {json.dumps(recipe.name)}"]
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        for key, value in dataclasses.asdict(getattr(recipe, section)).items():
            if value is not None:
                lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def override(recipe: Recipe, assignments: list[str]) -> Recipe:
    """Apply `section.key=value` texts, values written as in TOML (a bare word is a string).

    Another `model.model_name` is the new `publish.base_model` too, and takes the revision, the licence and
    the merged file's dtype away, unless they are set as well: what the recipe says of its own model does not
    hold for another. So other `data.sources` take away the kinds of conversation that are held out, and the
    shares of a mix.
    """
    changes = dict(_assignment(text) for text in assignments)
    model_name = changes.get(("model", "model_name"), recipe.model.model_name)
    if model_name != recipe.model.model_name:
        publish = {"base_model": model_name, "license": "", "merged_dtype": "base"}
        own = {("publish", key): value for key, value in publish.items()} | {("model", "revision"): None}
        changes = own | changes
    if changes.get(("data", "sources"), sources := list(recipe.data.sources)) != sources:
        changes = {("data", "heldout_sources"): [], ("data", "weights"): []} | changes
    tables: dict[str, Any] = tomllib.loads(dumps(recipe))
    for (section, key), value in changes.items():
        tables[section][key] = value
    return _from_tables(tables, "--set")


def require_publishable(recipe: Recipe) -> None:
    """LabError when the adapter could not be merged, or its card could not name the base and its licence."""
    publish = recipe.publish
    if recipe.lora.init_lora_weights == "loftq":
        raise LabError(
            "lora.init_lora_weights = 'loftq' trains beside a rounded base, so its adapter does not fit the "
            "published one and cannot be merged; leave that out with --stages data,adapter,train."
        )
    if not HUB_ID.fullmatch(publish.base_model):
        raise LabError(
            f"publish.base_model = {publish.base_model!r}: expected the base model's Hub id, owner/name."
        )
    if not publish.license:
        raise LabError(
            f"publish.license is not set, and the recipe's is of another model than {publish.base_model}; "
            f"give that model's, as its card has it: --set publish.license=apache-2.0, for example."
        )


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The fields in which two recipes differ, as `section.key: old -> new`."""
    found = []
    for section in SECTIONS:
        before, after = (dataclasses.asdict(getattr(each, section)) for each in (old, new))
        for key in before:
            if before[key] != after[key]:
                found.append(f"{section}.{key}: {before[key]!r} -> {after[key]!r}")
    return found


def without_effect(recipe: Recipe) -> set[str]:
    """The fields of data and training that leave the weights as they are; early stopping goes by looks."""
    looks = {"eval_steps", "eval_rows"} if recipe.training.early_stopping_patience else set()
    return NO_EFFECT - looks


def decides_weights(difference: str, recipe: Recipe) -> bool:
    """Whether what `differences` tells changes what is trained, and not only how long, shown or published."""
    section, _, key = difference.partition(":")[0].partition(".")
    return section not in ("chat", "publish") and key not in without_effect(recipe)


def _assignment(text: str) -> tuple[tuple[str, str], Any]:
    """The section and the key of `section.key=value`, and the value."""
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot:
        raise LabError(f"--set {text}: expected section.key=value, for example data.limit=200.")
    if section not in SECTIONS:
        raise LabError(f"--set {text}: no section {section!r}{_nearest(section, SECTIONS)}.")
    return (section, key.strip()), _parse_value(value.strip(), f"--set {text}")


def _parse_value(text: str, where: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if text.startswith(("[", "{", '"', "'")):
            raise LabError(f"{where}: not valid TOML: {error}{_backslash_hint(text, error)}.") from error
        return text


def _backslash_hint(text: str, error: tomllib.TOMLDecodeError) -> str:
    """What to do about a path of Windows in double quotes, where a backslash begins a code."""
    place = re.search(r"at line (\d+)", str(error))
    line = text.split("\n")[int(place[1]) - 1 if place else -1]
    return "; write paths with / or in single quotes" if "\\" in line else ""


def _from_tables(tables: dict[str, Any], where: str) -> Recipe:
    unknown = set(tables) - set(SECTIONS) - {"name"}
    if unknown:
        section = sorted(unknown)[0]
        raise LabError(f"{where}: no section {section!r}{_nearest(section, SECTIONS)}.")
    missing = [section for section in SECTIONS if section not in tables]
    if missing or "name" not in tables:
        raise LabError(f"{where}: missing {', '.join(missing) or 'name'}; start from a preset.")
    sections = {key: from_table(kind, tables[key], f"{where}: {key}") for key, kind in SECTIONS.items()}
    recipe = Recipe(name=tables["name"], **sections)
    _check_ranges(recipe, where)
    _check_names(recipe.training, where)
    return recipe


def from_table(kind: type, table: Any, where: str) -> Any:
    """An object of the dataclass `kind` with a TOML table's values; LabError for a wrong or missing key."""
    if not isinstance(table, dict):
        raise LabError(f"{where}: expected a section with keys, got {table!r}.")
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in table.items():
        if key not in hints:
            raise LabError(f"{where}.{key}: unknown key{_nearest(key, hints)}.")
        values[key] = _typed(value, hints[key], f"{where}.{key}")
    fields, none = dataclasses.fields(kind), dataclasses.MISSING
    required = {field.name for field in fields if field.default is none and field.default_factory is none}
    if missing := sorted(required - set(values)):
        raise LabError(f"{where}.{missing[0]}: missing.")
    return kind(**values)


def _typed(value: Any, hint: Any, where: str) -> Any:
    if hint is Any:
        return value
    if typing.get_origin(hint) is Mapping:
        if isinstance(value, dict):
            item = typing.get_args(hint)[1]
            return {key: _typed(each, item, f"{where}.{key}") for key, each in value.items()}
        raise LabError(f"{where}: expected a section with keys, got {value!r}.")
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(value, list):
            return tuple(_typed(each, item, f"{where}[{i}]") for i, each in enumerate(value))
        example = '["a", "b"]' if item is str else "[1, 2]"
        raise LabError(f"{where}: expected a list such as {example}, got {value!r}.")
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(value) is float and not math.isfinite(value):
        raise LabError(f"{where}: expected a finite number, got {value}; a limit is off at 1e9, for example.")
    if type(value) in kinds:
        return value
    if float in kinds and type(value) is int:
        return float(value)
    names = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
    raise LabError(f"{where}: expected {names}, got {value!r}.")


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}"


def _check_ranges(recipe: Recipe, where: str) -> None:
    training, lora, data = recipe.training, recipe.lora, recipe.data
    rules = {
        "model.max_seq_length must be at least 16": recipe.model.max_seq_length >= 16,
        "data.heldout_share must lie between 0 and 1": 0 < data.heldout_share < 1,
        "data.validation_share must be 0 or more, and with data.heldout_share below 1": (
            0 <= data.validation_share < 1 - data.heldout_share
        ),
        "data.sources must name at least one source": len(data.sources) > 0,
        "data.weights must be one for each of data.sources, or none": (
            len(data.weights) in (0, len(data.sources))
        ),
        f"data.duplicates must be one of {', '.join(DUPLICATES)}": data.duplicates in DUPLICATES,
        f"data.truncation must be one of {', '.join(TRUNCATION)}": data.truncation in TRUNCATION,
        f"publish.merged_dtype must be one of {', '.join(MERGED_DTYPE)}": (
            recipe.publish.merged_dtype in MERGED_DTYPE
        ),
        "data.near_duplicate_threshold must lie between 0.5 and 1": (
            0.5 <= data.near_duplicate_threshold <= 1
        ),
        "data.min_trained_tokens must be at least 1": data.min_trained_tokens >= 1,
        "data.max_dropped_share must lie between 0 and 1": 0 <= data.max_dropped_share <= 1,
        "data.max_truncated_share must lie between 0 and 1": 0 <= data.max_truncated_share <= 1,
        "data.min_trained_share must lie between 0 and 1": 0 <= data.min_trained_share <= 1,
        "data.max_leaked_share must lie between 0 and 1": 0 <= data.max_leaked_share <= 1,
        "data.limit must be at least 4": data.limit is None or data.limit >= 4,
        "lora.r must be at least 1": lora.r >= 1,
        "lora.lora_alpha must be at least 1": lora.lora_alpha >= 1,
        "lora.lora_dropout must lie between 0 and 1": 0 <= lora.lora_dropout < 1,
        f"lora.init_lora_weights must be one of {', '.join(map(json.dumps, INIT_LORA_WEIGHTS))}": (
            lora.init_lora_weights in INIT_LORA_WEIGHTS
        ),
        "lora.target_modules must name at least one module": len(lora.target_modules) > 0,
        f"lora.bias must be one of {', '.join(BIAS)}": lora.bias in BIAS,
        "training.per_device_train_batch_size must be at least 1": (
            training.per_device_train_batch_size >= 1
        ),
        "training.gradient_accumulation_steps must be at least 1": (
            training.gradient_accumulation_steps >= 1
        ),
        "training.num_train_epochs must be at least 1": training.num_train_epochs >= 1,
        "training.learning_rate must be above 0": training.learning_rate > 0,
        "training.weight_decay must be 0 or more": training.weight_decay >= 0,
        "training.warmup_steps must be 0 or more": training.warmup_steps >= 0,
        "training.logging_steps must be at least 1": training.logging_steps >= 1,
        "training.save_steps must be at least 1": training.save_steps >= 1,
        "training.max_steps must be -1 (whole epochs) or at least 1": (
            training.max_steps == -1 or training.max_steps >= 1
        ),
        f"training.train_sampling_strategy must be one of {', '.join(SAMPLING)}": (
            training.train_sampling_strategy in SAMPLING
        ),
        "training.eval_steps must be 0 (before and after only) or more": training.eval_steps >= 0,
        "training.eval_rows must be 0 (all rows) or more": training.eval_rows >= 0,
        "training.early_stopping_patience must be 0 (off) or more": training.early_stopping_patience >= 0,
        "training.early_stopping_patience needs data.validation_share above 0, such as 0.1: the rows that "
        "choose the checkpoint cannot judge it": not training.early_stopping_patience
        or data.validation_share > 0,
        "training.early_stopping_patience needs training.eval_steps": (
            not training.early_stopping_patience or training.eval_steps > 0
        ),
        "training.early_stopping_patience needs save_steps to be a multiple of eval_steps": (
            not training.early_stopping_patience or training.save_steps % max(training.eval_steps, 1) == 0
        ),
        f"training.report_to must be one of {', '.join(REPORT_TO)}": training.report_to in REPORT_TO,
        "training.session_hours must be above 0": (
            training.session_hours is None or training.session_hours > 0
        ),
        "training.max_first_loss must be above 0": training.max_first_loss > 0,
        "chat.max_new_tokens must be at least 1": recipe.chat.max_new_tokens >= 1,
        "chat.temperature must be 0 (greedy) or more": recipe.chat.temperature >= 0,
        "chat.min_p must lie between 0 and 1": 0 <= recipe.chat.min_p <= 1,
    }
    for rule, holds in rules.items():
        if not holds:
            raise LabError(f"{where}: {rule}.")


def _check_names(training: Training, where: str) -> None:
    """LabError for an optimizer or a schedule that a recipe cannot have; the presets' are known."""
    if training.optim in OPTIM and training.lr_scheduler_type in LR_SCHEDULER_TYPE:
        return  # asking transformers takes seconds
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    for key, names in (("optim", OptimizerNames), ("lr_scheduler_type", SchedulerType)):
        value, known = getattr(training, key), [name.value for name in names]
        if value not in known:
            raise LabError(f"{where}: training.{key}: there is no {value!r}{_nearest(value, known)}.")
        if NEEDS_MORE.match(value):
            raise LabError(f"{where}: training.{key}: {value!r} needs more than a recipe has; take another.")

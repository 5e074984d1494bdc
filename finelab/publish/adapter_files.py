"""Reading an adapter's folder as PEFT saves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finelab.errors import LabError
from finelab.publish.model_files import read_json, require_whole

PREFIX = "base_model.model."  # what PEFT puts before the base's names
ADAPTER = "adapter_model.safetensors"
_USED = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights"}
_WITHOUT_EFFECT = {  # on a merge: where the adapter sits and how it was trained; its tensors tell the rest
    *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode", "base_model_name_or_path"),
    *("revision", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "bias"),
    *("modules_to_save", "lora_dropout", "ensure_weight_tying", "megatron_core", "qalora_group_size"),
    *("eva_config", "loftq_config"),
}
_KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal")  # starts that leave the base's weights alone
_NO_ADAPTER = "run notebook 03_train of this run first"
OTHER_KIND = "merge it with PEFT's own merge_and_unload, or train a LoRA, rsLoRA or DoRA adapter"


def load_adapter(adapter: Path) -> dict[str, Any]:
    """The adapter's tensors by the names of the base, PEFT's prefixes taken off."""
    from safetensors.torch import load_file

    path = adapter / ADAPTER
    if not path.exists():
        raise LabError(f"{path} is missing; {_NO_ADAPTER}.")
    require_whole(path)
    tensors = load_file(path).items()
    return {key.removeprefix(PREFIX).replace(".base_layer.bias", ".bias"): value for key, value in tensors}


def require_known_kind(adapter: Path) -> dict[str, Any]:
    """The adapter's config; LabError when base and tensors alone do not say what the adapter computes."""
    path = adapter / "adapter_config.json"
    config = read_json(path, _NO_ADAPTER)
    if config.get("peft_type") != "LORA" or not config.get("r"):
        raise LabError(f"{path}: peft_type is {config.get('peft_type')!r}, not LORA; {OTHER_KIND}.")
    for name, value in config.items():
        if value and name not in _USED | _WITHOUT_EFFECT:
            raise LabError(f"{path}: {name} = {value!r}: the merge does not know it; {OTHER_KIND}.")
    start = config.get("init_lora_weights", True)
    if start not in _KEEPS_BASE:
        raise LabError(
            f"{path}: init_lora_weights = {start!r} changed the base's weights at the start, so this adapter "
            "does not fit the original base. Save it as plain LoRA first: PEFT's save_pretrained with "
            "path_initial_model_for_weight_conversion (there is none for LoftQ: train with True)."
        )
    return config

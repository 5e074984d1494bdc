import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from finelab import LabError
from finelab.publish import check_merged_weights
from tests.tiny import base_model, with_adapter


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float32], ids=str)
def dtype(request):
    return request.param


def folders(tmp_path, dtype=torch.bfloat16, **adapter):
    """Base, adapter and PEFT's own merge, as files."""
    base, lora, merged = tmp_path / "base", tmp_path / "adapter", tmp_path / "merged"
    base_model(dtype).save_pretrained(base)
    tuned = with_adapter(base_model(dtype), **adapter)
    tuned.save_pretrained(lora)
    tuned.merge_and_unload().save_pretrained(merged)
    return base, lora, merged


def change(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("use_rslora", [False, True])
def test_pefts_own_merge_is_proven(tmp_path, dtype, use_rslora):
    weights = check_merged_weights(*folders(tmp_path, dtype, use_rslora=use_rslora))
    assert weights.faults == ()
    assert weights.passed
    assert weights.adapted == weights.moved == 14
    assert weights.untouched == 6


def test_the_base_published_as_the_fine_tune_is_caught(tmp_path):
    base, lora, _ = folders(tmp_path)
    weights = check_merged_weights(base, lora, base)
    assert not weights.passed
    assert "is not W + scale * B @ A" in str(weights)


def test_an_untrained_adapter_is_caught(tmp_path):
    weights = check_merged_weights(*folders(tmp_path, moved=False))
    assert not weights.passed
    assert weights.moved == 0
    assert "no tensor differs from the base" in str(weights)


def test_one_missing_module_is_caught_and_named(tmp_path):
    base, lora, merged = folders(tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    original = load_file(base / "model.safetensors")[name]
    change(merged, lambda tensors: tensors.__setitem__(name, original))
    assert check_merged_weights(base, lora, merged).faults == (f"{name} is not W + scale * B @ A",)


def test_a_wrong_scale_is_caught(tmp_path):
    base, lora, merged = folders(tmp_path)
    config = json.loads((lora / "adapter_config.json").read_text(encoding="utf-8"))
    (lora / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 9}), encoding="utf-8")
    assert len(check_merged_weights(base, lora, merged).faults) == 14


def test_another_base_is_caught(tmp_path):
    base, lora, merged = folders(tmp_path)
    change(base, lambda tensors: tensors["model.norm.weight"].add_(1))
    assert check_merged_weights(base, lora, merged).faults == ("model.norm.weight differs from the base",)


def test_a_dropped_and_an_extra_tensor_are_caught(tmp_path):
    base, lora, merged = folders(tmp_path)
    change(merged, lambda tensors: tensors.pop("model.norm.weight"))
    change(merged, lambda tensors: tensors.__setitem__("extra", torch.zeros(1)))
    faults = check_merged_weights(base, lora, merged).faults
    assert faults == ("model.norm.weight is missing", "extra is not in the base")


def test_an_adapter_for_a_module_that_is_not_there_is_caught(tmp_path):
    base, lora, merged = folders(tmp_path)
    for folder in (base, merged):
        change(folder, lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.weight"))
    faults = check_merged_weights(base, lora, merged).faults
    assert faults == ("the adapter's model.layers.0.self_attn.q_proj.weight is not in the model",)


def test_an_adapter_of_another_kind_is_refused(tmp_path):
    base, lora, merged = folders(tmp_path)
    config = json.loads((lora / "adapter_config.json").read_text(encoding="utf-8"))
    (lora / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}), encoding="utf-8")
    with pytest.raises(LabError, match="LoRA and rsLoRA"):
        check_merged_weights(base, lora, merged)


def test_missing_files_are_named(tmp_path):
    base, lora, _ = folders(tmp_path)
    with pytest.raises(LabError, match=r"holds no model\*\.safetensors"):
        check_merged_weights(base, lora, tmp_path)
    with pytest.raises(LabError, match=r"adapter_model\.safetensors is missing"):
        check_merged_weights(base, tmp_path, base)

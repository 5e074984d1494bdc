import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from finelab import LabError
from finelab.publish import check_merged_weights
from finelab.publish.merge import merge
from finelab.publish.weights import require_merged_files
from tests.publish.test_merge import (
    AS_PEFT_MERGES,
    NOT_AS_PEFT_MERGES,
    cases,
    edit_json,
    edit_tensors,
    four_bit,
)
from tests.tiny import base_model, with_adapter, write_run

UP = "model.layers.1.mlp.up_proj.weight"


def folders(tmp_path, dtype=torch.bfloat16, base=None, **adapter):
    """Base, adapter and PEFT's own merge, as files."""
    made = write_run(tmp_path, dtype, base, **adapter)
    model = with_adapter(base_model(dtype, **(base or {})), **adapter)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    return *made, tmp_path / "merged"


def our_folders(tmp_path, dtype=torch.bfloat16, base=None, **adapter):
    """Base, adapter and the lab's merge, as files."""
    made = write_run(tmp_path, dtype, base, **adapter)
    merge(*made, tmp_path / "merged")
    return *made, tmp_path / "merged"


def change(folder, edit):
    edit_tensors(folder / "model.safetensors", edit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@cases(AS_PEFT_MERGES)
def test_pefts_own_merge_is_proven(tmp_path, dtype, adapter, base):
    weights = check_merged_weights(*folders(tmp_path, dtype, base, **adapter))
    assert weights.faults == ()
    assert weights.passed
    assert weights.moved == weights.adapted > 0
    assert weights.rounded == 0


@cases(AS_PEFT_MERGES | NOT_AS_PEFT_MERGES)
def test_whatever_the_lab_merges_is_proven(tmp_path, adapter, base):
    weights = check_merged_weights(*our_folders(tmp_path, base=base, **adapter))
    assert weights.faults == ()
    assert weights.passed
    assert weights.moved == weights.adapted > 0


def test_the_counts_are_those_of_the_model(tmp_path):
    weights = check_merged_weights(*our_folders(tmp_path))
    assert (weights.adapted, weights.moved, weights.untouched) == (14, 14, 6)
    assert "14 adapted tensors equal W + scale * B @ A" in str(weights)


def test_a_sharded_merge_is_proven_against_a_whole_base(tmp_path):
    base, adapter = write_run(tmp_path / "sharded", torch.bfloat16, max_shard_size="12KB")
    merge(base, adapter, tmp_path / "merged")
    whole, _ = write_run(tmp_path / "whole", torch.bfloat16)
    assert check_merged_weights(whole, adapter, tmp_path / "merged").passed


@pytest.mark.parametrize("adapter, base", NOT_AS_PEFT_MERGES.values(), ids=NOT_AS_PEFT_MERGES)
def test_pefts_merge_is_not_proven_where_it_is_not_what_was_trained(tmp_path, adapter, base):
    weights = check_merged_weights(*folders(tmp_path, base=base, **adapter))
    assert not weights.passed
    assert all("lm_head" in fault or "embed_tokens" in fault for fault in weights.faults)


@pytest.mark.parametrize("steps, right", [(0.5, True), (0.49, False)])
def test_only_an_element_on_the_edge_may_be_rounded_to_either_side(tmp_path, steps, right):
    """A sum of another order, on a graphics card say, may fall on the other side of the edge."""
    step = 2.0**-7  # of a bfloat16 above 1

    def to_the_edge(tensors):
        a, b = (tensors[f"base_model.model.{UP.removesuffix('.weight')}.lora_{x}.weight"] for x in "AB")
        a.zero_()
        b.zero_()
        a[0, 0], b[0, 0] = steps * step / 2.0, 1.0  # the scale is 2

    base, lora = write_run(tmp_path, torch.bfloat16)
    change(base, lambda tensors: tensors[UP][0].fill_(1))
    edit_tensors(lora / "adapter_model.safetensors", to_the_edge)
    merge(base, lora, tmp_path / "merged")
    assert load_file(tmp_path / "merged" / "model.safetensors")[UP][0, 0] == 1.0
    change(tmp_path / "merged", lambda tensors: tensors[UP][0, 0].fill_(1.0 + step))
    weights = check_merged_weights(base, lora, tmp_path / "merged")
    assert weights.faults == (() if right else (f"{UP} is not W + scale * B @ A",))
    assert weights.rounded == right
    assert ("(1 elements rounded the other way)" in str(weights)) == right


def test_the_base_published_as_the_fine_tune_is_caught(tmp_path):
    base, lora, _ = our_folders(tmp_path)
    weights = check_merged_weights(base, lora, base)
    assert not weights.passed
    assert "is not W + scale * B @ A" in str(weights)


@pytest.mark.parametrize("adapter", [{}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_an_untrained_adapter_is_caught(tmp_path, adapter):
    weights = check_merged_weights(*our_folders(tmp_path, moved=False, **adapter))
    assert not weights.passed
    assert weights.moved == 0
    assert "no tensor differs from the base: the adapter is untrained" in str(weights)


def test_one_missing_module_is_caught_and_named(tmp_path):
    base, lora, merged = our_folders(tmp_path)
    original = load_file(base / "model.safetensors")[UP]
    change(merged, lambda tensors: tensors.__setitem__(UP, original))
    assert check_merged_weights(base, lora, merged).faults == (f"{UP} is not W + scale * B @ A",)


@pytest.mark.parametrize(
    "made, told, faults",
    [
        ({}, {"lora_alpha": 9}, 14),
        ({"lora_alpha": 8.4}, {"lora_alpha": 8}, 14),
        ({"use_rslora": True}, {"use_rslora": False}, 14),
        ({"alpha_pattern": {"q_proj": 9}}, {"alpha_pattern": {}}, 2),
    ],
    ids=str,
)
def test_a_wrong_scale_is_caught(tmp_path, made, told, faults):
    base, lora, merged = our_folders(tmp_path, **made)
    edit_json(lora / "adapter_config.json", **told)
    assert len(check_merged_weights(base, lora, merged).faults) == faults


def test_a_wrong_magnitude_is_caught(tmp_path):
    base, lora, merged = our_folders(tmp_path, use_dora=True)
    name = f"base_model.model.{UP.removesuffix('.weight')}.lora_magnitude_vector"
    edit_tensors(lora / "adapter_model.safetensors", lambda tensors: tensors[name].mul_(1.01))
    assert check_merged_weights(base, lora, merged).faults == (f"{UP} is not W + scale * B @ A",)


def test_a_module_that_was_saved_and_forgotten_is_caught(tmp_path):
    base, lora, merged = our_folders(tmp_path, modules_to_save=["lm_head"])
    original = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    change(merged, lambda tensors: tensors.__setitem__("lm_head.weight", original))
    assert check_merged_weights(base, lora, merged).faults == ("lm_head.weight is not W + scale * B @ A",)
    change(merged, lambda tensors: tensors.pop("lm_head.weight"))
    assert check_merged_weights(base, lora, merged).faults[0] == "lm_head.weight is missing"


def test_another_base_is_caught(tmp_path):
    base, lora, merged = our_folders(tmp_path)
    change(base, lambda tensors: tensors["model.norm.weight"].add_(1))
    assert check_merged_weights(base, lora, merged).faults == ("model.norm.weight differs from the base",)


def test_a_four_bit_base_is_refused(tmp_path):
    base, lora, merged = our_folders(tmp_path)
    four_bit(base)
    with pytest.raises(LabError, match=r"q_proj\.weight.* is U8: this model is quantised"):
        check_merged_weights(base, lora, merged)


@cases(AS_PEFT_MERGES | NOT_AS_PEFT_MERGES)
def test_a_float16_merge_is_proven(tmp_path, adapter, base):
    made = write_run(tmp_path, torch.bfloat16, base, **adapter)
    merge(*made, tmp_path / "merged", "float16")
    weights = check_merged_weights(*made, tmp_path / "merged", "float16")
    assert weights.passed
    assert weights.moved == weights.adapted > 0
    assert "other tensors are the base's, rounded to float16" in str(weights)


def test_a_bfloat16_merge_turned_into_float16_is_caught(tmp_path):
    base, lora, merged = our_folders(tmp_path)
    change(merged, lambda tensors: tensors.update({name: each.half() for name, each in tensors.items()}))
    faults = check_merged_weights(base, lora, merged, "float16").faults
    assert len(faults) == 14
    assert f"{UP} is not W + scale * B @ A" in faults


def test_an_untrained_adapter_moves_nothing_in_float16_either(tmp_path):
    made = write_run(tmp_path, torch.bfloat16, moved=False)
    merge(*made, tmp_path / "merged", "float16")
    assert "no tensor differs" in str(check_merged_weights(*made, tmp_path / "merged", "float16"))


def test_another_precision_than_the_bases_is_caught(tmp_path):
    base, lora, merged = our_folders(tmp_path, torch.float32)
    shutil.rmtree(merged)
    with_adapter(base_model()).merge_and_unload().half().save_pretrained(merged)
    weights = check_merged_weights(base, lora, merged)
    assert len(weights.faults) == 20
    assert "is float16 [128, 32], not float32 [128, 32]" in " ".join(weights.faults)


def test_a_base_rounded_before_the_merge_is_caught(tmp_path):
    base, lora, merged = our_folders(tmp_path, torch.float16)
    shutil.rmtree(merged)
    model = base_model(torch.float16).bfloat16().half()
    with_adapter(model).merge_and_unload().save_pretrained(merged)
    assert len(check_merged_weights(base, lora, merged).faults) > 14


def test_a_dropped_and_an_extra_tensor_are_caught(tmp_path):
    base, lora, merged = our_folders(tmp_path)
    change(merged, lambda tensors: tensors.pop("model.norm.weight"))
    change(merged, lambda tensors: tensors.__setitem__("extra", torch.zeros(1)))
    faults = check_merged_weights(base, lora, merged).faults
    assert faults == ("model.norm.weight is missing", "extra is not in the base")


def test_an_adapter_for_a_module_that_is_not_there_is_caught(tmp_path):
    base, lora, merged = our_folders(tmp_path)
    name = "model.layers.0.self_attn.q_proj"
    for folder in (base, merged):
        change(folder, lambda tensors: tensors.pop(f"{name}.weight"))
    faults = check_merged_weights(base, lora, merged).faults
    assert faults == tuple(f"the adapter's {name}.lora_{part}.weight is not in the model" for part in "AB")


def test_nan_is_never_right(tmp_path):
    base, lora, merged = our_folders(tmp_path)
    change(merged, lambda tensors: tensors[UP][3].fill_(float("nan")))
    assert check_merged_weights(base, lora, merged).faults == (f"{UP} is not W + scale * B @ A",)


def test_an_adapter_of_another_kind_is_refused(tmp_path):
    base, lora, merged = our_folders(tmp_path)
    edit_json(lora / "adapter_config.json", init_lora_weights="pissa")
    with pytest.raises(LabError, match="'pissa' changed the base's weights"):
        check_merged_weights(base, lora, merged)


def test_missing_files_are_named(tmp_path):
    base, lora, _ = our_folders(tmp_path)
    with pytest.raises(LabError, match=r"holds no model\.safetensors"):
        check_merged_weights(base, lora, tmp_path)
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(LabError, match=r"adapter_model\.safetensors is missing"):
        check_merged_weights(base, lora, base)


def test_the_files_beside_the_weights_are_those_that_were_trained_with(tmp_path):
    _, lora, merged = our_folders(tmp_path)
    require_merged_files(lora, merged)
    trained = AutoTokenizer.from_pretrained(lora)
    trained("the", padding="max_length", max_length=8, truncation=True)  # a batch leaves these in the file
    trained.save_pretrained(lora)
    require_merged_files(lora, merged)


def swap_tokenizer(folder):
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = state["model"]["vocab"]
    vocabulary["!"], vocabulary["?"] = vocabulary["?"], vocabulary["!"]
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")


@pytest.mark.parametrize(
    "mutate, message",
    [
        (swap_tokenizer, r"its tokenizer \(\w+\) is not the adapter's \(\w+\)"),
        (lambda at: edit_json(at / "tokenizer_config.json", eos_token="<|im_start|>"), "its tokenizer"),
        (
            lambda at: (at / "chat_template.jinja").write_text("{{ messages }}"),
            "chat template is not the adap",
        ),
        (lambda at: (at / "chat_template.jinja").unlink(), "chat template is not the adapter's"),
        (
            lambda at: edit_json(at / "generation_config.json", eos_token_id=[1, 2]),
            r"ends answers at \[1, 2\], not at <\|im_end\|> \(259\): they would not stop",
        ),
        (lambda at: (at / "generation_config.json").unlink(), "ends answers at None"),
        (lambda at: (at / "tokenizer.json").write_text("{"), "its tokenizer does not load"),
    ],
    ids=["swapped", "eos", "template", "no-template", "no-end", "no-generation", "broken"],
)
def test_a_file_that_was_not_trained_with_is_caught(tmp_path, mutate, message):
    _, lora, merged = our_folders(tmp_path)
    mutate(merged)
    with pytest.raises(LabError, match=message):
        require_merged_files(lora, merged)

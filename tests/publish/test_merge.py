import importlib.metadata
import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
import time
from glob import glob

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from finelab import LabError
from finelab.publish.merge import merge
from tests.tiny import MODULES, base_model, tokenizer, with_adapter, write_run

LLAMA3_ROPE = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
UNTIED = {"tie_word_embeddings": False}
AS_PEFT_MERGES = {  # adapter, base
    "lora": ({}, {}),
    "scale-is-no-power-of-two": ({"lora_alpha": 3}, {}),
    "rslora": ({"use_rslora": True}, {}),
    "dora": ({"use_dora": True}, {}),
    "patterns": (
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"^model.*k_proj": 3}},
        {},
    ),
    "rslora-patterns": ({"use_rslora": True, "rank_pattern": {"(q|k)_proj": 2}}, {}),
    "some-modules": ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, {}),
    "norms-saved": ({"modules_to_save": ["norm"]}, {}),
    "head-saved-untied": ({"modules_to_save": ["lm_head"]}, UNTIED),
    "head-saved-from-tied": ({"modules_to_save": ["lm_head"]}, {}),
    "embeddings-saved-from-tied": ({"modules_to_save": ["embed_tokens"]}, {}),
    "both-saved-from-tied": ({"modules_to_save": ["lm_head", "embed_tokens"]}, {}),
    "both-saved-still-tied": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, {}),
    "biases": ({"bias": "all"}, {"attention_bias": True}),
    "biases-of-the-adapted": ({"bias": "lora_only", "target_modules": ["q_proj"]}, {"attention_bias": True}),
}
NOT_AS_PEFT_MERGES = {  # PEFT adds to storage that both share, or rounds an embedding's delta first
    "lora-on-tied-embeddings": ({"target_modules": ["q_proj", "embed_tokens"]}, {}),
    "lora-on-a-tied-head": ({"target_modules": ["q_proj", "lm_head"]}, {}),
    "lora-on-both-still-tied": (
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        {},
    ),
    "lora-on-both-untied": ({"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, UNTIED),
}


def cases(table):
    return pytest.mark.parametrize("adapter, base", table.values(), ids=table)


def same_bytes(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_json(path, **values):
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(found | values), encoding="utf-8")


def edit_tensors(path, edit):
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@cases(AS_PEFT_MERGES)
def test_every_tensor_is_pefts_own(tmp_path, dtype, adapter, base):
    folders = write_run(tmp_path, dtype, base, **adapter)
    merge(*folders, tmp_path / "merged")
    with_adapter(base_model(dtype, **base), **adapter).merge_and_unload().save_pretrained(tmp_path / "peft")
    ours, pefts = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "peft"))
    assert same_bytes(ours, pefts)
    assert not same_bytes(ours, load_file(tmp_path / "base" / "model.safetensors"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@cases(AS_PEFT_MERGES)
def test_a_float16_merge_is_pefts_in_float32_rounded_once(tmp_path, dtype, adapter, base):
    folders = write_run(tmp_path, dtype, base, **adapter)
    merge(*folders, tmp_path / "merged", "float16")
    whole = PeftModel.from_pretrained(base_model(dtype, **base).float(), folders[1]).merge_and_unload()
    whole.half().save_pretrained(tmp_path / "peft")
    ours, pefts = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "peft"))
    assert same_bytes(ours, pefts)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float16


def test_a_float16_merge_is_nearer_to_the_adapter(tmp_path):
    """The adapter moves weights by less than a bfloat16's last digit: most of what it says is in the rest."""
    base, adapter = write_run(tmp_path, torch.bfloat16, lora_alpha=0.002)
    ids = torch.arange(60).view(3, 20)
    with torch.no_grad():
        tuned = PeftModel.from_pretrained(base_model(torch.bfloat16).float(), adapter)
        said = tuned(input_ids=ids).logits
        away = {}
        for dtype in ("base", "float16"):
            merge(base, adapter, tmp_path / "merged" / dtype, dtype)
            merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / dtype, dtype=torch.float32)
            away[dtype] = (merged(input_ids=ids).logits - said).abs().mean()
    assert away["float16"] < away["base"] / 4


@pytest.mark.parametrize("dtype", ["base", "float16"])
def test_a_value_that_float16_does_not_hold_is_refused(tmp_path, dtype):
    base, adapter = write_run(tmp_path, torch.bfloat16)
    edit_tensors(base / "model.safetensors", lambda tensors: tensors["model.norm.weight"][3].fill_(70_000))
    if dtype == "base":
        merge(base, adapter, tmp_path / "merged", dtype)
        return
    with pytest.raises(LabError, match=r"model\.norm\.weight would hold 70,144, and float16 .* 65,504"):
        merge(base, adapter, tmp_path / "merged", dtype)
    assert not (tmp_path / "merged").exists()


@cases(AS_PEFT_MERGES | NOT_AS_PEFT_MERGES)
def test_the_merged_model_says_what_the_adapter_said(tmp_path, adapter, base):
    folders = write_run(tmp_path, torch.float32, base, **adapter)
    merge(*folders, tmp_path / "merged")
    ids = torch.arange(60).view(3, 20)
    with torch.no_grad():
        said = with_adapter(base_model(**base), **adapter)(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(input_ids=ids).logits
        untuned = base_model(**base)(input_ids=ids).logits
    assert (said - merged).abs().max() < 1e-5
    assert (said - untuned).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_sharded_base_gives_the_same_shards(tmp_path, dtype):
    base, adapter = write_run(tmp_path, dtype, max_shard_size="12KB")
    merge(base, adapter, tmp_path / "merged")
    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(shards) > 3
    for name in shards:
        with safe_open(base / name, "pt") as old, safe_open(tmp_path / "merged" / name, "pt") as new:
            assert list(new.offset_keys()) == list(old.offset_keys())
            assert new.metadata() == old.metadata()
    old, new = (
        json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        for folder in (base, tmp_path / "merged")
    )
    assert new["weight_map"] == old["weight_map"]
    assert new["metadata"]["total_size"] == old["metadata"]["total_size"]
    whole = with_adapter(base_model(dtype)).merge_and_unload().state_dict()
    whole.pop("lm_head.weight")
    loaded = {}
    for name in shards:
        loaded |= load_file(tmp_path / "merged" / name)
    assert same_bytes(loaded, whole)


def test_a_tensor_larger_than_a_block_is_merged_like_any_other(tmp_path):
    sizes = {"hidden_size": 96, "intermediate_size": 5000, "vocab_size": 1000, "head_dim": 24}
    base, adapter = write_run(tmp_path, torch.bfloat16, sizes)
    merge(base, adapter, tmp_path / "merged")
    with_adapter(base_model(torch.bfloat16, **sizes)).merge_and_unload().save_pretrained(tmp_path / "peft")
    assert same_bytes(*(load_file(tmp_path / name / "model.safetensors") for name in ("merged", "peft")))


def test_a_head_that_left_its_embedding_is_counted_in_the_index(tmp_path):
    base, adapter = write_run(
        tmp_path, base={"vocab_size": 300}, max_shard_size="20KB", modules_to_save=["lm_head"]
    )
    merge(base, adapter, tmp_path / "merged")
    index = json.loads((tmp_path / "merged/model.safetensors.index.json").read_text(encoding="utf-8"))
    old = json.loads((base / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert set(index["weight_map"]) - set(old["weight_map"]) == {"lm_head.weight"}
    assert index["metadata"]["total_size"] == old["metadata"]["total_size"] + 300 * 32 * 4
    assert AutoConfig.from_pretrained(tmp_path / "merged").tie_word_embeddings is False


@pytest.mark.parametrize("written_by", ["transformers 5", "transformers 4"])
@pytest.mark.parametrize("scaling", [None, LLAMA3_ROPE], ids=["plain", "llama3"])
def test_both_transformers_read_the_same_rope_and_dtype(tmp_path, scaling, written_by):
    base, adapter = write_run(tmp_path, torch.bfloat16)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    for key in ("rope_parameters", "dtype"):
        config.pop(key)
    if written_by == "transformers 4":
        config |= {"rope_theta": 500_000.0, "rope_scaling": scaling, "torch_dtype": "bfloat16"}
    else:
        rope = {"rope_theta": 500_000.0, **(scaling or {"rope_type": "default"})}
        config |= {"rope_parameters": rope, "dtype": "bfloat16"}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    merge(base, adapter, tmp_path / "merged")
    merged = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert merged["rope_theta"] == 500_000.0
    assert merged["rope_scaling"] == scaling
    assert merged["torch_dtype"] == merged["dtype"] == "bfloat16"
    read, before = AutoConfig.from_pretrained(tmp_path / "merged"), AutoConfig.from_pretrained(base)
    assert read.rope_parameters == before.rope_parameters
    assert read.dtype == before.dtype == torch.bfloat16


def test_the_tokenizer_that_was_trained_with_comes_along(tmp_path):
    base, adapter = write_run(tmp_path)
    made = tokenizer()
    made.add_special_tokens({"extra_special_tokens": ["<|tool|>"]})
    made.save_pretrained(adapter)
    merge(base, adapter, tmp_path / "merged")
    shipped = AutoTokenizer.from_pretrained(tmp_path / "merged")
    text = "the <|tool|> thing<|im_end|> 42"
    assert shipped(text)["input_ids"] == made(text)["input_ids"]
    assert shipped.chat_template == made.chat_template
    assert "<|tool|>" in shipped.all_special_tokens
    config = json.loads((tmp_path / "merged/tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # 4.57 knows no TokenizersBackend
    assert config["additional_special_tokens"] == ["<|tool|>"]  # and no list of extra_special_tokens


@pytest.mark.parametrize(
    "before, after",
    [(2, [2, 259]), ([128, 2], [128, 2, 259]), ([2, 259], [2, 259]), (259, 259), (None, 259)],
    ids=str,
)
def test_answers_end_where_training_ended_them(tmp_path, before, after):
    base, adapter = write_run(tmp_path)
    assert tokenizer().eos_token_id == 259
    edit_json(base / "config.json", eos_token_id=before)
    edit_json(base / "generation_config.json", eos_token_id=before, temperature=0.6, do_sample=True)
    merge(base, adapter, tmp_path / "merged")
    generation = GenerationConfig.from_pretrained(tmp_path / "merged")
    assert generation.eos_token_id == after
    assert generation.temperature == 0.6
    (base / "generation_config.json").unlink()
    merge(base, adapter, tmp_path / "merged")
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == after


@pytest.mark.parametrize(
    "change, message",
    [
        ({"peft_type": "LOHA"}, r"peft_type is 'LOHA', not LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, r"'pissa_niter_4' changed the base.*path_initial_model"),
        ({"init_lora_weights": "loftq"}, r"'loftq' changed the base"),
        ({"init_lora_weights": "olora"}, r"'olora' changed the base"),
        ({"fan_in_fan_out": True}, r"fan_in_fan_out = True: the merge does not know it"),
        ({"lora_bias": True}, r"lora_bias = True"),
        ({"layer_replication": [[0, 2], [1, 2]]}, r"layer_replication = "),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices = \[1\]"),
        ({"alora_invocation_tokens": [1]}, r"alora_invocation_tokens = "),
        ({"a_field_of_the_future": 7}, r"a_field_of_the_future = 7: the merge does not know it"),
        ({"r": 8}, r"_proj is not what adapter_config\.json says"),
        ({"use_dora": True}, r"is not what adapter_config\.json says"),
    ],
    ids=str,
)
def test_an_adapter_that_a_merge_would_get_wrong_is_refused(tmp_path, change, message):
    base, adapter = write_run(tmp_path)
    edit_json(adapter / "adapter_config.json", **change)
    with pytest.raises(LabError, match=message):
        merge(base, adapter, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir() if "merged" in path.name] == []


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: t.__setitem__(next(iter(t)), t[next(iter(t))] / 0),
            "holds NaN or infinity: training diverged",
        ),
        (lambda t: t.pop(next(name for name in t if "lora_B" in name)), r"has only lora_A\.weight"),
        (lambda t: t.__setitem__("base_model.model.x.lora_C", torch.ones(1)), r"does not know x\.lora_C"),
        (
            lambda t: t.__setitem__("base_model.model.model.layers.7.norm.weight", torch.ones(1)),
            r"trained on another base: it changes model\.layers\.7\.norm\.weight.*is not there",
        ),
    ],
    ids=["nan", "half", "unknown", "elsewhere"],
)
def test_a_damaged_adapter_is_refused(tmp_path, change, message):
    base, adapter = write_run(tmp_path)
    edit_tensors(adapter / "adapter_model.safetensors", change)
    with pytest.raises(LabError, match=message):
        merge(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def four_bit(base):
    def edit(tensors):
        name = "model.layers.0.self_attn.q_proj.weight"
        tensors[name] = torch.zeros(512, 1, dtype=torch.uint8)
        tensors[f"{name}.absmax"] = torch.zeros(16, dtype=torch.uint8)

    edit_tensors(base / "model.safetensors", edit)


def cut_short(base):
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(base):
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def of_another_width(base):
    base_model(hidden_size=64).save_pretrained(base)


@pytest.mark.parametrize(
    "change, message",
    [
        (four_bit, r"q_proj\.weight.* is U8: this model is quantised.*original 16-bit"),
        (cut_short, r"model\.safetensors is not a whole safetensors file"),
        (pickled, r"holds no model\.safetensors"),
        (
            of_another_width,
            r"was trained on another base: it changes .*\[32, 64\], which is \[64, 64\] there",
        ),
        (lambda base: (base / "config.json").unlink(), r"config\.json is missing"),
        (lambda base: (base / "config.json").write_text("{"), r"config\.json: not valid JSON"),
    ],
    ids=["4-bit", "cut", "pickle", "width", "no-config", "bad-config"],
)
def test_a_base_that_cannot_be_merged_into_is_refused(tmp_path, change, message):
    base, adapter = write_run(tmp_path)
    change(base)
    with pytest.raises(LabError, match=message):
        merge(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_base_with_other_embeddings_than_in_training_is_refused(tmp_path):
    base, adapter = write_run(tmp_path, target_modules=["q_proj", "embed_tokens"])
    edit_tensors(base / "model.safetensors", lambda tensors: tensors["model.embed_tokens.weight"].add_(1))
    with pytest.raises(LabError, match="trained on another base: its copy of the embeddings differs"):
        merge(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_an_adapter_without_its_tokenizer_is_refused(tmp_path, name):
    base, adapter = write_run(tmp_path)
    (adapter / name).unlink()
    with pytest.raises(LabError, match=rf"{name} is missing; the tokenizer that was trained with"):
        merge(base, adapter, tmp_path / "merged")


@pytest.mark.parametrize("name", ["base", "adapter"])
def test_the_base_and_the_adapter_are_never_written_over(tmp_path, name):
    base, adapter = write_run(tmp_path)
    before = contents(tmp_path / name)
    with pytest.raises(LabError, match="give the merged model its own folder"):
        merge(base, adapter, tmp_path / name)
    assert contents(tmp_path / name) == before


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    base, adapter = write_run(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(LabError, match="not enough disk for the merged model"):
        merge(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.fixture
def largest_file():
    """Sets the most bytes that this process may write into one file, None for no limit."""
    resource = pytest.importorskip("resource", reason="Windows has no limit on a file's size")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size or before[0], before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_shards_finished_before_a_failure_are_not_written_again(tmp_path, largest_file):
    base, adapter = write_run(tmp_path, base={"vocab_size": 2000}, max_shard_size="30KB")
    sizes = {path.name: path.stat().st_size for path in sorted(base.glob("*.safetensors"))}
    largest = max(sizes, key=sizes.get)
    shutil.move(base / largest, base / "model-00099.safetensors")  # the embedding comes last
    index = base / "model.safetensors.index.json"
    index.write_text(index.read_text(encoding="utf-8").replace(largest, "model-00099.safetensors"), "utf-8")
    largest_file(sizes[largest] - 1000)
    with pytest.raises(LabError, match="larger than this system allows"):
        merge(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    left = {path.name: path.stat() for path in next(tmp_path.glob(".merged.merge-*")).iterdir()}
    assert set(left) == set(sizes) - {largest}
    largest_file(None)
    merge(base, adapter, tmp_path / "merged")
    for name, stat in left.items():
        now = (tmp_path / "merged" / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "merged"]


@pytest.mark.parametrize("other, dtype", [({"lora_alpha": 80}, "base"), ({}, "float16")])
def test_shards_of_another_adapter_or_dtype_are_not_taken(tmp_path, largest_file, other, dtype):
    base, adapter = write_run(tmp_path, base={"vocab_size": 2000}, max_shard_size="30KB")
    sizes = sorted(path.stat().st_size for path in base.glob("*.safetensors"))
    largest_file(sizes[-2])
    with pytest.raises(LabError, match="larger than this system allows"):
        merge(base, adapter, tmp_path / "merged")
    largest_file(None)
    write_run(tmp_path / "other", base={"vocab_size": 2000}, max_shard_size="30KB", **other)
    merge(base, tmp_path / "other" / "adapter", tmp_path / "merged", dtype)
    merge(base, tmp_path / "other" / "adapter", tmp_path / "undisturbed", dtype)
    assert contents(tmp_path / "merged") == contents(tmp_path / "undisturbed")
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
def test_a_killed_merge_is_finished_by_the_next_one(tmp_path):
    """Killed behind every second shard, each time followed by a second run."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16, "vocab_size": 4000}
    base, adapter = write_run(tmp_path, torch.bfloat16, sizes, max_shard_size="6MB")
    merge(base, adapter, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([merge.__module__, "torch", "peft"])

    def bench():
        return glob(f"{tmp_path}/.merged.merge-*/*")  # noqa: PTH207  # Path's fails when it goes meanwhile

    def killed(files):
        process = forks.Process(target=merge, args=(base, adapter, tmp_path / "merged"))
        process.start()
        while process.is_alive() and len(bench()) < files:
            time.sleep(0.001)
        process.kill()
        process.join()
        return process.exitcode == -signal.SIGKILL

    kills = reused = 0
    for files in range(0, sum(name.endswith(".safetensors") for name in expected), 2):
        kills += killed(files)
        if (tmp_path / "merged").exists():
            assert contents(tmp_path / "merged") == expected
        reused += sum(path.endswith(".safetensors") for path in bench())
        merge(base, adapter, tmp_path / "merged")
        assert contents(tmp_path / "merged") == expected
        assert bench() == []
        shutil.rmtree(tmp_path / "merged")
    assert min(kills, reused) > 0


UNSLOTH = """
import sys
from unsloth import FastLanguageModel
import torch
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name=sys.argv[1], max_seq_length=128, dtype=torch.bfloat16, load_in_4bit=False
)
model.save_pretrained_merged(sys.argv[2], tokenizer, save_method="merged_16bit")
"""


def unsloth_merge(adapter, folder, **base):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(base["base"]))
    try:
        importlib.metadata.version("unsloth")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("unsloth is not installed")
    subprocess.run([sys.executable, "-c", UNSLOTH, str(adapter), str(folder)], check=True, timeout=600)


@pytest.mark.slow
def test_unsloths_merge_has_the_same_tensors(tmp_path):
    base, adapter = write_run(tmp_path, torch.bfloat16, {"vocab_size": 260}, target_modules=MODULES)
    tokenizer().save_pretrained(base)
    unsloth_merge(adapter, tmp_path / "unsloth", base=base)
    merge(base, adapter, tmp_path / "merged")
    assert same_bytes(*(load_file(tmp_path / name / "model.safetensors") for name in ("merged", "unsloth")))


@pytest.mark.slow
def test_unsloths_merge_of_the_embedded_model_has_the_same_tensors(tmp_path, embedded_folder):
    model = AutoModelForCausalLM.from_pretrained(embedded_folder, dtype=torch.bfloat16)
    with_adapter(model, r=16, lora_alpha=16, task_type="CAUSAL_LM").save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(embedded_folder).save_pretrained(tmp_path / "adapter")
    unsloth_merge(tmp_path / "adapter", tmp_path / "unsloth", base=embedded_folder)
    merge(embedded_folder, tmp_path / "adapter", tmp_path / "merged")
    assert same_bytes(*(load_file(tmp_path / name / "model.safetensors") for name in ("merged", "unsloth")))

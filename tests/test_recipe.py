import pytest

from finelab import LabError, recipe


@pytest.mark.parametrize("name", recipe.preset_names())
def test_a_preset_survives_writing_and_reading(name, tmp_path):
    preset = recipe.load_preset(name)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.dumps(preset), encoding="utf-8")
    assert recipe.read(path) == preset


@pytest.mark.parametrize("name", recipe.preset_names())
def test_presets_start_from_the_seeds_hyperparameters(name):
    preset = recipe.load_preset(name)
    assert (preset.lora.r, preset.lora.lora_alpha, preset.lora.lora_dropout) == (16, 16, 0)
    assert len(preset.lora.target_modules) == 7
    training = preset.training
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (2, 4)
    assert (training.learning_rate, training.warmup_steps, training.weight_decay) == (2e-4, 5, 0.01)
    assert (training.optim, training.seed) == ("adamw_8bit", 3407)
    assert preset.model.load_in_4bit
    assert preset.model.max_seq_length == 2048


def test_set_changes_only_what_it_names(preset):
    changed = recipe.override(preset, ["data.limit=200", "training.optim=adamw_torch"])
    assert recipe.differences(preset, changed) == [
        "data.limit: None -> 200",
        "training.optim: 'adamw_8bit' -> 'adamw_torch'",
    ]


def test_another_model_does_not_keep_what_was_said_of_the_first(preset):
    pinned = recipe.override(preset, ["model.revision=0123abcd"])
    changed = recipe.override(pinned, ["model.model_name=Qwen/Qwen3-0.6B"])
    assert changed.model.revision is None
    assert (changed.publish.base_model, changed.publish.license) == ("Qwen/Qwen3-0.6B", "")
    assert (preset.publish.merged_dtype, changed.publish.merged_dtype) == ("float16", "base")
    said = ["publish.license=apache-2.0", "publish.base_model=Qwen/Qwen3-0.6B-Base"]
    changed = recipe.override(preset, ["model.model_name=Qwen/Qwen3-0.6B", *said])
    assert (changed.publish.base_model, changed.publish.license) == ("Qwen/Qwen3-0.6B-Base", "apache-2.0")
    same = recipe.override(preset, [f"model.model_name={preset.model.model_name}"])
    assert same.publish == preset.publish


def test_other_data_do_not_keep_the_kinds_that_the_first_held_out(preset):
    other = recipe.override(preset, ['data.sources=["owner/name"]']).data
    assert other.heldout_sources == () and preset.data.heldout_sources
    named = recipe.override(preset, ['data.sources=["owner/name"]', 'data.heldout_sources=["b"]']).data
    assert named.heldout_sources == ("b",)
    assert recipe.override(preset, ['data.sources=["embedded"]']) == preset


def test_set_reads_lists_and_whole_numbers_for_floats(preset):
    changed = recipe.override(preset, ['lora.target_modules=["q_proj"]', "training.learning_rate=1"])
    assert changed.lora.target_modules == ("q_proj",)
    assert changed.training.learning_rate == 1.0


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("data.limit", "expected section.key=value"),
        ("limit=3", "expected section.key=value"),
        ("dta.limit=3", "did you mean 'data'"),
        ("data.limt=3", "did you mean 'limit'"),
        ("data.limit=many", "data.limit: expected int, got 'many'"),
        (
            r'data.sources=["C:\Users\me\chats.jsonl"]',
            "(at line 1, column 15); write paths with / or in single quotes.",
        ),
        ('data.sources=["a.jsonl"', "not valid TOML: Unclosed array (at end of document)."),
        ("data.limit=1", "data.limit must be at least 4"),
        ("data.heldout_share=1.5", "data.heldout_share must lie between 0 and 1"),
        ("lora.r=0", "lora.r must be at least 1"),
        ("lora.r=16.5", "lora.r: expected int, got 16.5"),
        ("lora.target_modules=q_proj", "expected a list such as"),
        ("training.max_steps=0", "training.max_steps must be -1"),
        ("training.learning_rate=-1", "training.learning_rate must be above 0"),
        ("training.max_first_loss=inf", "training.max_first_loss: expected a finite number, got inf"),
        ("data.min_score=nan", "data.min_score: expected a finite number, got nan"),
        ("training.logging_steps=0", "training.logging_steps must be at least 1"),
        ("training.warmup_steps=-3", "training.warmup_steps must be 0 or more"),
        ("training.optim=adamw_8bits", "there is no 'adamw_8bits'; did you mean 'adamw_8bit'"),
        ("training.lr_scheduler_type=cosinus", "there is no 'cosinus'; did you mean 'cosine'"),
        ("training.lr_scheduler_type=warmup_stable_decay", "'warmup_stable_decay' needs more than a recipe"),
        ("training.optim=galore_adamw", "'galore_adamw' needs more than a recipe has"),
        ("lora.bias=some", "lora.bias must be one of none, all, lora_only"),
        ("publish.merged_dtype=bf16", "publish.merged_dtype must be one of base, float16"),
        ("chat.temperature=-1", "chat.temperature must be 0 (greedy) or more"),
    ],
)
def test_a_wrong_assignment_says_what_is_wrong(preset, assignment, said):
    with pytest.raises(LabError) as error:
        recipe.override(preset, [assignment])
    assert said in str(error.value)


@pytest.mark.parametrize(
    "assignment",
    [f"training.optim={name}" for name in (*recipe.OPTIM, "lion_32bit")]
    + [f"training.lr_scheduler_type={name}" for name in (*recipe.LR_SCHEDULER_TYPE, "polynomial")],
)
def test_what_transformers_has_is_taken(preset, assignment):
    from transformers import TrainingArguments

    training = recipe.override(preset, [assignment]).training
    TrainingArguments(optim=training.optim, lr_scheduler_type=training.lr_scheduler_type, use_cpu=True)


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(LabError, match=r"llama-3\.2-1b, llama-3\.2-3b, smollm2-135m"):
        recipe.load_preset("llama")


def test_a_recipe_file_that_is_not_toml_is_named(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("name = ", encoding="utf-8")
    with pytest.raises(LabError, match=r"recipe\.toml: not valid TOML"):
        recipe.read(path)


def test_a_windows_path_in_double_quotes_in_a_recipe_file_is_told(tmp_path, preset):
    path, windows = tmp_path / "recipe.toml", r"C:\Users\me\chats.jsonl"
    text = recipe.dumps(recipe.override(preset, ['data.sources=["chats.jsonl"]']))
    path.write_text(text.replace('"chats.jsonl"', f'"{windows}"'), encoding="utf-8")
    with pytest.raises(LabError, match=r"not valid TOML: .*; write paths with / or in single quotes\."):
        recipe.read(path)
    path.write_text(text.replace('"chats.jsonl"', f"'{windows}'"), encoding="utf-8")
    assert recipe.read(path).data.sources == (windows,)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_recipe_may_be_saved_as_windows_editors_do(tmp_path, preset, encoding):
    path = tmp_path / "recipe.toml"
    wanted = recipe.override(preset, ['data.sources=["Jürgen.jsonl"]'])
    path.write_text(recipe.dumps(wanted), encoding=encoding)
    assert recipe.read(path) == wanted


def test_a_recipe_in_another_encoding_is_named(tmp_path, preset):
    path = tmp_path / "recipe.toml"
    wanted = recipe.override(preset, ['data.sources=["Jürgen.jsonl"]'])
    path.write_text(recipe.dumps(wanted), encoding="cp1252")
    with pytest.raises(LabError, match=r"recipe\.toml: its letters are not UTF-8; save it as UTF-8"):
        recipe.read(path)


def test_a_section_that_is_a_value_is_named(tmp_path, preset):
    path = tmp_path / "recipe.toml"
    text = recipe.dumps(preset)
    head, tail = text.split("[model]")
    path.write_text(f'{head}model = "x"\n[data]{tail.split("[data]")[1]}', encoding="utf-8")
    with pytest.raises(LabError, match=r"recipe\.toml: model: expected a section with keys, got 'x'"):
        recipe.read(path)


def test_a_missing_key_is_named(tmp_path, preset):
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.dumps(preset).replace("r = 16\n", ""), encoding="utf-8")
    with pytest.raises(LabError, match=r"lora\.r: missing"):
        recipe.read(path)


def test_an_adapters_start_is_one_that_peft_knows():
    preset = recipe.load_preset("smollm2-135m")
    assert recipe.override(preset, ["lora.init_lora_weights=pissa"]).lora.init_lora_weights == "pissa"
    assert recipe.override(preset, ["lora.init_lora_weights=true"]).lora.init_lora_weights is True
    with pytest.raises(LabError, match=r"init_lora_weights must be one of true, .gaussian."):
        recipe.override(preset, ["lora.init_lora_weights=false"])

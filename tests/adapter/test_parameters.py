"""The explanations: complete, true to the installed libraries and to our results, and the same everywhere."""

import ast
import dataclasses
import importlib.util
import inspect
import json
from pathlib import Path

import pytest

from finelab import LabError
from finelab.adapter import parameters
from finelab.recipe import SECTIONS, load_preset
from finelab.train.memory import SHAPES, Setting, disk, flops_per_token, memory
from tests.house.test_notebooks import ON_CUDA, cells
from tests.tiny import MODULES

ROOT = Path(__file__).parents[2]
KNOWN = parameters.read()
SHIPPED = parameters.PARAMETERS.read_text(encoding="utf-8")
BY_KEY = [pytest.param(each, id=each.key) for each in KNOWN.values()]


def result(name):
    """What a benchmark's committed run found."""
    return json.loads((ROOT / "benchmarks/results" / name).read_text(encoding="utf-8"))


MAIN_JOB = result("main_job.json")["details"]
TRAIN, FLOAT32, TILES = (result(f"train{name}.json") for name in ("", "_float32", "_tiles"))


def fields():
    """Every field of a recipe but the names under which it is published."""
    return {
        f"{section}.{field.name}"
        for section, kind in SECTIONS.items()
        if section != "publish"
        for field in dataclasses.fields(kind)
    }


def installed(library):
    """The keywords that a class or function of the installed libraries takes, with their defaults."""
    from peft import LoraConfig
    from transformers import GenerationConfig
    from trl import SFTConfig

    if library == "model.generate":
        return GenerationConfig().to_dict()
    if library.startswith("FastLanguageModel."):
        return in_source(*ON_CUDA[library.partition(".")[2]])
    signature = inspect.signature({"LoraConfig": LoraConfig, "SFTConfig": SFTConfig}[library])
    return {name: each.default for name, each in signature.parameters.items()}


def in_source(module, name):
    """The keywords of the functions of this name in a module that cannot be imported without a card."""
    source = Path(importlib.util.find_spec(module.partition(".")[0]).submodule_search_locations[0])
    path = source.joinpath(*module.split(".")[1:]).with_suffix(".py")
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            arguments = node.args.args
            defaults = [None] * (len(arguments) - len(node.args.defaults)) + node.args.defaults
            for argument, default in zip(arguments, defaults, strict=True):
                found[argument.arg] = default.value if isinstance(default, ast.Constant) else ...
    return found


def test_every_field_of_a_recipe_is_explained_and_nothing_else_under_its_name():
    explained = {key for key in KNOWN if not key.startswith(parameters.KEYWORDS)}
    assert explained == fields()
    names = [each.name for each in KNOWN.values()]
    assert len(names) == len(set(names))  # so that explain(name) means one


@pytest.mark.parametrize("parameter", BY_KEY)
def test_the_named_library_takes_it(parameter):
    if parameter.library == "finelab":
        assert parameter.key in fields()
    else:
        assert parameter.name in installed(parameter.library)


@pytest.mark.parametrize("parameter", [each for each in KNOWN.values() if each.default])
def test_a_default_that_is_written_down_is_the_installed_one(parameter):
    assert parameter.section == parameters.KEYWORDS
    assert parameter.default == repr(installed(parameter.library)[parameter.name])


def test_every_keyword_that_notebook_2_passes_is_explained():
    code = "\n".join(cells(ROOT / "notebooks" / "02_adapter.ipynb", "code"))
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    passed = {
        keyword.arg
        for call in calls
        if getattr(call.func, "attr", "") in ON_CUDA
        for keyword in call.keywords
    }
    assert {"r", "load_in_4bit", "loftq_config"} <= passed
    assert passed <= {each.name for each in KNOWN.values()}


@pytest.mark.parametrize("parameter", BY_KEY)
def test_an_entry_is_short_enough_to_read_and_says_what_is_traded_first(parameter):
    assert len(parameter.trades) <= 75
    assert parameter.trades.endswith(".")
    assert parameter.tradeoff.startswith(parameter.trades)
    assert len(parameter.what.split()) <= 60
    assert len(f"{parameter.tradeoff} {parameter.evidence}".split()) <= 190


def test_every_source_is_an_address_or_a_file_of_ours_or_said_to_be_measured():
    for source in {source for each in KNOWN.values() for source in each.sources}:
        assert (
            source.where.startswith("https://")
            or (source.where and (ROOT / source.where).is_file())
            or (not source.where and source.title.startswith("Measured for this lab"))
        ), source


def test_no_source_is_left_over():
    import tomllib

    cited = {source for each in KNOWN.values() for source in each.sources}
    assert len(cited) == len(tomllib.loads(SHIPPED)["sources"])


ONE, EIGHT_BIT = SHAPES["Llama-3.2-1B"], Setting(16, tuple(MODULES), 2, 2048, 4, 2, "unsloth", "cuda")


def changed(**values):
    return dataclasses.replace(EIGHT_BIT, **values)


def activations(checkpointing):
    return memory(ONE, changed(use_gradient_checkpointing=checkpointing))["activations"] / 1e9


def work(**values):
    return flops_per_token(ONE, changed(**values))


SPEED = max(trial["ratio"] or 0 for trial in MAIN_JOB["tuning"]["trials"])
HELD_OUT = MAIN_JOB["evaluation"]
LOSSES = TRAIN["details"]["largest_loss_difference_from_float32_over_the_first_8_steps"]


@pytest.mark.parametrize(
    "name, said",
    [
        ("per_device_train_batch_size", f"{SPEED:.2f} times the trained tokens/s"),
        ("tune", f"{SPEED:.2f} times the trained tokens/s"),
        ("fast_cpu_step", f"{TRAIN['ratios']['trl']:.1f} times the trained tokens/s of TRL and PEFT"),
        ("fast_cpu_step", f"{FLOAT32['ratios']['trl']:.1f} and {FLOAT32['ratios']['unsloth']:.1f} times"),
        ("fast_cpu_step", f"{TILES['ratios']['trl']:.1f} and {TILES['ratios']['unsloth']:.1f} times."),
        ("fast_cpu_step", f"{TRAIN['ratios']['unsloth']:.1f} times Unsloth's CPU backend"),
        ("fast_cpu_step", f"within {LOSSES['ours']} nats"),
        ("dtype", f"Unsloth's within {LOSSES['unsloth']}, TRL's within {LOSSES['trl']}"),
        ("heldout_share", f"{HELD_OUT['rows']} rows showed"),
        ("heldout_share", f"gain of {-HELD_OUT['difference']:.2f} nats"),
        ("heldout_sources", f"falls by {-HELD_OUT['families']['difference']:.2f} nats both"),
        ("max_first_loss", f"{MAIN_JOB['training']['first_loss']:.1f} (SmolLM2-135M"),
    ],
)
def test_our_own_results_are_quoted_as_they_are(name, said):
    assert said in parameters.explain(name).evidence


@pytest.mark.parametrize(
    "name, said",
    [
        ("r", f"is {work(r=32) / work() - 1:.0%}".replace("%", " % more FLOPs")),
        (
            "target_modules",
            f"{ONE.adapter(16, MODULES[:4]) / ONE.adapter(16, MODULES):.0%}".replace("%", " %"),
        ),
        ("optim", f"{6 * ONE.adapter(16, MODULES) / 1e6:.0f} MB"),
        ("save_steps", f"{disk(ONE, EIGHT_BIT, 2)['checkpoints'] / 3e6:.0f} MB each"),
        ("load_in_4bit", f"{memory(ONE, EIGHT_BIT)['weights'] / 1e9:.1f} GB of weights"),
        ("load_in_4bit", f"in place of {memory(ONE, changed(weight_bits=16))['weights'] / 1e9:.1f}"),
        ("load_in_4bit", f"{2 * ONE.head / 1e9:.1f} GB is the embedding"),
        (
            "use_gradient_checkpointing",
            f"{work() / work(use_gradient_checkpointing=False):.2f} times the FLOPs",
        ),
        ("use_gradient_checkpointing", f"{activations('unsloth'):.1f} GB with `unsloth`"),
        (
            "use_gradient_checkpointing",
            f"{activations(True):.1f} with true, {activations(False):.0f} without",
        ),
        ("weight_decay", f"by {12_500 * 1e-4 * 0.01 * 100:.1f} % in all"),
    ],
)
def test_what_was_computed_is_what_the_formulas_give(name, said):
    explained = parameters.explain(name)
    assert said in f"{explained.tradeoff} {explained.evidence}"


def test_peft_scales_starts_and_drops_as_it_is_explained():
    """The four statements on LoRA's arithmetic that are wrong in many guides."""
    import torch
    from peft import LoraConfig, get_peft_model

    def layer(**values):
        torch.manual_seed(0)
        base = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
        base[0].weight.requires_grad_(False)
        return get_peft_model(base, LoraConfig(target_modules=["0"], **values)).base_model.model[0]

    assert layer(r=16, lora_alpha=16).scaling["default"] == 1
    assert layer(r=16, lora_alpha=16, use_rslora=True).scaling["default"] == 4
    started = layer(r=4)
    assert not started.lora_B["default"].weight.any()
    assert started.lora_A["default"].weight.any()
    replaced = layer(r=4, init_lora_weights="pissa")
    assert not torch.equal(replaced.base_layer.weight, started.base_layer.weight)
    dropping = layer(r=4, lora_dropout=0.5).train()
    seen = []
    dropping.lora_A["default"].register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    dropping(torch.ones(1, 64))
    assert set(seen[0].flatten().tolist()) == {0.0, 2.0}


# Damage


def damaged(tmp_path, old, new):
    assert old in SHIPPED
    path = tmp_path / "parameters.toml"
    path.write_text(SHIPPED.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("[lora.r]", "[lora.r", "cannot be read"),
        ("[lora.r]\nwhat =", "[lora.r]\nwaht =", r"lora\.r: unknown key 'waht'"),
        ('range = "8 to 64; 128 or 256 for 100,000 rows and more"\n', "", r"lora\.r: `range` is missing"),
        ('range = "r or 2r"', 'range = " "', r"lora\.lora_alpha: `range` must be a text that is not empty"),
        ('range = "r or 2r"', "range = 16", r"lora\.lora_alpha: `range` must be a text .* got 16"),
        ('sources = ["peft_layer", "pissa", "lr_matters"]', "sources = []", "must name at least one"),
        ('sources = ["peft_layer", "pissa", "lr_matters"]', 'sources = ["x"]', "there is no source 'x'"),
        ("[lora.r]\n", "[lora]\nextra = 1\n[lora.r]\n", r"lora\.extra: expected a table"),
    ],
)
def test_a_damaged_file_is_told(tmp_path, old, new, message):
    with pytest.raises(LabError, match=message) as told:
        parameters.read(damaged(tmp_path, old, new))
    assert "from the repository" in str(told.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(LabError, match=r"parameters\.toml: cannot be read"):
        parameters.read(tmp_path / "parameters.toml")


# Showing


def test_one_is_explained_by_its_name_with_or_without_section():
    assert parameters.explain("r") is parameters.explain("lora.r")
    text = str(parameters.explain("use_rslora"))
    assert "sqrt(r)" in text
    assert "https://arxiv.org/abs/2312.03732" in text
    with pytest.raises(LabError, match="there is no parameter 'learnin_rate'; did you mean learning_rate"):
        parameters.explain("learnin_rate")
    with pytest.raises(LabError, match="there are: model_name"):
        parameters.explain("zzz")


def test_the_value_is_the_recipes(preset):
    recipe = dataclasses.replace(preset, lora=dataclasses.replace(preset.lora, r=48, use_rslora=True))
    assert parameters.explain("r").value(recipe) == "48"
    assert parameters.explain("use_rslora").value(recipe) == "true"
    assert parameters.explain("revision").value(recipe) == "not set"
    assert parameters.explain("max_length").value(recipe) == "1024"


def test_choosing_another_parameter_shows_its_card(preset):
    shown = parameters.chooser(preset, first="r")
    choice, card = shown.widget.children
    assert "lora.r" in card.value
    choice.value = "training.learning_rate"
    assert "training.learning_rate" in card.value
    assert "<code>0.0002</code>" in card.value
    assert list(choice.options) == list(KNOWN)


def test_without_a_frontend_all_cards_are_there(preset):
    bundle = parameters.chooser(preset)._repr_mimebundle_()
    assert bundle["text/html"].count("<details>") == len(KNOWN)
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "Trade-off" in bundle["text/plain"]


def test_text_of_a_recipe_is_no_markup(preset):
    named = dataclasses.replace(preset.model, model_name="<script>alert(1)</script>")
    recipe = dataclasses.replace(preset, model=named)
    assert "<script>" not in parameters.cards(recipe)
    assert "&lt;script&gt;" in parameters.card(parameters.explain("model_name"), recipe)


# The README


def test_the_readmes_section_is_up_to_date():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert parameters.with_section(readme) == readme, "run python -m finelab.adapter.parameters --readme"


def test_the_script_writes_between_the_markers_and_nowhere_else(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- parameters -->\nold\n<!-- /parameters -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(parameters, "README", readme)
    parameters.main(["--readme"])
    written = readme.read_text(encoding="utf-8")
    assert written.startswith("before\n<!-- parameters -->\n### Parameters\n")
    assert written.endswith("|\n<!-- /parameters -->\nafter\n")
    assert "old" not in written
    parameters.main(["--readme"])
    assert readme.read_text(encoding="utf-8") == written
    readme.write_text("no markers\n", encoding="utf-8")
    with pytest.raises(LabError, match="expected the lines <!-- parameters -->"):
        parameters.main(["--readme"])
    assert readme.read_text(encoding="utf-8") == "no markers\n"


def test_a_default_that_differs_between_the_recipes_is_given_for_each(capsys):
    parameters.main([])
    rows = {line.split("`")[1]: line for line in capsys.readouterr().out.splitlines() if "`" in line}
    values = [str(load_preset(name).training.save_steps) for name in parameters.preset_names()]
    assert f"| {' / '.join(values)} |" in rows["training.save_steps"]
    assert rows["lora.r"].endswith("| 16 |")
    assert not any(key.startswith("data.") for key in rows)

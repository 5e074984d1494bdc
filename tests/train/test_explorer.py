"""The explorer, driven by its widgets' values: it says what memory.py, plan.py and cards.py say."""

import base64
import dataclasses
import re

import pytest

from finelab import LabError
from finelab.recipe import load_preset, override
from finelab.train import explorer
from finelab.train.cards import card_called
from finelab.train.explorer import EXPLORED, LIMITS, Explorer
from finelab.train.memory import SHAPES, Setting, disk, memory
from finelab.train.plan import plan_on_card
from finelab.train.workload import assumed_counts
from tests.tiny import MODULES

ONE = SHAPES["Llama-3.2-1B"]


@pytest.fixture
def explored():
    return Explorer(load_preset("llama-3.2-1b"), ONE)


def turn(explored, **values):
    for name, value in values.items():
        explored.controls[name].value = value


def test_it_starts_at_the_recipe(explored):
    assert explored.setting == Setting(16, tuple(MODULES), 2, 2048, 4, 2, "unsloth", "cuda")
    assert explored.line.startswith(
        "Llama-3.2-1B on a GeForce RTX 2060 SUPER, r 16 on 7 of 7 projections, 4 bit, 2 x 2,048 tokens: "
        "11,272,192 of 1,247,086,592 parameters train (0.90%); adapter on disk 62 MB; memory 3.25 GB"
    )
    assert "fits a card of 8 GB" in explored.line


@pytest.mark.parametrize(
    "values",
    [
        {"r": 64},
        {"target_modules": ("q_proj", "v_proj")},
        {"weight_bits": 16},
        {"length": 512},
        {"batch_size": 8},
        {"use_gradient_checkpointing": False},
        {"r": 4, "length": 4096, "batch_size": 1, "use_gradient_checkpointing": True},
    ],
)
def test_a_slider_changes_what_the_formulas_change(explored, values):
    before = explored.line
    turn(explored, **values)
    setting = dataclasses.replace(Setting(16, tuple(MODULES), 2, 2048, 4, 2, "unsloth", "cuda"), **values)
    found = explored.estimate
    assert explored.line != before
    assert found.trainable == ONE.adapter(setting.r, setting.target_modules)
    assert found.memory == memory(ONE, setting)
    assert found.adapter_bytes == disk(ONE, setting, 2)["adapter"]


@pytest.mark.parametrize("card", ["rtx-2060s", "t4", "l4"])
@pytest.mark.parametrize("rows, length", [(2, 2048), (8, 1024)])
def test_the_time_is_the_plans(card, rows, length):
    recipe = load_preset("llama-3.2-1b")
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, max_seq_length=length),
        training=dataclasses.replace(recipe.training, per_device_train_batch_size=rows),
    )
    planned = plan_on_card(recipe, card_called(card), assumed_counts(explorer.ROWS, length))
    seconds = Explorer(recipe, ONE, card).estimate.seconds
    assert seconds == pytest.approx(planned.predicted["seconds"], rel=0.02)  # another order of the rows


def test_model_and_card_can_be_changed(explored):
    turn(explored, model="Llama-3.2-3B")
    slower = explored.estimate.seconds
    turn(explored, card="h100")
    assert explored.estimate.seconds < slower / 5
    assert "Llama-3.2-3B on a H100 SXM" in explored.line
    assert "at least" in explored.line  # nothing like an H100 was measured


def test_the_8b_model_has_the_published_number_of_parameters():
    shape = EXPLORED["Llama-3.1-8B"]
    assert shape.body + shape.others == 8_030_261_248
    assert shape.adapter(16, MODULES) == 41_943_040


def test_a_setting_that_is_too_large_is_said_to_be(explored):
    turn(explored, model="Llama-3.1-8B")
    assert "fits a card of 16 GB; not on this card" in explored.line
    turn(explored, weight_bits=16, card="rtx-5000")
    assert "fits a card of 24 GB; not on this card" in explored.line
    turn(explored, use_gradient_checkpointing=False)
    assert "too much for 24 GB; not on this card" in explored.line
    assert explored.estimate.fits == []


def test_no_module_is_no_training_and_can_be_mended(explored):
    turn(explored, target_modules=())
    assert explored.line.startswith("Choose at least one of target_modules")
    turn(explored, r=32, target_modules=("q_proj",))
    assert f"{ONE.adapter(32, ['q_proj']):,} of" in explored.line


def test_a_module_outside_the_layers_is_a_sentence():
    other = override(load_preset("llama-3.2-1b"), ['lora.target_modules=["q_proj", "embed_tokens"]'])
    with pytest.raises(LabError, match=r"lora\.target_modules: no module 'embed_tokens'"):
        Explorer(other, ONE)


def test_a_recipe_between_the_steps_and_a_model_of_ones_own_can_be_explored(preset):
    recipe = dataclasses.replace(
        preset,
        model=dataclasses.replace(preset.model, model_name="mine", max_seq_length=700),
        lora=dataclasses.replace(preset.lora, r=12, use_gradient_checkpointing=False),
    )
    explored = Explorer(recipe, dataclasses.replace(SHAPES["SmolLM2-135M"], num_hidden_layers=2), card="t4")
    assert explored.setting.r == 12
    assert explored.setting.length == 700
    assert explored.line.startswith("mine on a Tesla T4")
    turn(explored, model="SmolLM2-135M")
    assert f"{SHAPES['SmolLM2-135M'].adapter(12, MODULES):,} of" in explored.line


def test_the_widgets_show_the_line_and_a_new_picture(explored):
    *controls, line, picture = explored.view.widget.children
    assert controls == list(explored.controls.values())
    before = bytes(picture.value)
    assert before.startswith(b"\x89PNG")
    turn(explored, weight_bits=16)
    assert line.value == explored.line
    assert bytes(picture.value).startswith(b"\x89PNG")
    assert bytes(picture.value) != before


def test_without_a_frontend_there_is_the_picture_and_the_line(explored):
    bundle = explored.view._repr_mimebundle_()
    assert bundle["text/plain"] == explored.line
    assert explored.line in bundle["text/html"]
    encoded = re.search(r'base64,([^"]+)"', bundle["text/html"])[1]
    assert base64.b64decode(encoded) == explored.view.widget.children[-1].value


def test_the_figure_has_every_part_and_the_three_sizes(explored):
    axes = explored.figure.axes[0]
    assert len(axes.lines) == len(LIMITS) == 3
    total = sum(bar.get_width() for bar in axes.patches)
    assert total == pytest.approx(sum(explored.estimate.memory.values()) / 1e9)

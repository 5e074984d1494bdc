"""The tuner: its record, and a tuning through Unsloth on a tiny Llama."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from finelab import LabError, machine, recipe
from finelab.run import TRAINING_LOCK, alone, open_run
from finelab.train import Session
from finelab.train.memory import SHAPES
from finelab.train.probe import prepared
from finelab.train.search import LOSS_TOLERANCE, Tuned
from finelab.train.tuner import keep, needed_bytes, read, recorded, rows_of, tune
from tests.tiny import through_unsloth
from tests.train.searches import CPU, START, Machine, search
from tests.train.sittings import trainer_of


@pytest.fixture
def profile(preset):
    return machine.decide(CPU, preset)


def test_without_a_card_what_would_fill_the_memory_is_not_tried(preset, profile):
    """Linux would end the kernel, not the trial."""
    shape, lengths = SHAPES["Llama-3.2-1B"], [100] * 20 + [2000] * 4
    needed = [
        needed_bytes(
            dataclasses.replace(START, per_device_train_batch_size=rows), preset, profile, shape, lengths
        )
        for rows in (1, 2, 4, 8)
    ]
    step = needed[1] - needed[0]  # one more of the longest rows, without the logits' share, which ends early
    assert 0 < needed[2] - needed[1] <= 2 * step
    assert needed[3] - needed[2] < step  # the next longest are short
    packed = dataclasses.replace(START, per_device_train_batch_size=8, packing=True)
    assert needed_bytes(packed, preset, profile, shape, lengths) > needed[3]
    kept = dataclasses.replace(START, gradient_checkpointing=True)
    assert needed_bytes(kept, preset, profile, shape, lengths) < needed[1]


def test_memory_that_other_programs_hold_is_not_counted_on(run, preset, monkeypatch):
    """Of 64 GB one is available: an 8B is not tried, and no sitting after the next one killed for it."""
    from datasets import Dataset
    from transformers import LlamaConfig

    sizes = dataclasses.asdict(SHAPES["Llama-3.1-8B"])
    there = SimpleNamespace(total=64 * 10**9, available=10**9)
    monkeypatch.setattr("psutil.virtual_memory", lambda: there)
    profile = machine.decide(dataclasses.replace(CPU, memory_bytes=there.total), preset)
    rows = Dataset.from_list([{"input_ids": [5] * 100, "labels": [5] * 100}] * 16)
    with pytest.raises(LabError, match=r"does not fit into 64\.0 GB, or into what other programs"):
        tune(run, profile, SimpleNamespace(config=LlamaConfig(**sizes)), tokenizer=None, rows=rows)


def test_nothing_is_tuned_beside_a_training_of_the_run(run, profile):
    with alone(run, TRAINING_LOCK), pytest.raises(LabError, match="another process is at work"):
        tune(run, profile, model=None, tokenizer=None, rows=None)
    assert "tuning" not in run.evidence()


def test_a_tuning_is_read_back_as_it_was_and_measured_once(run, profile):
    tuned = search(Machine(lambda setting: 100 * setting.per_device_train_batch_size))
    run.record("tuning", dataclasses.asdict(tuned))
    assert tune(run, profile, model=None, tokenizer=None, rows=None) == tuned
    (run.checkpoints / "checkpoint-2").mkdir(parents=True)
    assert tune(run, profile, model=None, tokenizer=None, rows=None) == tuned


def test_a_tuning_holds_for_its_machine_and_data_until_training_has_begun(run, profile, preset):
    tuned = search(Machine(lambda setting: 100 * setting.per_device_train_batch_size))
    run.record("data", {"sha256": "a"})
    keep(run, profile, tuned)
    other = machine.decide(dataclasses.replace(CPU, name="another", cpu_bfloat16=False), preset)
    assert recorded(run, profile, begun=False) == tuned
    assert recorded(run, other, begun=False) is None
    begun = recorded(run, other, begun=True)
    assert begun == dataclasses.replace(tuned, bf16=False)  # the other machine has no bfloat16
    run.record("data", {"sha256": "b"})
    assert recorded(run, profile, begun=False) is None


def test_a_recipe_that_was_edited_since_is_not_passed_over(run, profile):
    tuned = search(Machine(lambda setting: 100 * setting.per_device_train_batch_size))
    keep(run, profile, tuned)
    path = run.folder / "recipe.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("accumulation_steps = 4", "accumulation_steps = 16"), encoding="utf-8")
    edited = open_run(run.folder)
    assert recorded(edited, profile, begun=False) is None
    with pytest.raises(LabError, match=r"optimizer step = 8, and recipe\.toml now says 32; put that back"):
        recorded(edited, profile, begun=True)


def test_without_tuning_the_recipe_is_the_setting(tmp_path, preset, profile):
    from finelab.run import create_run

    run = create_run(tmp_path / "plain", recipe.override(preset, ["training.tune=false"]))
    tuned = tune(run, profile, model=None, tokenizer=None, rows=None)
    assert tuned.arguments(profile) == {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "train_sampling_strategy": "random",
        "packing": False,
        "gradient_checkpointing": False,
        "bf16": True,
        "include_num_input_tokens_seen": "all",
    }
    assert str(tuned) == "2 x 4, bf16: as the recipe says"
    assert "tuning" not in run.evidence()


DAMAGE = [
    {"per_device_train_batch_size": 0},
    {"gradient_accumulation_steps": "4"},
    {"train_sampling_strategy": "longest"},
    {"bf16": 1},
    {"trials": [{"setting": "2 x 4"}]},
    {"trials": None},
]


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_a_damaged_record_is_no_setting(run, profile, damage):
    record = json.loads(json.dumps(dataclasses.asdict(search(Machine(lambda setting: 100)))))
    assert read(record) is not None
    assert read(record | damage) is None
    older = {name: value for name, value in record.items() if name != "packing"}
    assert read(older) is None
    run.record("tuning", record | damage)
    (run.checkpoints / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(LabError, match="no readable record of the tuning that its training began with"):
        tune(run, profile, model=None, tokenizer=None, rows=None)


def test_the_run_is_as_long_as_the_recipe_says(preset):
    lengths = [100] * 40
    assert rows_of(lengths, preset, START).run_tokens == 4000
    three = recipe.override(preset, ["training.num_train_epochs=3"])
    assert rows_of(lengths, three, START).run_tokens == 12_000
    some = recipe.override(preset, ["training.max_steps=2"])
    assert rows_of(lengths, some, START).run_tokens == 2 * 8 * 100
    assert rows_of(lengths, preset, START).mean_packed == 2000


def test_a_step_that_is_measured_recomputes_as_the_training_will(run):
    """On a card Unsloth makes its trainer with checkpointing off, and `train` puts it on again."""
    session = Session(run)
    for wanted in (True, False):
        trainer = trainer_of(session, gradient_checkpointing=wanted)
        made_with = not wanted
        if made_with:
            trainer.model.gradient_checkpointing_enable()
        with prepared(trainer) as model:
            assert model.is_gradient_checkpointing is wanted
        assert trainer.model.is_gradient_checkpointing is made_with


def test_unsloths_model_is_told_when_the_tuning_leaves_checkpointing_out(run, profile):
    model = SimpleNamespace(_unsloth_gradient_checkpointing="unsloth")
    for checkpointing, told in ((True, "unsloth"), (False, False)):
        keep(run, profile, Tuned(2, 4, "random", False, checkpointing, True))
        tune(run, profile, model, tokenizer=None, rows=None)
        assert model._unsloth_gradient_checkpointing == told


SCRIPT = """
import json, random, sys
from pathlib import Path
import unsloth
import numpy, torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel
from finelab.recipe import load_preset, override
from finelab.run import create_run
from finelab.train import search
from finelab.train.batches import collator, training_rows
from finelab.train.search import Tuned
from finelab.train.trial import trial
from finelab.train.tuner import setting_of, tune

folder = Path(sys.argv[1])
draw = random.Random(0)
ids = [[draw.randrange(3, 128) for _ in range(draw.randint(4, 40))] for _ in range(24)]
rows = Dataset.from_list([{"input_ids": row, "labels": [-100] * 2 + row[2:]} for row in ids])
run = create_run(folder / "run", override(load_preset("smollm2-135m"), ["model.max_seq_length=64"]))
profile = run.profile()

def start():
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(folder / "base"), max_seq_length=64, dtype=torch.float32, load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(
        model, r=4, lora_dropout=0.1, use_gradient_checkpointing=False, random_state=1)
    return model.eval(), tokenizer

def state(model):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits.tolist()
    return {
        "weights": {name: value.tolist() for name, value in model.state_dict().items()},
        "gradients": [parameter.grad for parameter in model.parameters()],
        "modes": [(each.training, getattr(each, "gradient_checkpointing", None)) for each in model.modules()],
        "hooks": [len(each._forward_hooks) for each in model.modules()],
        "attributes": [sorted(vars(each)) for each in model.modules()],
        "random": [torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()],
        "logits": logits,
    }

def trained(model, tokenizer):
    setting = Tuned(**vars(setting_of(run.recipe, profile)))
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=training_rows(rows, profile, setting.packing, 64),
        data_collator=collator(tokenizer, profile),
        args=SFTConfig(
            output_dir=str(folder / "out"), max_length=64, seed=3407, logging_steps=1, learning_rate=1e-2,
            num_train_epochs=1, save_strategy="no", report_to="none", **setting.arguments(profile)),
    )
    trainer.train()
    adapter = {name: value.tolist() for name, value in model.state_dict().items() if "lora" in name}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [losses, adapter], trainer.state.num_input_tokens_seen

plain, tokens = trained(*start())
model, tokenizer = start()
before = state(model)
search.LEAST_S = 300.0  # the busiest machine measures all trials
found = tune(run, profile, model, tokenizer, rows)
checkpointed = Tuned(**vars(setting_of(run.recipe, profile)) | {"gradient_checkpointing": True})
loss = trial(checkpointed, run, profile, model, tokenizer, rows).loss
after = state(model)
out = {
    "changed": [name for name in before if before[name] != after[name]],
    "again": tune(run, profile, None, None, None) == found,
    "trials": [vars(each) for each in found.trials],
    "same": trained(model, tokenizer)[0] == plain,
    "tokens": [tokens, sum(map(len, ids))],
    "checkpointed": loss,
}
print(found)
print("OUT", json.dumps(out))
"""


@pytest.mark.slow
def test_a_tuning_through_unsloth_leaves_no_trace(tmp_path):
    tuned = through_unsloth(SCRIPT, tmp_path)
    assert tuned["changed"] == []
    assert tuned["again"]
    assert tuned["same"]  # trained after a tuning as without one, bit for bit
    assert tuned["tokens"][0] == tuned["tokens"][1]
    assert [each["verdict"] for each in tuned["trials"]].count("chosen") == 1
    measured = [each for each in tuned["trials"] if each["trained_tokens_per_s"]]
    assert len(measured) >= 3
    assert all(each["padding_share"] == 0 for each in measured)
    assert max(abs(each["loss_difference"]) for each in measured) < LOSS_TOLERANCE
    assert tuned["checkpointed"] > 0

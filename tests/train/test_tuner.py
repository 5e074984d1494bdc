"""The tuner: its search over machines that are formulas, its record, and its trials on a tiny Llama."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from finelab import LabError, machine, recipe
from finelab.machine import out_of_memory
from finelab.train import Session, tuner
from finelab.train.memory import SHAPES
from finelab.train.probe import prepared
from finelab.train.tuner import (
    LOSS_TOLERANCE,
    Measured,
    Rows,
    Search,
    Setting,
    Tuned,
    first_batch,
    keep,
    micro_batches,
    needed_bytes,
    read,
    recorded,
    rows_of,
    sample,
    tune,
)
from tests.train.sittings import trainer_of

CPU = machine.Hardware(
    device="cpu", name="two cores", system="Linux", cores=2, memory_bytes=8 * 10**9, cpu_bfloat16=True
)
START = Setting(2, 4, "random", packing=False, gradient_checkpointing=False, bf16=True)
SHORT = Rows(mean=100, mean_packed=2000, run_tokens=1e5)
LONG = Rows(mean=500, mean_packed=1000, run_tokens=1e5)
MEMORY = 10 * 10**9


@pytest.fixture
def profile(preset):
    return machine.decide(CPU, preset)


class Machine:
    """A machine whose speed and memory are a formula of the setting; `tried` are its trials."""

    def __init__(self, speed, fits=lambda setting: True, loss=lambda setting: 2.0, padding=0.0):
        self.speed, self.fits, self.loss, self.padding, self.tried = speed, fits, loss, padding, []

    def measure(self, setting):
        self.tried.append(setting)
        if not self.fits(setting):
            return None
        speed = self.speed(setting)
        return Measured(speed, self.loss(setting), self.padding, 10**9, 1 / speed)


def search(on, start=START, data=LONG, can_leave_autocast=True):
    return Search(on.measure, start, data, MEMORY).run(can_leave_autocast)


def verdicts(tuned):
    return {each.setting: each.verdict for each in tuned.trials}


def rows_in_a_step(setting):
    return setting.per_device_train_batch_size * setting.gradient_accumulation_steps


def test_the_fastest_of_each_kind_is_found_at_the_same_effective_batch():
    def speed(setting):
        grouped = setting.train_sampling_strategy == "group_by_length"
        return (
            100 * setting.per_device_train_batch_size * (1.2 if grouped else 1) * (1 if setting.bf16 else 2)
        )

    on = Machine(speed, padding=0.3)
    tuned = search(on, data=SHORT)
    assert dataclasses.asdict(tuned) | {"trials": []} == {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "train_sampling_strategy": "group_by_length",
        "packing": False,
        "gradient_checkpointing": False,
        "bf16": False,
        "trials": [],
    }
    assert {rows_in_a_step(setting) for setting in on.tried} == {8}
    assert verdicts(tuned)["8 x 1, grouped"] == "chosen"
    chosen = next(each for each in tuned.trials if each.verdict == "chosen")
    assert chosen.ratio == pytest.approx(8 * 1.2 * 2 / 2)
    assert chosen.idle_memory_bytes == MEMORY - 10**9


def test_smaller_micro_batches_are_tried_where_larger_ones_are_slower():
    tuned = search(Machine(lambda setting: 100 / setting.per_device_train_batch_size))
    assert (tuned.per_device_train_batch_size, tuned.gradient_accumulation_steps) == (1, 8)
    assert "8 x 1, bf16" not in verdicts(tuned)  # 4 was slower than 2 already


def test_what_is_not_faster_by_more_than_the_noise_changes_nothing():
    tuned = search(Machine(lambda setting: 100 if setting == START else 102.5))
    assert verdicts(tuned)["2 x 4, bf16"] == "chosen"
    assert set(verdicts(tuned).values()) <= {"chosen", "within noise", "not tried: no padding to save"}


def test_a_win_that_does_not_come_twice_does_not_count():
    seen = []

    def speed(setting):
        seen.append(setting)
        lucky = setting.per_device_train_batch_size == 4 and seen.count(setting) == 1
        return 150 if lucky else 100

    tuned = search(Machine(speed))
    assert tuned.per_device_train_batch_size == 2
    assert verdicts(tuned)["4 x 2, bf16"] == "within noise"


@pytest.mark.parametrize("loss", [2.0 + 2 * LOSS_TOLERANCE, 2.0 - 2 * LOSS_TOLERANCE, float("nan")])
def test_a_faster_setting_with_another_loss_is_refused(loss):
    on = Machine(
        lambda setting: 100 * setting.per_device_train_batch_size,
        loss=lambda setting: loss if setting.per_device_train_batch_size > 2 else 2.0,
    )
    tuned = search(on)
    assert tuned.per_device_train_batch_size == 2
    assert verdicts(tuned)["4 x 2, bf16"] == "another loss"


def test_a_model_without_a_loss_is_told():
    with pytest.raises(LabError, match="the loss before training is nan with the setting 2 x 4, bf16"):
        search(Machine(lambda setting: 100, loss=lambda setting: float("nan")))


def test_the_largest_micro_batch_that_fits_is_the_end_of_the_climb():
    on = Machine(
        lambda setting: 100 * setting.per_device_train_batch_size,
        fits=lambda setting: setting.per_device_train_batch_size <= 2,
    )
    tuned = search(on)
    assert tuned.per_device_train_batch_size == 2
    assert verdicts(tuned)["4 x 2, bf16"] == "out of memory"
    assert max(setting.per_device_train_batch_size for setting in on.tried) == 4


def test_a_recipe_that_does_not_fit_is_cut_until_it_does():
    start = dataclasses.replace(START, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    on = Machine(lambda setting: 100, fits=lambda setting: setting.per_device_train_batch_size <= 2)
    tuned = search(on, start)
    assert (tuned.per_device_train_batch_size, tuned.gradient_accumulation_steps) == (2, 4)
    assert tuned.trials[0].verdict == "out of memory"
    last = search(Machine(lambda setting: 100, fits=lambda setting: setting.gradient_checkpointing), start)
    assert (last.per_device_train_batch_size, last.gradient_checkpointing) == (1, True)


def test_a_model_that_fits_in_no_way_is_told():
    with pytest.raises(LabError, match=r"one row at a time with checkpointing does not fit into 10\.0 GB"):
        search(Machine(lambda setting: 100, fits=lambda setting: False))


def test_checkpointing_is_left_out_where_the_recipe_has_it_and_the_memory_allows():
    start = dataclasses.replace(START, gradient_checkpointing=True)
    faster = Machine(lambda setting: 100 if setting.gradient_checkpointing else 140)
    assert not search(faster, start).gradient_checkpointing
    faster.fits = lambda setting: setting.gradient_checkpointing
    assert search(faster, start).gradient_checkpointing
    on = Machine(lambda setting: 100)
    search(on)
    assert not any(setting.gradient_checkpointing for setting in on.tried)


def test_packed_rows_hold_the_tokens_of_a_step():
    on = Machine(lambda setting: 200 if setting.packing else 100)
    tuned = search(on, data=LONG)
    assert tuned.packing
    assert rows_in_a_step(tuned) == 4  # of 1,000 tokens, in the place of 8 of 500
    assert {LONG.tokens_per_step(setting) for setting in on.tried} == {4000}
    assert {each.tokens_per_step for each in tuned.trials} == {4000}


def test_a_recipe_that_packs_may_be_faster_without():
    start = dataclasses.replace(START, gradient_accumulation_steps=2, packing=True)
    on = Machine(lambda setting: 100 if setting.packing else 200 * setting.per_device_train_batch_size)
    tuned = search(on, start)
    assert (tuned.packing, tuned.per_device_train_batch_size, rows_in_a_step(tuned)) == (False, 8, 8)
    assert {LONG.tokens_per_step(setting) for setting in on.tried} == {4000}


def test_packing_that_would_change_the_effective_batch_is_not_tried():
    on = Machine(lambda setting: 200 if setting.packing else 100)
    tuned = search(on, data=SHORT)
    assert not tuned.packing
    assert not any(setting.packing for setting in on.tried)
    (left,) = [each for each in tuned.trials if each.setting.startswith("1 x 1, packed")]
    assert (left.verdict, left.tokens_per_step) == ("not tried: another effective batch", 2000)


def test_a_sequential_recipe_is_not_shuffled():
    start = dataclasses.replace(START, train_sampling_strategy="sequential")
    on = Machine(lambda setting: 100, padding=0.4)
    search(on, start)
    assert {setting.train_sampling_strategy for setting in on.tried} == {"sequential"}


def test_the_search_ends_with_its_time(monkeypatch):
    monkeypatch.setattr(tuner, "LEAST_S", -1.0)
    on = Machine(lambda setting: 10**9 * setting.per_device_train_batch_size)
    tuned = search(on)
    assert on.tried == [START]
    assert verdicts(tuned)["2 x 4, bf16"] == "chosen"
    assert "were over" in verdicts(tuned)["4 x 2, bf16"]


def test_a_long_run_gives_the_search_three_per_cent_of_its_time():
    found = Search(Machine(lambda setting: 1000).measure, START, Rows(500, 1000, 4e6), MEMORY)
    found.run(False)
    assert found.limit_s == pytest.approx(0.03 * 4000)


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


# The record


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


def test_the_table_is_as_wide_as_a_page_and_names_every_trial():
    tuned = search(Machine(lambda setting: 1234.5 * setting.per_device_train_batch_size, padding=0.25))
    lines = str(tuned).splitlines()
    assert len(lines) == 1 + len(tuned.trials)
    assert max(map(len, lines)) <= 110
    assert lines[1].split("  ")[0] == "2 x 4, bf16"
    assert lines[1].endswith("the first")
    assert "25%" in lines[1] and "+0.0000" in lines[1] and "9.00" in lines[1]


# Trials


def test_the_rows_of_a_trial_are_spread_as_all_are():
    lengths = [(i * 37) % 100 + 1 for i in range(1000)]
    chosen = [lengths[i] for i in sample(lengths, 10)]
    assert chosen == sorted(chosen)
    assert chosen[-1] == max(lengths)
    assert sum(chosen) / 10 == pytest.approx(sum(lengths) / 1000, rel=0.05)
    assert sample([5, 6], 8) == [0, 1]
    assert sample([5, 6, 7], 1) == [1]


def test_on_a_card_no_micro_batch_is_larger_than_the_one_tried_first():
    lengths, setting = [3, 9, 1, 7, 2], dataclasses.replace(START, per_device_train_batch_size=2)
    batches = micro_batches(lengths, setting, 0)
    assert first_batch(lengths, batches, "cuda") == [1, 1]
    assert first_batch(lengths, batches, "cpu") in batches


def test_the_rows_are_cut_as_the_sampler_would():
    lengths = [3, 9, 1, 7]
    grouped = dataclasses.replace(START, train_sampling_strategy="group_by_length")
    assert micro_batches(lengths, grouped, 0) == [[1, 3], [0, 2]]
    at_random = micro_batches(lengths, START, 0)
    assert [len(batch) for batch in at_random] == [2, 2]
    assert {row for batch in at_random for row in batch} == {0, 1, 2, 3}


def test_the_run_is_as_long_as_the_recipe_says(preset):
    lengths = [100] * 40
    assert rows_of(lengths, preset, START).run_tokens == 4000
    three = recipe.override(preset, ["training.num_train_epochs=3"])
    assert rows_of(lengths, three, START).run_tokens == 12_000
    some = recipe.override(preset, ["training.max_steps=2"])
    assert rows_of(lengths, some, START).run_tokens == 2 * 8 * 100
    assert rows_of(lengths, preset, START).mean_packed == 2000


def test_memory_that_runs_out_is_told_from_other_errors():
    import torch

    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**50)
    assert out_of_memory(failed.value)
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("Triton Error [CUDA]: out of memory"))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"))
    assert not out_of_memory(RuntimeError("shapes do not fit"))


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
from finelab.train import tuner
from finelab.train.batches import collator, training_rows
from finelab.train.tuner import Tuned, setting_of, trial, tune

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
tuner.LEAST_S = 300.0  # the busiest machine measures all trials
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
    from tests.tiny import base_model, tokenizer

    base_model(vocab_size=320).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("OUT ")]
    tuned = json.loads(line.removeprefix("OUT "))
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


def test_a_trial_without_memory_puts_everything_back(tmp_path, run, profile):
    import torch
    from datasets import Dataset

    from tests.tiny import base_model, tokenizer, with_adapter

    model = with_adapter(base_model(vocab_size=320))
    model.get_input_embeddings().register_forward_hook(lambda *args: torch.empty(2**50))
    modes = [vars(module).keys() for module in model.modules()]
    before = torch.get_rng_state()
    rows = Dataset.from_list([{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}] * 4)
    assert tuner.trial(START, run, profile, model, tokenizer(), rows) is None
    assert torch.equal(before, torch.get_rng_state())
    assert [vars(module).keys() for module in model.modules()] == modes
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())

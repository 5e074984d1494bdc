"""The tuner's trials: which rows, how they are cut, and that they leave no trace."""

import dataclasses

import pytest

from finelab import machine
from finelab.train.trial import first_batch, micro_batches, sample, trial
from tests.tiny import through_unsloth
from tests.train.searches import CPU, START


@pytest.fixture
def profile(preset):
    return machine.decide(CPU, preset)


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
    largest = max(batches, key=lambda rows: sum(lengths[i] for i in rows))
    assert first_batch(lengths, batches, "cpu") == largest


def test_the_rows_are_cut_as_the_sampler_would():
    lengths = [3, 9, 1, 7]
    grouped = dataclasses.replace(START, train_sampling_strategy="group_by_length")
    assert micro_batches(lengths, grouped, 0) == [[1, 3], [0, 2]]
    at_random = micro_batches(lengths, START, 0)
    assert [len(batch) for batch in at_random] == [2, 2]
    assert {row for batch in at_random for row in batch} == {0, 1, 2, 3}


def test_a_trial_without_memory_puts_everything_back(tmp_path, run, profile):
    import torch
    from datasets import Dataset

    from tests.tiny import base_model, tokenizer, with_adapter

    model = with_adapter(base_model(vocab_size=320))
    model.get_input_embeddings().register_forward_hook(lambda *args: torch.empty(2**50))
    attributes = [set(vars(module)) for module in model.modules()]
    before = torch.get_rng_state()
    rows = Dataset.from_list([{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}] * 4)
    assert trial(START, run, profile, model, tokenizer(), rows) is None
    assert torch.equal(before, torch.get_rng_state())
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


SCRIPT = """
import dataclasses, json, sys
from pathlib import Path
import unsloth
import torch
from datasets import Dataset
from unsloth import FastLanguageModel
from finelab import machine, resources
from finelab.recipe import load_preset
from finelab.run import create_run
from finelab.train import cpu_llama, slabs
from finelab.train.trial import trial
from finelab.train.tuner import setting_of

folder = Path(sys.argv[1])
slabs.SLAB = 20_000
rows = Dataset.from_list([{"input_ids": list(range(5, 35)), "labels": list(range(5, 35))}] * 8)
run = create_run(folder / "run", load_preset("smollm2-135m"))
profile = run.profile()
model, tokenizer = FastLanguageModel.from_pretrained(
    str(folder / "base"), max_seq_length=64, dtype=torch.float32, load_in_4bit=False)
model = FastLanguageModel.get_peft_model(
    model, r=4, lora_dropout=0.0, use_gradient_checkpointing=False, random_state=1)
assert cpu_llama.install(model, profile).startswith("forward and backward by hand")
(kept,) = resources.KEPT
held = []
model.register_forward_hook(lambda *_: held.append([slab.data_ptr() for slab in kept.slabs]))
found = []
for size in (1, 8, 1):
    setting = dataclasses.replace(setting_of(run.recipe, profile), per_device_train_batch_size=size)
    trial(setting, run, profile, model, tokenizer, rows)
    found.append({"held": held.copy(), "afterwards": len(kept.slabs)})
    held.clear()
print("OUT", json.dumps(found))
"""


@pytest.mark.slow
def test_a_trial_holds_no_memory_of_a_larger_one(tmp_path):
    """The slabs of the step by hand: the same ones in all of a setting's steps, and none for the next."""
    trials = through_unsloth(SCRIPT, tmp_path)
    assert all(each["afterwards"] == 0 for each in trials)
    assert all(len(each["held"]) > 1 and each["held"][0] == each["held"][-1] for each in trials)
    small, large, again = (len(each["held"][-1]) for each in trials)
    assert small == again < large

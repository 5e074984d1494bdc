"""The plan against a real trainer: the same batches, the same steps, and a probe that leaves no trace."""

import dataclasses
import datetime
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelab import LabError, machine, recipe
from finelab.run import TRAINING_LOCK, alone
from finelab.train import Session, cards, ledger
from finelab.train.batches import Batch, collator, row_squares, token_counts, training_rows
from finelab.train.memory import SHAPES
from finelab.train.plan import (
    DRIFT,
    Rate,
    duration,
    fit_rate,
    make_plan,
    plan_here,
    plan_on_card,
    plan_training,
)
from finelab.train.probe import FEWEST, WARM_UP, Probe, probe, timed_look
from finelab.train.workload import Schedule, assumed_counts, epoch_batches, packed_lengths, workload
from tests.tiny import base_model, with_adapter

NOW = datetime.datetime(2026, 11, 24, 8, 0)


def rows_of(count, seed=0):
    """Rows of 3 to 40 tokens; the first tokens of each carry no label."""
    draw = random.Random(seed)
    lengths = [draw.randint(3, 40) for _ in range(count)]
    ids = [[draw.randrange(3, 128) for _ in range(length)] for length in lengths]
    return [{"input_ids": row, "labels": [-100] * (len(row) // 2) + row[len(row) // 2 :]} for row in ids]


@pytest.fixture
def trainer_of(tmp_path, tokenizer):
    """Makes a Trainer as notebook 03 sets it up; `trainer.seen` lists the batches it collated."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    def recording(collate):
        def call(rows):
            batch = collate(rows)
            seen.append(tuple(batch["input_ids"].shape))
            return batch

        return call

    class Counting(Trainer):
        """Counts as TRL's trainer does, and draws from every source of randomness."""

        _total_train_tokens = 0

        def compute_loss(self, *args, **kwargs):
            self._total_train_tokens += 1 + int(random.random() + np.random.random() < 0)
            self._metrics["train"].append(self._total_train_tokens)
            return super().compute_loss(*args, **kwargs)

    seen = []

    def make(rows, dropout=0.0, flat=None, eval_dataset=None, **changes):
        arguments = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "include_num_input_tokens_seen": "non_padding",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        model = with_adapter(base_model(use_cache=False), moved=False)
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = dropout
        dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
        trainer = Counting(
            model=model,
            args=TrainingArguments(**arguments | changes),
            train_dataset=dataset,
            eval_dataset=Dataset.from_list(eval_dataset) if eval_dataset else None,
            data_collator=recording(flat or DataCollatorForSeq2Seq(tokenizer=tokenizer)),
        )
        trainer._signature_columns = ["input_ids", "labels", "seq_lengths"]  # as TRL's trainer keeps them
        trainer.seen, trainer._metrics, trainer._total_train_tokens = seen, {"train": []}, 0
        return trainer

    return make


def train_in_a_sitting(run, trainer):
    """As notebook 03 trains: the session also decides the order of rows grouped by length."""
    session = Session(run)
    for callback in session.callbacks():
        trainer.add_callback(callback)
    with session.sitting(trainer):
        trainer.train()


@pytest.mark.parametrize("strategy", ["random", "group_by_length", "sequential"])
@pytest.mark.parametrize("seed", [3407, 7])
@pytest.mark.parametrize(
    "count, changes",
    [
        (22, {"num_train_epochs": 2}),  # the last batch has 2 rows, each epoch's last group 2 of 2 batches
        (27, {"num_train_epochs": 3}),  # 7 batches: each epoch's last step accumulates one
        (27, {"max_steps": 6}),  # ends within the second epoch
        (3, {"num_train_epochs": 2}),  # less than a batch
    ],
)
def test_the_plan_has_the_batches_that_are_trained(run, trainer_of, strategy, seed, count, changes):
    rows = rows_of(count)
    trainer = trainer_of(rows, seed=seed, train_sampling_strategy=strategy, **changes)
    train_in_a_sitting(run, trainer)
    schedule = Schedule(
        4, 2, changes.get("num_train_epochs", 3), changes.get("max_steps", -1), seed, strategy
    )
    lengths, trained = token_counts(trainer.train_dataset)
    work = workload(lengths, trained, schedule)
    per_token = 6 * trainer.model.num_parameters(exclude_embeddings=True)
    met = [(batch.rows, batch.positions // batch.rows) for batch in work.batches]
    assert met == trainer.seen[: len(work.batches)]  # the data loader collates one ahead
    assert all(
        batch.squares == rows * length**2 for batch, (rows, length) in zip(work.batches, met, strict=True)
    )
    assert len(trainer.seen) - len(work.batches) in (0, 1)
    assert work.steps == trainer.state.global_step
    assert work.tokens == trainer.state.num_input_tokens_seen
    assert work.padded_tokens == trainer.state.total_flos / per_token
    assert trained == [sum(label != -100 for label in row["labels"]) for row in rows]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_the_plan_has_the_flat_and_packed_batches_that_are_trained(
    run, trainer_of, tokenizer, profile, packing, strategy
):
    from datasets import Dataset

    rows = rows_of(43)
    made = training_rows(Dataset.from_list(rows), profile, packing, 64)
    trainer = trainer_of(
        made,
        flat=collator(tokenizer, profile),
        num_train_epochs=2,
        train_sampling_strategy=strategy,
        include_num_input_tokens_seen="all",
    )
    train_in_a_sitting(run, trainer)
    lengths, trained = token_counts(trainer.train_dataset)
    work = workload(
        lengths, trained, Schedule(4, 2, 2, -1, 42, strategy, padding_free=True), row_squares(made, lengths)
    )
    per_token = 6 * trainer.model.num_parameters(exclude_embeddings=True)
    assert [(1, batch.positions) for batch in work.batches] == trainer.seen[: len(work.batches)]
    assert sum(batch.squares for batch in work.batches) == 2 * sum(len(row["input_ids"]) ** 2 for row in rows)
    assert work.steps == trainer.state.global_step
    assert work.tokens == work.padded_tokens == trainer.state.num_input_tokens_seen
    assert work.padded_tokens == trainer.state.total_flos / per_token
    assert work.trained_tokens == 2 * sum(label != -100 for row in rows for label in row["labels"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3407, 7])
def test_trls_trainer_draws_the_same_batches(tmp_path, tokenizer, seed):
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq
    from trl import SFTConfig, SFTTrainer

    rows = rows_of(30)
    trainer = SFTTrainer(
        model=with_adapter(base_model(), moved=False),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(
            output_dir=str(tmp_path), per_device_train_batch_size=4, seed=seed, use_cpu=True, report_to="none"
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer),
    )
    drawn = [tuple(batch["input_ids"].shape) for batch in trainer.get_train_dataloader()]
    lengths = [len(row["input_ids"]) for row in rows]
    batches = epoch_batches(lengths, 4, seed)
    assert drawn == [(len(batch), max(lengths[i] for i in batch)) for batch in batches]


def test_packing_makes_as_many_rows_as_trl_and_keeps_every_token():
    from datasets import Dataset
    from trl import pack_dataset

    rows = [{"input_ids": row["input_ids"]} for row in rows_of(60)]
    lengths = [len(row["input_ids"]) for row in rows]
    packed = packed_lengths(lengths, 64)
    assert len(packed) == len(pack_dataset(Dataset.from_list(rows), 64, "bfd"))
    assert sum(packed) == sum(lengths)
    assert max(packed) <= 64


def test_a_strategy_nobody_knows_is_told():
    with pytest.raises(LabError, match="no sampling strategy 'longest'; there are: random, group_by_length"):
        epoch_batches([1, 2], 1, 0, "longest")


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(["random", "group_by_length"]),
)
def test_whole_epochs_meet_every_row_once_in_each(lengths, size, accumulation, epochs, strategy):
    schedule = Schedule(size, accumulation, epochs, -1, 1, strategy)
    work = workload(lengths, lengths, schedule)
    assert work.tokens == work.trained_tokens == epochs * sum(lengths)
    assert work.padded_tokens >= work.tokens
    assert sum(batch.rows for batch in work.batches) == epochs * len(lengths)
    for epoch in range(epochs):
        met = [row for batch in schedule.epoch(lengths, epoch) for row in batch]
        assert sorted(met) == list(range(len(lengths)))


def test_token_counts_read_a_selection_of_the_rows():
    from datasets import Dataset

    rows = rows_of(9)
    chosen = [7, 2, 2, 5]
    lengths, trained = token_counts(Dataset.from_list(rows).select(chosen))
    assert lengths == [len(rows[i]["input_ids"]) for i in chosen]
    assert trained == [sum(label != -100 for label in rows[i]["labels"]) for i in chosen]


def test_the_assumed_lengths_are_padded_as_finetomes_were():
    lengths, trained = assumed_counts(20_000, 2048)
    work = workload(lengths, trained, Schedule(2, 4, 1, -1, 3407))
    assert work.padded_tokens / 20_000 == pytest.approx(778.8, rel=0.01)  # exact, from the seed's total_flos
    assert max(lengths) == 2048
    assert max(assumed_counts(1000, 300)[0]) == 300


# Time


def padded(rows, length):
    return Batch(rows, rows * length, rows * length**2)


SHAPES_TIMED = [padded(*each) for each in [(2, 30), (2, 60), (2, 90), (2, 120), (4, 60), (4, 120)]]


@given(st.floats(0, 2), st.floats(1e-5, 1e-2), st.floats(0, 1e-5))
def test_a_cost_without_noise_is_found_again(overhead, per_token, per_square):
    truth = Rate(overhead, per_token, per_square, 0, "")
    rate = fit_rate([(batch, truth.seconds([batch])) for batch in SHAPES_TIMED])
    batches = [padded(3, 45), padded(2, 77), Batch(3, 150, 45**2 + 77**2 + 28**2)]
    assert rate.seconds(batches) == pytest.approx(truth.seconds(batches), rel=1e-3)
    assert rate.band_share == DRIFT


@given(st.lists(st.floats(0.5, 2), min_size=len(SHAPES_TIMED), max_size=len(SHAPES_TIMED)))
def test_no_noise_makes_a_time_below_zero(noise):
    timings = [
        (batch, batch.positions / 100 * factor) for batch, factor in zip(SHAPES_TIMED, noise, strict=True)
    ]
    rate = fit_rate(timings)
    assert min(rate.overhead_s, rate.per_token_s, rate.per_square_s) >= 0
    assert rate.seconds([padded(1, 1)]) > 0


def test_the_band_grows_with_the_noise():
    def band(share):
        draw = np.random.default_rng(0)
        return fit_rate(
            [(batch, batch.positions * (1 + share * draw.normal())) for batch in SHAPES_TIMED]
        ).band_share

    assert band(0.01) == DRIFT < band(0.9) < band(0.97)


def test_one_timing_is_enough_for_a_rate():
    assert fit_rate([(padded(2, 50), 4.0)]).seconds([padded(2, 100)]) == pytest.approx(8.0)


@pytest.mark.parametrize("seconds, text", [(45, "45 s"), (192, "3.2 min"), (31_000, "8.6 h")])
def test_a_duration_reads_well(seconds, text):
    assert duration(seconds) == text


# Probe


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def train(trainer_of, probed):
    """Train with dropout, length grouping and autocast, all of which a careless probe would change."""
    import torch

    rows = rows_of(24)
    trainer = trainer_of(
        rows, dropout=0.2, num_train_epochs=2, bf16=True, train_sampling_strategy="group_by_length"
    )
    if probed:
        lengths = [len(row["input_ids"]) for row in rows]
        probe(trainer, epoch_batches(lengths, 4, 3407), lengths, limit_s=0)
    trainer.train()
    return trainer, weights(trainer), torch.get_rng_state()


def test_training_after_a_probe_is_bit_for_bit_what_it_is_without(trainer_of):
    import torch

    plain, before, rng_before = train(trainer_of, probed=False)
    after_probe, after, rng_after = train(trainer_of, probed=True)
    assert [entry.get("loss") for entry in plain.state.log_history] == [
        entry.get("loss") for entry in after_probe.state.log_history
    ]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(rng_before, rng_after)


def test_a_probe_leaves_weights_gradients_randomness_and_mode_as_they_were(trainer_of):
    import torch

    rows = rows_of(12)
    trainer = trainer_of(rows, dropout=0.2, bf16=True)
    trainer.model.eval()
    parameter = next(each for name, each in trainer.model.named_parameters() if "lora_B" in name)
    parameter.grad = torch.ones_like(parameter)
    before, states = (
        weights(trainer),
        (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()),
    )
    lengths = [len(row["input_ids"]) for row in rows]
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 7]])
        logits = trainer.model(input_ids=ids).logits
    probe(trainer, epoch_batches(lengths, 4, 1), lengths, limit_s=0)
    trainer.eval_dataset = trainer.train_dataset
    assert timed_look(trainer) > 0
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    assert [each.grad for each in trainer.model.parameters() if each is not parameter].count(None) == (
        len(list(trainer.model.parameters())) - 1
    )
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()
    assert not any(module.training for module in trainer.model.modules())
    assert (trainer._metrics, trainer._total_train_tokens) == ({"train": []}, 0)
    with torch.no_grad():  # autocast would round these
        assert torch.equal(logits, trainer.model(input_ids=ids).logits)


def test_a_probe_meets_the_largest_batch_and_stops_in_time(trainer_of):
    rows = rows_of(60)
    lengths = [len(row["input_ids"]) for row in rows]
    batches = epoch_batches(lengths, 2, 3407)
    trainer = trainer_of(rows)
    found = probe(trainer, batches, lengths, limit_s=0)
    assert len(found.timings) == FEWEST
    seen = trainer.seen[1:]  # the first one showed whether there is padding
    assert len(seen) == len(WARM_UP) + FEWEST
    assert max(len(batch) * max(lengths[i] for i in batch) for batch in batches) == max(
        size * length for size, length in seen
    )
    assert len({batch.positions for batch, _ in found.timings}) >= 5
    assert [batch for batch, _ in found.timings] == [padded(*shape) for shape in seen[len(WARM_UP) :]]
    assert found.shapes == len(set(seen))
    assert all(seconds > 0 for _, seconds in found.timings)


def test_a_probe_of_a_data_set_of_one_batch_is_still_one(trainer_of):
    rows = rows_of(3)
    found = probe(trainer_of(rows), [[0, 1, 2]], [len(row["input_ids"]) for row in rows], limit_s=0)
    assert fit_rate(found.timings).seconds([padded(3, 20)]) > 0


# The plan


@pytest.fixture
def ledger_here(tmp_path, monkeypatch):
    """An empty cache folder, so that no earlier run of this machine has a say."""
    monkeypatch.setenv("FINELAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def profile():
    hardware = machine.Hardware(
        device="cpu", name="two cores", system="Linux", cores=2, memory_bytes=8 * 10**9, cpu_bfloat16=True
    )
    return machine.decide(hardware, recipe.load_preset("smollm2-135m"))


COUNTS = ([100, 50, 70, 90, 30], [40, 20, 30, 40, 10])


def text_of(plan):
    return "\n".join(f"{label}: {text}" for label, text in plan.rows(NOW))


def test_the_table_says_how_much_and_how_long(preset, profile):
    rate = Rate(0.5, 0.01, 0, 0.1, "a probe of 9 micro-batches", beside_share=0.02, beside_s=3)
    work = workload(*COUNTS, Schedule(2, 4, 1, -1, 3407))
    plan = make_plan(preset, profile, SHAPES["SmolLM2-135M"], work, rate, probed=Probe([], 1_500_000_000, 2))
    seconds = 1.02 * (3 * 0.5 + 0.01 * work.padded_tokens) + 3
    assert plan.predicted["seconds"] == pytest.approx(seconds, abs=0.01)
    assert plan.predicted["tokens_per_s"] == pytest.approx(340 / seconds, abs=0.01)
    adam, a_shape = 8 * 4_884_480, 0.5 * 28_608 * work.padded_tokens / 3
    assert plan.predicted["peak_memory_bytes"] == round(1_500_000_000 + adam + a_shape)
    said = text_of(plan)
    assert "steps: 1\ntrained tokens: 140 of 340\n" in said
    assert f"time: {seconds:.0f} s ({0.9 * seconds:.0f} s to {1.1 * seconds:.0f} s)" in said
    assert "memory: 1.54 GB of 8.00 GB" in said
    assert "  weights: 0.49 GB" in said  # and the step's own copy of the projections
    assert "fits: yes, 6.46 GB to spare" in said
    assert "from: time: a probe of 9 micro-batches" in said
    assert str(plan).splitlines()[0].split() == ["steps", "1"]


def test_a_plan_that_does_not_fit_says_by_how_much_and_what_would(preset, profile):
    chosen = recipe.override(preset, ["training.per_device_train_batch_size=4"])
    work = workload(*assumed_counts(400, 2048), Schedule(4, 4, 1, -1, 3407))
    plan = make_plan(chosen, profile, SHAPES["SmolLM2-135M"], work, None, probed=Probe([], 9 * 10**9, 400))
    said = text_of(plan)
    assert "fits: NO, by 1.04 GB; the nearest that does: training.per_device_train_batch_size=2, " in said
    assert "time: not known before notebook 03" in said
    assert "seconds" not in plan.predicted


@pytest.mark.parametrize(
    "name, key, hours, fits",
    [
        ("llama-3.2-3b", "rtx-2060s", 21.7, "yes"),  # 12,500 steps at the 9.58 a minute that were measured
        ("llama-3.2-1b", "rtx-2060s", 8.65, "yes"),
        ("llama-3.2-1b", "rtx-3070-laptop", 7.66, "yes"),
        ("llama-3.2-1b", "t4", 8.90, "yes"),
    ],
)
def test_a_measured_card_gets_the_hours_that_were_measured(name, key, hours, fits):
    plan = plan_on_card(recipe.load_preset(name), cards.card_called(key), assumed_counts(100_000, 2048))
    assert plan.predicted["steps"] == 12_500
    assert plan.predicted["seconds"] / 3600 == pytest.approx(hours, rel=0.02)
    assert plan.fits.startswith(fits)


@pytest.mark.parametrize(
    "gib, said",
    [
        (8, "to publish: at least 7.55 GB of the card's memory, as it loads 16 bit\n"),
        (6, "too much: run notebook 04 without the card, with CUDA_VISIBLE_DEVICES=-1 and --run NAME"),
    ],
)
def test_a_run_in_4_bit_is_told_what_publishing_will_need(gib, said):
    card = dataclasses.replace(cards.card_called("rtx-2060s"), memory_gib=gib)
    plan = plan_on_card(recipe.load_preset("llama-3.2-3b"), card, assumed_counts(1000, 1024))
    assert plan.fits.startswith("yes")
    assert said in text_of(plan)


def test_the_seeds_3b_run_with_batches_of_8_takes_its_18_hours():
    chosen = recipe.override(recipe.load_preset("llama-3.2-3b"), ["training.per_device_train_batch_size=8"])
    plan = plan_on_card(chosen, cards.card_called("rtx-5000"), assumed_counts(100_000, 2048))
    assert plan.predicted["steps"] == 3125
    assert plan.predicted["seconds"] / 3600 == pytest.approx(18.2, rel=0.02)


def test_a_card_far_from_what_was_measured_is_only_given_a_least_time():
    counts = assumed_counts(1000, 2048)
    said = text_of(plan_on_card(recipe.load_preset("llama-3.2-1b"), cards.card_called("h100"), counts))
    assert "the time is the least, not the likely one" in said
    assert "on H100 SXM: at least" in said
    assert re.search(r"on Tesla T4: 5\.\d min, \$0\.05\n", said)
    assert "cost: list prices of Modal, 2026-05-07" in said


def test_a_cloud_card_that_is_too_small_is_not_offered():
    chosen = recipe.override(recipe.load_preset("llama-3.2-3b"), ["training.per_device_train_batch_size=64"])
    offers = plan_on_card(chosen, cards.card_called("h100"), assumed_counts(1000, 2048)).cloud
    assert {offer["card"] for offer in offers} == {"L40S", "A100 80 GB", "H100 SXM"}


def test_earlier_runs_give_this_machine_its_pace(ledger_here, preset, profile):
    assert "seconds" not in plan_here(preset, profile, COUNTS).predicted
    key = ledger.machine_key(preset, profile)
    entry = {"key": key, "seconds": 2.0, "peak_memory_bytes": 1.5, "seconds_per_token": 0.01}
    ledger.ledger_path().parent.mkdir()
    ledger.ledger_path().write_text(ledger.json.dumps([entry]), encoding="utf-8")
    plan = plan_here(preset, profile, COUNTS)
    assert plan.predicted["seconds"] == pytest.approx(0.01 * plan.predicted["padded_tokens"])
    gaps = plan.predicted["peak_memory_bytes"] - sum(plan.memory.values())
    per_batch = plan.predicted["padded_tokens"] / 3  # three batches, one epoch
    assert gaps == pytest.approx(2 * 0.5 * 28_608 * per_batch, rel=0.01)  # three shapes, one was met
    assert "time: 1 earlier run on this machine" in text_of(plan)


def test_the_plan_of_a_trainer_is_kept_until_its_training_is_over(ledger_here, run, profile, trainer_of):
    rows = rows_of(30)
    trainer = trainer_of(rows, num_train_epochs=2)
    plan = plan_training(run, profile, trainer)
    trainer.train()
    assert plan.predicted["steps"] == trainer.state.global_step
    assert plan.predicted["padded_tokens"] == sum(rows * length for rows, length in trainer.seen[-16:])
    assert plan.predicted["seconds"] > 0
    assert run.evidence()["plan"]["predicted"] == plan.predicted
    (run.checkpoints / "checkpoint-2").mkdir(parents=True)
    again = plan_training(run, profile, trainer_of(rows, num_train_epochs=2))
    assert again.predicted == plan.predicted
    assert text_of(again) == text_of(plan)
    shorter = plan_training(run, profile, trainer_of(rows, num_train_epochs=1))  # a change that was accepted
    assert shorter.predicted["steps"] == 4
    assert run.evidence()["plan"]["predicted"] == shorter.predicted


def test_no_plan_is_made_beside_a_training_of_the_run(ledger_here, run, profile, trainer_of):
    with alone(run, TRAINING_LOCK), pytest.raises(LabError, match="another process is at work"):
        plan_training(run, profile, trainer_of(rows_of(30)))
    assert "plan" not in run.evidence()


def test_looks_on_the_way_are_in_the_plan(ledger_here, run, profile, trainer_of, monkeypatch):
    monkeypatch.setattr("finelab.train.plan.timed_look", lambda trainer: 1000.0)
    looking = {"eval_strategy": "steps", "eval_steps": 5, "eval_dataset": rows_of(4)}  # at 5, 10 and 12
    planned = {
        start: plan_training(run, profile, trainer_of(rows_of(30), eval_on_start=start, **looking))
        for start in (False, True)
    }
    assert planned[True].predicted["steps"] == 12
    assert [round(planned[start].predicted["seconds"], -3) for start in (False, True)] == [3000, 4000]


def test_batches_that_do_not_fit_end_with_the_estimate(ledger_here, run, profile, trainer_of):
    import torch

    def training_step(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    trainer = trainer_of(rows_of(30))
    trainer.training_step = training_step
    with pytest.raises(LabError, match="not enough memory for these batches") as raised:
        plan_training(run, profile, trainer)
    said = str(raised.value)
    assert all(part in said for part in ("weights", "activations", "optimizer", "to spare"))
    assert "plan" not in run.evidence()
    del trainer.training_step
    trainer.training_step = lambda *args: (_ for _ in ()).throw(RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        plan_training(run, profile, trainer)


def test_a_plan_of_flat_batches_counts_no_padding_and_follows_what_the_trainer_was_given(
    ledger_here, run, profile, trainer_of, tokenizer
):
    rows = rows_of(30)
    trainer = trainer_of(
        rows,
        flat=collator(tokenizer, profile),
        num_train_epochs=2,
        per_device_train_batch_size=2,
        gradient_checkpointing=True,
        include_num_input_tokens_seen="all",
    )
    plan = plan_training(run, profile, trainer)
    assert plan.predicted["steps"] == 16
    assert plan.predicted["padded_tokens"] == plan.tokens == 2 * sum(len(row["input_ids"]) for row in rows)
    plain = plan_training(run, profile, trainer_of(rows, num_train_epochs=2, per_device_train_batch_size=2))
    assert plain.predicted["padded_tokens"] > plan.predicted["padded_tokens"]
    assert plain.memory["activations"] > plan.memory["activations"]  # without checkpointing


def test_a_recipe_that_packs_is_planned_with_fewer_fuller_rows(ledger_here, preset, profile):
    packing = recipe.override(preset, ["training.packing=true"])
    counts = assumed_counts(200, 2048)
    plain, packed = plan_here(preset, profile, counts), plan_here(packing, profile, counts)
    assert packed.predicted["steps"] < plain.predicted["steps"] == 25
    assert packed.predicted["padded_tokens"] == plain.predicted["padded_tokens"] == sum(counts[0])
    assert packed.predicted["trained_tokens"] == pytest.approx(plain.predicted["trained_tokens"], rel=0.01)

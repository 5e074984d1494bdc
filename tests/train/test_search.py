"""The search for the fastest batches, over machines that are formulas."""

import dataclasses

import pytest

from finelab import LabError
from finelab.train.search import LOSS_TOLERANCE, Rows, Search
from tests.train.searches import LONG, MEMORY, START, Machine, search

SHORT = Rows(mean=100, mean_packed=2000, run_tokens=1e5)


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


def test_larger_micro_batches_are_tried_where_only_checkpointing_fits():
    on = Machine(
        lambda setting: 100 * setting.per_device_train_batch_size,
        fits=lambda setting: setting.gradient_checkpointing and setting.per_device_train_batch_size <= 4,
    )
    tuned = search(on)
    assert (tuned.per_device_train_batch_size, tuned.gradient_checkpointing) == (4, True)


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


def test_packed_rows_may_change_the_tokens_of_a_step_by_a_twentieth():
    for mean_packed, packs in ((1040, True), (1080, False)):  # four rows in the place of 8 of 500
        on = Machine(lambda setting: 200 if setting.packing else 100)
        data = Rows(mean=500, mean_packed=mean_packed, run_tokens=1e5)
        assert search(on, data=data).packing is packs


def test_a_sequential_recipe_is_not_shuffled():
    start = dataclasses.replace(START, train_sampling_strategy="sequential")
    on = Machine(lambda setting: 100, padding=0.4)
    search(on, start)
    assert {setting.train_sampling_strategy for setting in on.tried} == {"sequential"}


def test_the_search_ends_with_its_time(monkeypatch):
    monkeypatch.setattr("finelab.train.search.MOST_S", -1.0)
    on = Machine(lambda setting: 10**9 * setting.per_device_train_batch_size)
    tuned = search(on)
    assert on.tried == [START]
    assert verdicts(tuned)["2 x 4, bf16"] == "chosen"
    assert "were over" in verdicts(tuned)["4 x 2, bf16"]


def test_a_long_run_gives_the_search_three_per_cent_of_its_time():
    found = Search(Machine(lambda setting: 1000).measure, START, Rows(500, 1000, 4e6), MEMORY)
    found.run(False)
    assert found.limit_s == pytest.approx(0.03 * 4000)


def test_the_table_is_as_wide_as_a_page_and_names_every_trial():
    tuned = search(Machine(lambda setting: 1234.5 * setting.per_device_train_batch_size, padding=0.25))
    lines = str(tuned).splitlines()
    assert len(lines) == 1 + len(tuned.trials)
    assert max(map(len, lines)) <= 110
    assert lines[1].split("  ")[0] == "2 x 4, bf16"
    assert lines[1].endswith("the first")
    assert "25%" in lines[1] and "+0.0000" in lines[1] and "9.00" in lines[1]

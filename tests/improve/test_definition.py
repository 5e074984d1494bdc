"""A sweep's definition: what it means, what is refused, and that it is frozen."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelab import LabError
from finelab.improve import Sweep, create_sweep, grid, open_sweep, steps_for
from finelab.improve.trial import clearly_bad, tokens_per_row
from finelab.recipe import override

SWEEP = Sweep(
    "smollm2-135m", 1000, (1, 2), {"default": {}, "r8": {"lora.r": 8}}, {"data.sources": ["embedded"]}
)


def test_a_sweep_is_read_back_as_it_was_made(tmp_path):
    create_sweep(tmp_path, SWEEP)
    assert open_sweep(tmp_path) == SWEEP
    names = [trial.name for trial in SWEEP.trials()]
    assert names == ["default-s1", "r8-s1", "default-s2", "r8-s2"]


def test_another_sweep_in_the_same_folder_is_refused_with_the_difference(tmp_path):
    create_sweep(tmp_path, SWEEP)
    with pytest.raises(LabError, match=r"trained_tokens: 1000 -> 2000"):
        create_sweep(tmp_path, dataclasses.replace(SWEEP, trained_tokens=2000))
    with pytest.raises(LabError, match=r"r8: \{'lora.r': 8\} -> \{'lora.r': 4\}"):
        create_sweep(tmp_path, dataclasses.replace(SWEEP, settings={"default": {}, "r8": {"lora.r": 4}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (1, 1)}, "at least 2 different"),
        ({"settings": {"default": {}}}, "at least 2 are compared"),
        ({"settings": {"a": {}, "b": {"training.seed": 1}}}, "the sweep itself decides"),
        ({"settings": {"a": {}, "b": {"lora.rr": 1}}}, "setting 'b': .*rr: unknown key"),
        ({"settings": {"a": {}, "../b": {}}}, "use letters"),
        ({"settings": {"a": {}, "b": {"lora.init_lora_weights": "pisa"}}}, "must be one of true"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(LabError, match=message):
        create_sweep(tmp_path, dataclasses.replace(SWEEP, **changes))
    assert not list(tmp_path.iterdir())


def test_a_grid_is_every_combination():
    found = grid({"lora.r": [8, 16], "training.learning_rate": [2e-4]})
    assert found["r-8_learning_rate-0.0002"] == {"lora.r": 8, "training.learning_rate": 2e-4}
    assert len(found) == 2


@given(st.floats(1, 2000), st.integers(1, 64), st.integers(1, 10**7))
def test_the_steps_meet_the_budget_within_half_a_step(per_row, batch, budget):
    step = per_row * batch
    steps = steps_for(per_row, batch, budget)
    assert steps >= 1
    assert abs(steps * step - budget) <= max(step / 2, step - budget) * (1 + 1e-9)


def test_packed_rows_count_as_what_they_hold(preset):
    lengths, trained = [100, 300, 200, 424], [50, 150, 100, 212]
    packed = override(preset, ["training.packing=true", "model.max_seq_length=1024"])
    assert tokens_per_row(lengths, trained, preset) == 128
    assert tokens_per_row(lengths, trained, packed) == 512


@pytest.mark.parametrize(
    ("losses", "bad"),
    [
        ({0: 2.0}, False),
        ({0: 2.0, 5: 1.9}, False),
        ({0: 2.0, 5: 2.01}, False),
        ({0: 2.0, 5: 2.1}, True),
        ({0: 2.0, 5: float("nan")}, True),
    ],
)
def test_clearly_bad_is_worse_than_untrained_by_more_than_the_first_steps_move(losses, bad):
    assert clearly_bad(losses) is bad

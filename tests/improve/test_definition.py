"""A sweep's definition: what it means, what is refused, and that it is frozen."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelab import LabError
from finelab.improve import Sweep, create_sweep, grid, open_sweep, steps_for
from finelab.improve.trial import clearly_bad, trainer_rows
from finelab.recipe import override

SWEEP = Sweep(
    "smollm2-135m", 1000, (1, 2), {"default": {}, "r8": {"lora.r": 8}}, {"data.sources": ["embedded"]}
)


def test_a_sweep_is_read_back_as_it_was_made(tmp_path):
    create_sweep(tmp_path, SWEEP)
    assert open_sweep(tmp_path) == SWEEP
    names = [trial.name for trial in SWEEP.trials()]
    assert names == ["default-s1", "r8-s1", "default-s2", "r8-s2"]


def test_a_sweep_may_be_saved_as_windows_editors_do(tmp_path):
    create_sweep(tmp_path, SWEEP)
    path = tmp_path / "sweep.toml"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert open_sweep(tmp_path) == SWEEP
    path.write_text("# größer\n" + path.read_text(encoding="utf-8-sig"), encoding="cp1252")
    with pytest.raises(LabError, match=r"sweep\.toml: its letters are not UTF-8"):
        open_sweep(tmp_path)


@pytest.mark.parametrize(
    ("written", "instead", "message"),
    [
        ("seeds = [1, 2]", "seeds = 3", r"sweep\.toml\.seeds: expected a list such as \[1, 2\], got 3"),
        ("seeds = [1, 2]", 'seeds = ["1", "2"]', r"seeds\[0\]: expected int, got '1'"),
        ("seeds = [1, 2]", "", r"sweep\.toml\.seeds: missing"),
        ("trained_tokens = 1000", 'trained_tokens = "many"', "trained_tokens: expected int, got 'many'"),
        ('[settings."r8"]', "[seting]", "seting: unknown key; did you mean 'settings'"),
        ('[settings."default"]', "[settings]\ndefault = 8", r"settings\.default: expected a section"),
    ],
)
def test_what_a_hand_wrote_wrong_is_named_with_its_key(tmp_path, written, instead, message):
    create_sweep(tmp_path, SWEEP)
    path = tmp_path / "sweep.toml"
    path.write_text(path.read_text(encoding="utf-8").replace(written, instead), encoding="utf-8")
    with pytest.raises(LabError, match=message):
        open_sweep(tmp_path)


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
        ({"settings": {"a": {}, "b": {"training.num_train_epochs": 3}}}, "num_train_epochs, which the sweep"),
        ({"common": {"training.early_stopping_patience": 2}}, "early_stopping_patience, which the sweep"),
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


def trained(rows, per_row, batch, steps):
    """The tokens of so many steps, counted one by one as a trainer takes them from its epochs."""
    left, tokens = rows, 0
    for _ in range(steps):
        taken = min(batch, left)
        tokens += taken * per_row
        left = left - taken or rows
    return tokens


@given(st.integers(1, 90), st.integers(1, 500), st.integers(1, 64), st.integers(1, 10**5))
def test_no_other_number_of_steps_is_nearer_to_the_budget(rows, per_row, batch, budget):
    budget = min(budget, 20 * rows * per_row)
    steps = steps_for(rows, rows * per_row, batch, budget)
    missed = {each: abs(trained(rows, per_row, batch, each) - budget) for each in (steps, steps + 1)}
    if steps > 1:
        missed[steps - 1] = abs(trained(rows, per_row, batch, steps - 1) - budget)
    assert missed[steps] == min(missed.values())


@pytest.mark.parametrize("batch", [8, 16, 32, 64])
def test_large_batches_of_few_rows_are_trained_on_as_many_tokens(batch):
    steps = steps_for(88, 88 * 34, batch, 30_000)
    assert trained(88, 34, batch, steps) == pytest.approx(30_000, rel=0.04)


def test_packed_rows_are_counted_as_the_trainer_does(preset):
    lengths = [100, 300, 200, 424]
    packed = override(preset, ["training.packing=true", "model.max_seq_length=1024"])
    assert (trainer_rows(lengths, preset), trainer_rows(lengths, packed)) == (4, 1)


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

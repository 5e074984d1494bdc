import numpy as np
import pytest

from finelab.errors import LabError
from finelab.evaluate import compare_runs, keep_losses
from finelab.run import create_run
from tests.tiny import tokenizer

ROWS = 40


def made(folder, preset, name, gain, first=0, tokens=5, text="the a", kinds=("row",) * ROWS):
    """A run whose fine-tune lowers each token's loss by `gain`, on rows numbered from `first`."""
    run = create_run(folder / name, preset)
    ids = (tokenizer()(text).input_ids * 9)[:tokens]
    rows = {"id": [str(first + i) for i in range(ROWS)], "heldout": list(kinds)}
    rows["messages"] = [[{"role": "user", "content": f"{each}?"}] for each in rows["id"]]
    rng = np.random.default_rng(0)
    base = [rng.normal(2, 0.2, tokens).astype(np.float32) for _ in range(ROWS)]
    tuned = [each - np.float32(gain) for each in base]
    keep_losses(run, tokenizer(), Split(rows, [-100, *ids]), base, tuned)
    return run


class Split:
    """A split's columns by name, and its rows by iteration."""

    def __init__(self, columns, labels):
        self.columns, self.labels = columns, labels

    def __getitem__(self, name):
        return self.columns[name]

    def __iter__(self):
        return iter([{"labels": self.labels}] * ROWS)


def test_each_run_is_held_against_its_base_and_each_pair_against_each_other(tmp_path, preset):
    runs = [made(tmp_path, preset, name, gain) for name, gain in (("a", 0.2), ("b", 0.5), ("c", 0.2))]
    found = compare_runs(runs)
    assert {each["row"].verdict for each in found.to_base.values()} == {"improved"}
    assert found.pairs["a", "b"]["row"].difference == pytest.approx(-0.3, abs=1e-6)
    assert found.pairs["a", "b"]["row"].level == pytest.approx(1 - 0.05 / 3)
    for text in ("base -> a, held out by row", "a -> b, held out by row", "98.3 % interval"):
        assert text in str(found)


def test_two_runs_differ_or_are_not_told_apart_and_no_seed_is_called_better(tmp_path, preset):
    runs = [made(tmp_path, preset, name, gain) for name, gain in (("a", 0.2), ("b", 0.5), ("c", 0.2))]
    pairs = [line for line in str(compare_runs(runs)).splitlines() if not line.startswith("base -> ")]
    words = [line.rpartition(": ")[2] for line in pairs[:3]]
    assert words == ["differ on these rows", "not told apart on these rows", "differ on these rows"]
    assert pairs[3:] == ["one seed each: notebook 07 tells settings apart"]


def test_kinds_that_were_trained_on_and_others_are_not_put_together(tmp_path, preset):
    kinds = ["row"] * 15 + ["family"] * 25
    runs = [made(tmp_path, preset, name, 0.2, kinds=kinds) for name in "ab"]
    found = compare_runs(runs)
    for each in (*found.to_base.values(), *found.pairs.values()):
        assert {kind: compared.rows for kind, compared in each.items()} == {"row": 15, "family": 25}


def test_only_rows_that_all_held_out_are_compared(tmp_path, preset):
    runs = [made(tmp_path, preset, "a", 0.2), made(tmp_path, preset, "b", 0.2, first=30)]
    assert compare_runs(runs).rows == 10


def test_runs_with_other_tokens_are_compared_per_byte(tmp_path, preset):
    runs = [made(tmp_path, preset, "a", 0.2, tokens=3, text="theth"), made(tmp_path, preset, "b", 0.2)]
    assert {each["row"].unit for each in compare_runs(runs).pairs.values()} == {"bits per byte"}


def test_rows_that_one_run_cut_shorter_are_not_compared(tmp_path, preset):
    runs = [made(tmp_path, preset, "a", 0.2), made(tmp_path, preset, "b", 0.2, tokens=3)]
    with pytest.raises(LabError, match=r"no held-out row in common that is cut alike"):
        compare_runs(runs)


def test_one_run_alone_is_held_against_its_base(tmp_path, preset):
    found = compare_runs([made(tmp_path, preset, "a", 0.2)])
    assert (list(found.to_base), found.pairs) == (["a"], {})


def test_runs_without_a_row_in_common_are_refused(tmp_path, preset):
    runs = [made(tmp_path, preset, "a", 0.2), made(tmp_path, preset, "b", 0.2, first=100)]
    with pytest.raises(LabError, match="a, b have no held-out row in common"):
        compare_runs(runs)


def test_a_run_that_was_not_evaluated_says_what_to_run(run):
    with pytest.raises(LabError, match="run notebook 06_evaluate"):
        compare_runs([run])


def test_a_damaged_file_says_what_to_run(tmp_path, preset):
    run = made(tmp_path, preset, "a", 0.2)
    (run.folder / "heldout_losses.json").write_text("{", encoding="utf-8")
    with pytest.raises(LabError, match="run notebook 06_evaluate of it again"):
        compare_runs([run])

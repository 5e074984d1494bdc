"""`lab.py plan`: tables of 80 columns, real lengths where there are some, and sentences for mistakes."""

import argparse
import json
import re
from pathlib import Path

import pytest

from finelab import LabError
from finelab import run as run_command
from finelab.commands import plan as command

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """A machine without runs, without earlier runs in the ledger, and with a terminal 80 columns wide."""
    monkeypatch.setattr(run_command, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("FINELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "runs"


@pytest.fixture
def lab(capsys):
    """Runs `lab.py plan ...` and gives what it printed, the table's frame taken out."""

    def lab(*arguments):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        assert command.main(parser.parse_args(arguments)) == 0
        printed = capsys.readouterr().out
        if "--json" in arguments:
            return json.loads(printed)
        assert max(map(len, printed.splitlines())) <= 80
        return " ".join(re.sub(r"\+-[-+]+\+|\|", " ", printed).split())

    return lab


def save_rows(folder, lengths):
    from datasets import Dataset

    rows = {
        "input_ids": [[1] * length for length in lengths],
        "labels": [[-100] + [1] * (length - 1) for length in lengths],
    }
    Dataset.from_dict(rows).save_to_disk(str(folder / "data" / "train"))


def test_a_3b_run_on_a_card_that_is_not_here(lab):
    said = lab("--recipe", "llama-3.2-3b", "--gpu", "rtx-2060s")
    assert "Recipe llama-3.2-3b on GeForce RTX 2060 SUPER" in said
    assert "steps 12,375 " in said
    assert "time 21.5 h (19.3 h to 23.6 h)" in said  # the seed: 9.58 steps a minute
    assert "memory 4.99 GB of 8.59 GB" in said
    for part in ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "context"):
        assert re.search(rf"\b{part} \d+\.\d\d GB", said)
    assert "fits yes, 3.60 GB to spare" in said
    assert re.search(r"on Tesla T4 23\.\d h, \$13\.\d\d", said)
    assert "rows: 99,000, as long as FineTome's are assumed to be" in said
    assert "time: Llama-3.2-3B measured on this card" in said


def test_a_run_that_does_not_fit(lab):
    changes = ["training.per_device_train_batch_size=16", "training.gradient_accumulation_steps=2"]
    said = lab("--recipe", "llama-3.2-3b", "--gpu", "RTX 2060S", "--set", changes[0], "--set", changes[1])
    assert "fits NO, by 0.63 GB; the nearest that does: training.per_device_train_batch_size=8, " in said


def test_json_has_the_numbers_of_the_table(lab):
    found = lab("--recipe", "llama-3.2-1b", "--gpu", "t4", "--json")
    assert found["predicted"]["steps"] == 12_375
    assert found["memory_needed_bytes"] == sum(found["memory"].values())
    low, high = found["seconds_band"]
    assert low < found["predicted"]["seconds"] < high


@pytest.mark.parametrize("named", ["run", "recipe"])
def test_the_lengths_of_prepared_rows_are_used(lab, runs, preset, named):
    from finelab.run import create_run

    run = create_run(runs / "smollm2-135m", preset)
    save_rows(run.folder, [10, 20, 30, 40])
    said = lab(f"--{named}", "smollm2-135m", "--set", "model.max_seq_length=32")
    assert "rows: those of run smollm2-135m" in said
    assert "steps 1 trained tokens 88 of 92" in said  # 10 + 20 + 30 + 32, the first of each is read only
    assert "time not known before notebook 03 has timed some micro-batches here" in said


def test_rows_prepared_otherwise_are_not_taken_for_these(lab, runs, preset):
    from finelab.run import create_run

    save_rows(create_run(runs / "smollm2-135m", preset).folder, [50] * 8)
    assert "rows: 88, as long as FineTome's" in lab("--run", "smollm2-135m", "--set", "data.limit=100")


def test_earlier_runs_on_this_machine_give_a_time(lab, runs, preset):
    from finelab import machine
    from finelab.files import write_json
    from finelab.run import create_run
    from finelab.train.ledger import ledger_path, machine_key

    save_rows(create_run(runs / "smollm2-135m", preset).folder, [50] * 8)
    key = machine_key(preset, machine.profile(preset))
    entry = {"key": key, "seconds": 1.0, "peak_memory_bytes": 1.0, "seconds_per_token": 0.1}
    write_json(ledger_path(), [entry] * 3)
    said = lab("--recipe", "smollm2-135m")
    assert "time 40 s (34 s to 46 s)" in said
    assert "time: 3 earlier runs on this machine" in said


def test_rows_nobody_has_seen_are_not_made_up(lab):
    with pytest.raises(LabError, match=r"the token lengths of embedded are not known.*--set data\.limit=N"):
        lab("--recipe", "smollm2-135m", "--gpu", "t4")
    assert "rows: 352, as long as FineTome's" in lab("--recipe", "smollm2-135m", "--set", "data.limit=400")


def test_a_limit_beyond_the_data_makes_no_rows(lab):
    asked = ("--recipe", "llama-3.2-1b", "--gpu", "t4")
    said = [lab(*asked), lab(*asked, "--set", "data.limit=500000")]
    (rows,) = {re.search(r"rows: [\d,]+,", each)[0] for each in said}
    assert rows == "rows: 99,000,"


def test_the_cards_are_listed_with_what_is_known_of_them(lab):
    said = lab("--gpu", "list")
    assert "rtx-2060s GeForce RTX 2060 SUPER, 8 GiB, 57.4 TFLOP/s; measured: Llama-3.2-1B, " in said
    assert "t4 Tesla T4, 14.75 GiB, 65 TFLOP/s, $0.59/h" in said
    assert "prices Modal, 2026-05-07: list prices" in said
    assert all(card["source"] for card in lab("--gpu", "list", "--json"))


@pytest.mark.parametrize("name", ["RTX 4060", "NVIDIA GeForce RTX 4060", "rtx_4060"])
def test_a_card_may_be_called_by_its_full_name(lab, name):
    assert "GeForce RTX 4060" in lab("--recipe", "llama-3.2-1b", "--gpu", name)


@pytest.mark.parametrize(
    "name, hint",
    [("rtx2060", "did you mean rtx-2060s"), ("t40", "did you mean t4"), ("abacus", "there are: ")],
)
def test_an_unknown_card_is_told_its_nearest(lab, name, hint):
    with pytest.raises(LabError, match=f"--gpu {name}: there is no such card; {hint}.*`--gpu list`"):
        lab("--gpu", name)


def test_an_unknown_run_or_recipe_is_told(lab):
    with pytest.raises(LabError, match="there is no run 'nothing'"):
        lab("--run", "nothing")
    with pytest.raises(LabError, match="there is no recipe 'llama-9'"):
        lab("--recipe", "llama-9", "--gpu", "t4")


def test_a_run_and_a_recipe_at_once_is_one_too_many(lab, capsys):
    with pytest.raises(SystemExit):
        lab("--run", "a", "--recipe", "llama-3.2-1b")
    assert "not allowed with argument" in capsys.readouterr().err


def test_the_calibration_says_how_far_off_each_measured_card_is(lab):
    said = lab("--calibration")
    assert "Llama-3.2-3B, rtx-2060s +6.6%: 995 tokens/s instead of 934 from Llama-3.2-1B" in said
    assert "Llama-3.2-1B, t4 -20.1%" in said


def test_the_calibration_that_is_kept_is_the_one_that_is_printed(lab):
    kept = ROOT / "benchmarks" / "results" / "plan_calibration.json"
    found = lab("--calibration", "--json")
    assert found == json.loads(kept.read_text(encoding="utf-8"))
    errors = [abs(point["error"]) for point in found["details"]["points"]]
    assert len(errors) == 5
    assert max(errors) < 0.3

"""The ledger: what a run took against its plan, and what the next plan learns from it."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest

from finelab import LabError, machine, recipe
from finelab.run import create_run
from finelab.train import ledger
from finelab.train.cards import card_called
from finelab.train.ledger import KEYS, correction, entries, ledger_path, machine_key, settle

PLANNED = {
    "steps": 8,
    "padded_tokens": 1000,
    "trained_tokens": 400,
    "seconds": 100.0,
    "tokens_per_s": 8.0,
    "peak_memory_bytes": 2_000_000_000,
}
TOOK = {
    "steps": 8,
    "tokens_trained": 400,
    "seconds": 120.0,
    "tokens_per_s": 6.0,
    "peak_memory_bytes": 2_200_000_000,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("FINELAB_CACHE", str(folder))
    return folder


@pytest.fixture
def profile(preset):
    hardware = machine.Hardware(
        device="cpu", name="two cores", system="Linux", cores=2, memory_bytes=8 * 10**9
    )
    return machine.decide(hardware, preset)


class Model:
    """Stands for the trained model, of which the ledger asks for the number of parameters."""

    def num_parameters(self, exclude_embeddings):
        return 50


@dataclasses.dataclass
class State:
    total_flos: float = 6 * 50 * 1000


@dataclasses.dataclass
class Trainer:
    optimizer: object = "AdamW"
    model: Model = dataclasses.field(default_factory=Model)
    state: State = dataclasses.field(default_factory=State)


@pytest.fixture
def planned(run):
    """A run that was planned and trained; `factor` is what an earlier correction put into the plan."""

    def planned(took=TOOK, factor=1.0, run=run):
        factors = {"seconds": factor, "peak_memory_bytes": 1.0}
        run.record("plan", {"predicted": PLANNED, "correction": factors, "actual": {}, "error": {}})
        run.record("training", took)
        return run

    return planned


def write(seconds, key="here", count=None):
    entry = {"key": key, "seconds": seconds, "peak_memory_bytes": 1.0, "seconds_per_token": 0.01}
    ledger.write_json(ledger_path(), [*entries(), *[entry] * (count or 1)])


def test_a_finished_run_is_held_against_its_plan(planned, profile):
    run = planned()
    said = settle(run, profile, Trainer())
    plan = run.evidence()["plan"]
    assert set(plan["predicted"]) == set(plan["actual"]) == set(plan["error"]) == set(KEYS)
    assert plan["actual"]["padded_tokens"] == 1000
    assert plan["error"] == {
        "steps": 0.0,
        "padded_tokens": 0.0,
        "trained_tokens": 0.0,
        "seconds": 0.2,
        "tokens_per_s": -0.25,
        "peak_memory_bytes": 0.1,
    }
    assert "seconds                      100.0           120.0   +20.0%" in said
    assert len(said.splitlines()) == 1 + len(KEYS)
    assert max(map(len, said.splitlines())) <= 80


def test_the_next_plan_on_this_machine_is_corrected(planned, profile, preset):
    key = machine_key(preset, profile)
    assert correction(key) == ledger.NONE
    settle(planned(), profile, Trainer())
    found = correction(key)
    assert (found.runs, found.seconds) == (1, pytest.approx(1.2))
    assert found.peak_memory_bytes == pytest.approx(1.1)
    assert found.seconds_per_token == pytest.approx(0.12)
    assert found.lines() == [
        "corrected by x1.20 (time) and x1.10 (memory) from 1 earlier run on this machine"
    ]
    assert correction("another machine") == ledger.NONE


def test_runs_that_end_at_the_same_time_are_all_in_the_ledger(planned, profile, preset, tmp_path):
    runs = [planned(run=create_run(tmp_path / f"run-{number}", preset)) for number in range(8)]
    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(lambda run: settle(run, profile, Trainer()), runs))
    assert len(entries()) == len(runs)


def test_a_run_of_seconds_corrects_nothing(planned, profile, preset):
    settle(planned(took=TOOK | {"seconds": 29.9}), profile, Trainer())
    assert correction(machine_key(preset, profile)) == ledger.NONE


def test_a_run_that_stopped_early_corrects_nothing(planned, profile, preset):
    settle(planned(took=TOOK | {"steps": TOOK["steps"] - 1}), profile, Trainer())
    assert correction(machine_key(preset, profile)) == ledger.NONE


def test_a_run_of_two_machines_corrects_neither(planned, profile, preset):
    settle(planned(took=TOOK | {"machines": ["T4", "RTX 5000"]}), profile, Trainer())
    assert correction(machine_key(preset, profile)) == ledger.NONE
    settle(planned(took=TOOK | {"machines": ["T4", "T4"]}), profile, Trainer())
    assert correction(machine_key(preset, profile)).runs == 1


def test_a_corrected_plan_that_was_right_keeps_the_correction(planned, profile, preset):
    settle(planned(), profile, Trainer())
    settle(planned(took=TOOK | {"seconds": 100.0}, factor=1.2), profile, Trainer())
    assert correction(machine_key(preset, profile)).seconds == pytest.approx(1.2)


def test_only_the_newest_runs_count_and_one_odd_one_does_not():
    write(5.0, count=10)
    for seconds in (1.0, 1.1, 9.0, 1.2, 1.1):
        write(seconds)
    write(7.0, key="another")
    found = correction("here")
    assert (found.runs, found.seconds) == (5, 1.1)


def test_the_ledger_does_not_grow_without_end(planned, profile):
    write(1.0, count=300)
    settle(planned(), profile, Trainer())
    assert len(entries()) == ledger.KEPT
    assert entries()[-1]["seconds"] == pytest.approx(1.2)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "",
        "7",
        "[1, 2]",
        '[{"key": "here"}]',
        '{"a": 1}',
        '[{"key": "a", "seconds": "x", "peak_memory_bytes": 1, "seconds_per_token": 1}]',
        '[{"key": "a", "seconds": 0, "peak_memory_bytes": 1, "seconds_per_token": 1}]',
        '[{"key": "a", "seconds": NaN, "peak_memory_bytes": 1, "seconds_per_token": 1}]',
        "\x00\xff",
    ],
)
def test_a_damaged_ledger_is_set_aside_with_a_word(cache, capsys, text):
    ledger_path().write_bytes(text.encode("latin-1"))
    assert correction("here") == ledger.NONE
    assert "The ledger of earlier runs cannot be read" in capsys.readouterr().out
    (aside,) = cache.glob("ledger-damaged-*.json")
    assert aside.read_bytes() == text.encode("latin-1")
    write(1.5)
    assert correction("here").seconds == 1.5


def test_a_ledger_that_cannot_be_written_does_not_stop_the_run(cache, planned, profile, capsys):
    cache.rmdir()
    cache.write_text("a file where the folder should be", encoding="utf-8")
    settle(planned(), profile, Trainer())
    assert "The ledger is not kept" in capsys.readouterr().out


def test_a_run_loaded_again_keeps_what_it_took(planned, profile, run):
    settle(planned(), profile, Trainer())
    run.record("training", {"peak_memory_bytes": 1})  # of a process that only loaded the model
    said = settle(run, profile, Trainer(optimizer=None))
    assert "2,200,000,000" in said
    assert len(entries()) == 1
    assert run.evidence()["plan"]["actual"]["peak_memory_bytes"] == 2_200_000_000


def test_a_run_counts_once_however_often_it_is_settled(planned, profile, preset):
    """The notebook's cell run again, in the kernel that trained."""
    run = planned()
    said = [settle(run, profile, Trainer()) for _ in range(3)]
    assert said[0] == said[1] == said[2]
    assert correction(machine_key(preset, profile)).runs == 1


def test_a_run_without_a_plan_is_told(run, profile):
    run.record("training", TOOK)
    with pytest.raises(LabError, match="run 'trial' was not planned; run the cell that plans it"):
        settle(run, profile, Trainer())


def test_another_number_of_threads_is_another_machine(preset, profile, monkeypatch):
    """A sweep's trials have one each, so the run that has the whole machine is not corrected by them."""
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = machine_key(preset, profile)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert machine_key(preset, profile) != alone
    assert "float32" in machine_key(preset, profile)


def test_a_card_has_a_rate_for_4_bit_and_one_for_16():
    llama, card = recipe.load_preset("llama-3.2-1b"), card_called("rtx-3070-laptop").hardware
    packed, whole = (machine.decide(card, llama, f"load_in_4bit={value}") for value in ("true", "false"))
    assert machine_key(llama, packed) != machine_key(llama, whole)


@pytest.mark.parametrize(
    "change",
    [
        *("lora.r=64", "lora.use_dora=true", 'lora.target_modules=["q_proj"]'),
        *("training.fast_cpu_step=false", "lora.lora_dropout=0.1"),
    ],
)
def test_runs_with_another_adapter_or_step_do_not_correct_each_other(preset, change):
    """Measured: with r 64 an epoch took 1.4 times as long as with r 16."""
    other = recipe.override(preset, [change])
    keys = {machine_key(each, machine.decide(machine.read_hardware(), each)) for each in (preset, other)}
    assert len(keys) == 2


def test_autograd_has_a_rate_of_its_own_whatever_called_for_it(preset, profile):
    """With dropout no step is by hand, also where the recipe asks for it."""
    asked = recipe.override(preset, ["lora.lora_dropout=0.1"])
    left_out = recipe.override(asked, ["training.fast_cpu_step=false"])
    keys = [machine_key(each, machine.decide(profile.hardware, each)) for each in (preset, asked, left_out)]
    assert keys[1] == keys[2]
    assert ["by hand" in key for key in keys] == [True, False, False]

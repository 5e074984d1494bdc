"""Several processes train what one would: the same losses, adapter and order of rows, also interrupted.

On a CPU the processes talk by gloo and accelerate wraps the model with DDP. It cannot shard there, so FSDP2
is verified here as torch's own `fully_shard`, and through accelerate only where there are cards.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finelab import LabError, machine, recipe
from finelab.train import distributed
from finelab.train.certificate import compare, document, documents
from finelab.train.distributed import (
    Order,
    World,
    change_of_size,
    interleaved,
    launch_fault,
    lend_random_states,
    setting_of_rank,
)
from finelab.train.search import Tuned
from tests.train.launches import ADAPTER, ROOT, TWENTY, drive, environment, prepared, tiny_model

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a child for each rank")
BY_TORCHRUN = {"RANK": "0", "MASTER_PORT": "29500", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
BY_ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}
FSDP = {**BY_ACCELERATE, **BY_TORCHRUN, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
FSDP2 = ["--fsdp_version", "2", "--fsdp_state_dict_type", "FULL_STATE_DICT"]
FSDP2 += ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
EARLY = ["training.eval_steps=10", "training.early_stopping_patience=2", "data.validation_share=0.1"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def setting(size, accumulation):
    return Tuned(size, accumulation, "random", packing=False, gradient_checkpointing=False, bf16=False)


# Sharing


@pytest.mark.parametrize(
    ("recipe_says", "size", "shared"),
    [
        ((2, 4), 1, (2, 4)),
        ((2, 4), 2, (2, 2)),
        ((2, 4), 4, (2, 1)),
        ((2, 4), 8, (1, 1)),
        ((6, 2), 3, (4, 1)),
        ((5, 2), 2, (5, 1)),
    ],
)
def test_the_ranks_share_an_optimizer_step(recipe_says, size, shared):
    found = setting_of_rank(setting(*recipe_says), size)
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == shared


def test_a_step_that_cannot_be_shared_is_refused():
    with pytest.raises(LabError, match="the 8 rows of an optimizer step cannot be shared by 3 processes"):
        setting_of_rank(setting(2, 4), 3)


@pytest.mark.parametrize(("count", "size"), [(0, 1), (5, 2), (8, 2), (2, 3)])
def test_what_was_dealt_out_comes_back_in_order(count, size):
    dealt = list(range(count))
    assert interleaved([dealt[rank::size] for rank in range(size)]) == dealt


def test_an_epoch_ends_with_fillers_so_that_no_rank_waits():
    order = Order(lambda epoch: [(i + epoch) % 5 for i in range(5)], 5, turn=4)
    assert (list(order), len(order)) == ([0, 1, 2, 3, 4, 5, 5, 5], 8)
    order.epoch = 1
    assert list(order) == [1, 2, 3, 4, 0, 5, 5, 5]


def test_a_filler_has_the_rows_columns_and_no_label():
    from datasets import Dataset

    rows = Dataset.from_list([{"input_ids": [7], "labels": [7], "seq_lengths": [1]}] * 2)
    filler = distributed.filler(rows)
    assert filler.features == rows.features
    assert filler.to_list() == [{"input_ids": [7, 7], "labels": [-100, -100], "seq_lengths": [2]}]


def test_a_row_has_the_same_hash_in_every_kind_of_batch():
    import torch

    first, second = torch.tensor([3, 4, 5]), torch.tensor([6, 7])
    pad = torch.tensor([0])
    padded = {
        "input_ids": torch.stack([first, torch.cat([second, pad])]),
        "labels": torch.stack([first, torch.cat([second, pad - 100])]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    flat = torch.cat([first, second])[None]
    flattened = {"input_ids": flat, "labels": flat, "position_ids": torch.tensor([[0, 1, 2, 0, 1]])}
    whole = {"input_ids": first[None], "labels": first[None]}
    hashes = [[document(*each) for each in documents(batch)] for batch in (padded, flattened, whole)]
    assert hashes[0] == hashes[1]
    assert hashes[2] == hashes[0][:1]
    assert [trained for _, trained in hashes[0]] == [3, 2]


# Launches and sizes that are refused


@pytest.mark.parametrize(
    ("environment", "device", "cards", "fault"),
    [
        ({}, "cpu", 0, None),
        ({}, "cuda", 1, None),
        (BY_TORCHRUN, "cpu", 0, None),
        (BY_TORCHRUN, "cuda", 2, None),
        (BY_TORCHRUN, "cuda", 1, "2 processes were started here, and there are 1 CUDA cards"),
        (BY_ACCELERATE, "cpu", 0, "on a CPU started one, without a word"),
        (BY_ACCELERATE | BY_TORCHRUN, "cpu", 0, None),
        (FSDP, "cpu", 0, "FSDP needs CUDA cards: on a CPU accelerate trains with DDP instead"),
        (FSDP, "cuda", 2, "--fsdp_state_dict_type FULL_STATE_DICT"),
        (FSDP | {"FSDP_VERSION": "1"}, "cuda", 2, "with FSDP2 only"),
        (FSDP | {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}, "cuda", 2, None),
    ],
)
def test_a_launch_that_would_do_something_else_is_refused(environment, device, cards, fault):
    found = launch_fault(environment, device, cards)
    assert found is None if fault is None else fault in found


@pytest.mark.parametrize(
    ("changes", "sealed_by", "reason"),
    [
        ([], 1, None),
        ([], 4, None),
        (["lora.lora_dropout=0.1"], 1, None),
        (["lora.lora_dropout=0.1"], 2, r"processes: 2 -> 1 \(lora_dropout = 0.1 draws other random numbers"),
        (EARLY, 2, "early stopping compares"),
    ],
)
def test_another_number_of_processes_goes_on_where_that_is_sound(preset, changes, sealed_by, reason):
    found = change_of_size(sealed_by, recipe.override(preset, changes))
    assert found is None if reason is None else re.search(reason, found)


def test_a_random_state_that_was_lent_by_half_does_not_count(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource", reason="Windows has no limit on a file's size")
    monkeypatch.setattr(distributed, "world", lambda: World(0, 2))
    state = b"state" * 10_000
    for name in ("rng_state.pth", "rng_state_0.pth"):
        (tmp_path / name).write_bytes(state)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError):
            lend_random_states(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lend_random_states(tmp_path)
    assert (tmp_path / "rng_state_1.pth").read_bytes() == state


def test_the_help_names_the_launchers():
    done = subprocess.run(
        [sys.executable, "-m", "finelab.train", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "torchrun --nproc_per_node N -m finelab.train NAME" in done.stdout


def test_a_run_without_data_is_told_so(run):
    done = subprocess.run(
        [sys.executable, "-m", "finelab.train", "--run", run.name],
        env=environment(run.folder.parent),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "run notebook 01_data of this run first" in done.stderr
    assert "Traceback" not in done.stderr


# Trainings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trainings(folder):
    return drive("tiny", folder)


def logs(run: Path) -> list[str]:
    """What each of two ranks logged."""
    return [(run / "logs" / f"rank-{rank}.log").read_text(encoding="utf-8") for rank in range(2)]


def difference(first: Path, second: Path) -> float:
    """The largest difference between two runs' adapters."""
    from safetensors.torch import load_file

    one, two = (load_file(each / "adapter" / ADAPTER) for each in (first, second))
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def assert_one_and_two_agree(one, two, steps):
    assert one["ends"] == [0]
    assert two["ends"] == [0, 0]
    for rank in two["noted"]:
        assert (rank["type"], rank["processes"]) == ("MULTI_CPU", 2)
        assert rank["wrapped"] == "DistributedDataParallel"
        assert len(rank["losses"]) == steps
        assert rank["losses"] == pytest.approx(one["noted"][0]["losses"], abs=1e-5)
    certificates = [each["training"]["certificate"] for each in (one, two)]
    assert compare(*certificates) in ([], ["weights_sha256"])  # a sum in another order
    assert certificates[0]["trained_tokens"] == certificates[1]["trained_tokens"]


@pytest.mark.slow
@forks
@pytest.mark.parametrize(("name", "steps"), [("hand", 20), ("grouped", 7), ("packed", 4)])
def test_two_processes_train_what_one_does(folder, trainings, name, steps):
    """Twenty steps by hand; autograd with rows grouped by length; packed rows. All end an epoch unevenly."""
    assert_one_and_two_agree(trainings[f"{name}-1"], trainings[f"{name}-2"], steps)
    assert difference(folder / f"{name}-1", folder / f"{name}-2") < 1e-5


@pytest.mark.slow
@forks
@pytest.mark.parametrize("name", ["looked", "looked-autograd"])
def test_two_processes_see_each_validation_row_once(trainings, name):
    """Five rows in batches of two: the second rank's last batch is fillers alone, and its loss 0."""
    one, two = (trainings[f"{name}-{size}"]["noted"] for size in (1, 2))
    assert len(one[0]["looks"]) == 3
    assert (one[0]["looked_by_hand"] > 0) == (name == "looked")
    for rank in two:
        assert rank["looks"] == pytest.approx(one[0]["looks"], abs=1e-5)


@pytest.mark.slow
@forks
def test_one_writes_and_each_has_its_log(folder, trainings):
    run = folder / "hand-2"
    first, second = logs(run)
    assert "processes: 2, gloo, DDP" in first
    assert "processes: 2, gloo, DDP" in second
    assert "held out by row" in first
    assert "held out by row" not in second
    assert json.loads((run / "evidence.json").read_text())["evaluation"]
    assert {path.name for path in (run / "figures").iterdir()} == {"03_loss.png", "03_heldout.png"}
    assert not list(run.glob("checkpoints/broken-*"))


@pytest.mark.slow
@forks
def test_the_heldout_losses_are_those_of_one_process(folder, trainings):
    one, two = (
        json.loads((folder / name / "heldout_losses.json").read_text()) for name in ("hand-1", "hand-2")
    )
    assert flat(two) == pytest.approx(flat(one), abs=1e-4)


def flat(value):
    """The numbers in nested lists and mappings, in their order."""
    if isinstance(value, dict):
        return flat(list(value.values()))
    if isinstance(value, list):
        return [number for each in value for number in flat(each)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.slow
@forks
def test_killed_ranks_end_all_and_the_run_goes_on_bit_for_bit(folder, trainings):
    one, everyone, whole = (trainings[name] for name in ("one killed", "all killed", "killed"))
    assert one["ends"] == [2, -signal.SIGKILL]
    assert "rank 0: another process of this training ended without a word" in one["said"][0]
    assert "Traceback" not in one["said"][0]
    assert everyone["ends"] == [-signal.SIGKILL] * 2
    assert whole["ends"] == [0, 0]
    assert whole["training"]["resumes"] == [6, 12]
    certificate = whole["training"]["certificate"]
    assert compare(trainings["hand-2"]["training"]["certificate"], certificate) == []
    assert certificate["restored_exactly"]
    assert difference(folder / "hand-2", folder / "killed") == 0


@pytest.mark.slow
@forks
def test_a_signal_to_one_rank_stops_all_at_its_step_and_one_process_goes_on(folder, trainings):
    stopping, stopped = trainings["stopping"], trainings["stopped"]
    assert [len(rank["losses"]) for rank in stopping["noted"]] == [9, 9]
    assert all("(SIGTERM): step 9 is saved" in log for log in logs(folder / "stopped"))
    assert stopped["ends"] == [0]
    assert stopped["training"]["resumes"] == [9]
    assert stopped["training"]["certificate"]["restored_exactly"]
    both = [trainings[name]["training"]["certificate"] for name in ("hand-1", "stopped")]
    assert compare(*both) == ["weights_sha256"]
    assert difference(folder / "hand-1", folder / "stopped") < 1e-5


@pytest.mark.slow
@forks
def test_a_mistake_of_one_rank_is_said_once_and_ends_all(folder, trainings):
    broken = trainings["broken"]
    assert broken["ends"] == [2, 2]
    assert [said.count("finelab: ") for said in broken["said"]] == [0, 1]
    assert broken["said"][1].endswith("finelab: rank 1: the disk of this rank is full.\n")
    assert (folder / "broken" / "logs" / "failure.txt").read_text() == (
        "finelab: rank 1: the disk of this rank is full.\n"
    )


@pytest.mark.slow
@forks
def test_the_embedded_model_in_two_processes(tmp_path, embedded_folder):
    found = drive("embedded", tmp_path)
    assert_one_and_two_agree(found["1"], found["2"], 5)
    assert difference(tmp_path / "1", tmp_path / "2") < 1e-5


@pytest.mark.slow
@forks
def test_fully_sharded_the_losses_gradients_and_weights_are_the_same(tmp_path):
    import torch

    assert drive("sharded", tmp_path) == [0, 0]
    whole, *ranks = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "rank-0", "rank-1"))
    assert not whole["sharded"]
    for rank in ranks:
        assert rank["sharded"]
        torch.testing.assert_close(rank["steps"], whole["steps"], rtol=0, atol=1e-5)


# The launchers themselves


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_torchrun_hands_on_a_signal_and_all_ranks_save_the_same_step(tmp_path):
    run = prepared(tmp_path / "long", tiny_model(tmp_path / "model"), *TWENTY, "training.max_steps=1000000")
    command = [*TORCHRUN, "-m", "finelab.train", run.name]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as launcher:
        said = ""
        for line in launcher.stdout:
            said += line
            if line.startswith("step "):
                launcher.send_signal(signal.SIGTERM)
                break
        said += launcher.stdout.read()
    assert launcher.returncode != 0, said
    first, second = (re.findall(r"\(SIGTERM\): step (\d+) is saved", log) for log in logs(run.folder))
    assert first == second, said
    assert (run.checkpoints / f"checkpoint-{first[0]}" / "finelab-manifest.json").exists()


@pytest.mark.slow
@forks
def test_accelerate_launch_loads_a_finished_run_in_two_processes(folder, trainings):
    done = accelerate(folder, "--multi_gpu", "--num_processes", "2", "-m", "finelab.train", "--run", "hand-2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("processes: 2, gloo, DDP") == 1
    assert "Training is finished: 20 of 20 steps. The adapter is loaded" in done.stdout


@pytest.mark.cuda
@pytest.mark.skipif("__import__('torch').cuda.device_count() < 2", reason="needs two CUDA cards")
def test_on_two_cards_ddp_and_fsdp2_train_what_one_does(tmp_path):
    """Not run by the authors, who had no two cards."""
    model = tiny_model(tmp_path / "model")
    launches = {
        "one": ["--num_processes", "1"],
        "ddp": ["--multi_gpu", "--num_processes", "2"],
        "fsdp": ["--use_fsdp", "--num_processes", "2", *FSDP2],
    }
    losses = {}
    for name, options in launches.items():
        run = prepared(tmp_path / name, model, *TWENTY)
        done = accelerate(tmp_path, *options, "-m", "finelab.train", "--run", name)
        assert done.returncode == 0, done.stdout + done.stderr
        newest = json.loads((run.checkpoints / "checkpoint-20" / "trainer_state.json").read_text())
        losses[name] = [entry["loss"] for entry in newest["log_history"] if "loss" in entry]
        assert run.evidence()["training"]["certificate"]["processes"] == (1 if name == "one" else 2)
        assert (f"2, nccl, {name.upper()}" in done.stdout) == (name == "ddp")
        assert ("FSDP2" in done.stdout) == (name == "fsdp")
    assert losses["ddp"] == pytest.approx(losses["one"], abs=1e-4)
    assert losses["fsdp"] == pytest.approx(losses["one"], abs=1e-4)


@pytest.mark.slow
def test_accelerate_launch_that_starts_one_process_of_two_is_refused(tmp_path):
    run = prepared(tmp_path / "silent", tiny_model(tmp_path / "model"))
    done = accelerate(tmp_path, "--num_processes", "2", "-m", "finelab.train", "--run", run.name)
    assert done.returncode != 0
    assert "rank 0: accelerate launch was asked for several processes and on a CPU started one" in done.stderr


def accelerate(folder, *arguments):
    return subprocess.run(
        [*ACCELERATE, *arguments],
        cwd=ROOT,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_trainer_has_the_arguments_of_the_notebook(run):
    """What notebook 03 gives to SFTConfig, in its own words, and what this module gives."""
    from finelab import train
    from finelab.train.__main__ import arguments

    cells = json.loads((ROOT / "notebooks" / "03_train.ipynb").read_text(encoding="utf-8"))["cells"]
    source = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
    first, last = source.index("hyperparameters = dict("), source.index("from trl import SFTTrainer")
    words = source[first:last].replace("from trl import SFTConfig", "").replace("SFTConfig(", "dict(")
    profile = machine.profile(run.recipe)
    names = {"run": run, "recipe": run.recipe, "profile": profile, "tuned": setting(2, 4), "train": train}
    exec(words, names)
    assert arguments(run, profile, setting(2, 4)) == names["args"] | {"ddp_find_unused_parameters": False}

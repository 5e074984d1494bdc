"""modal_train.py by the real `modal run`: a run that Modal takes back in the middle, a sweep, refusals."""

import json
import os
import re
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from finelab import LabError
from finelab.improve import Sweep, Trial, create_sweep, outcome, report
from finelab.recipe import load_preset, override
from finelab.run import create_run
from tests.deployment.conftest import DEPLOYMENT
from tests.deployment.control_plane import ControlPlane

SCRIPT = DEPLOYMENT / "modal_train.py"
on_linux = pytest.mark.skipif(sys.platform == "win32", reason="a Modal container is a Linux process")
SMALL = "data.limit=40;model.max_seq_length=128;training.max_steps=3;training.save_steps=1"
SMALL += ";training.per_device_train_batch_size=1;training.gradient_accumulation_steps=1;training.tune=false"
JOB = {"run": "mine", "recipe": "smollm2-135m", "changes": ["data.limit=40"], "gpus": 1, "hours": 2.0}
JOB |= {"usd_per_hour": 3.0, "spend_usd": 10.0}
ASKED = {"run": "x", "recipe": "llama-3.2-1b", "changes": [], "gpu": "l4"}
ASKED |= {"gpus": 1, "hours": 6.0, "spend": 10.0}


@pytest.fixture
def modal(tmp_path, embedded_folder):
    plane = tmp_path / "modal"
    plane.mkdir()
    environment = {
        "FINELAB_RUNS_DIR": str(plane / "volumes" / "finelab-runs"),
        "FINELAB_CACHE_DIR": str(embedded_folder.parent),
        "OMP_NUM_THREADS": "1",
    }
    with ControlPlane(plane, environment) as modal:
        yield modal


@pytest.fixture
def trial_runs(modal, script, monkeypatch):
    """Where the containers keep a trial: (trial, the sweep's name) -> folder."""
    monkeypatch.setenv("FINELAB_RUNS", str(modal.volume("finelab-runs")))
    return script("train_on_volume").trial_runs


@on_linux
@pytest.mark.slow
def test_a_run_whose_container_is_taken_back_goes_on_in_another(modal, tmp_path):
    """The whole way: a forecast, rows and training in a container, kill -9, the rest in a second one."""
    options = ["--run", "mine", "--recipe", "smollm2-135m", "--set", SMALL, "--gpu", "l4", "--spend", "1"]
    here = tmp_path / "here" / "runs"
    process = modal.start("run", SCRIPT, *options, FINELAB_RUNS=str(here))
    run = modal.volume("finelab-runs") / "mine"
    while process.poll() is None and not (run / "checkpoints" / "checkpoint-2").exists():
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    os.killpg(modal.processes["train"][0], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output

    assert "Forecast: 0.00 h of training on 1 x L4, $0.00." in output
    assert "At most $1.00 are spent on GPUs, at $0.80 an hour" in output
    assert "CPU and memory come on top." in output
    assert "Sitting 1: finished." in output and re.search(r"Actual: 0\.\d\d h, \$0\.\d\d; forecast: ", output)
    assert f'modal volume get --force finelab-runs mine "{here}/"' in output and here.is_dir()
    evidence = json.loads((run / "evidence.json").read_text("utf-8"))
    assert evidence["training"]["steps"] == 3 and len(evidence["training"]["resumes"]) == 1
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    killed, last = json.loads((run / "modal.json").read_text("utf-8"))
    assert killed["usd_per_hour"] == 0.7992 and last["seconds"] > 1
    assert killed["input"] == last["input"] and (killed["ended"], last["ended"]) == (False, True)

    asked = modal.functions["train"]
    assert (asked.resources.gpu_config.gpu_type, asked.resources.gpu_config.count) == ("L4", 1)
    assert (asked.resources.milli_cpu, asked.resources.memory_mb) == (2000, 8192)
    assert asked.timeout_secs == round(1 / 0.7992 * 3600) and asked.retry_policy.retries == 8
    assert [mount.mount_path for mount in asked.volume_mounts] == [str(run.parent)]
    assert modal.committed.count("vo-finelab-runs") >= 2
    assert len(modal.processes["train"]) == 2 and modal.exit_codes["train"][0] == -signal.SIGKILL
    image = "\n".join(modal.image_of("train"))
    assert "--no-deps" in image and "python:3.12" in image and " gcc " in image
    assert {"/root/finelab/run.py", "/root/notebooks/03_train.ipynb"} <= modal.mounted("train")
    assert not [path for path in modal.mounted("train") if "__pycache__" in path]


def test_a_cache_of_this_machine_does_not_go_along(script, monkeypatch):
    monkeypatch.setenv("FINELAB_CACHE", "/home/me/finelab")
    assert script("modal_train").SETTINGS["FINELAB_CACHE"] == "/runs/.cache/finelab"


def test_a_token_beside_the_notebooks_stays_here(script):
    import modal

    left_out = ~modal.FilePatternMatcher(*script("modal_train").NOTEBOOKS)
    assert all(left_out(Path(name)) for name in (".hftoken", "token.txt", ".env", "__pycache__/kernel.pyc"))
    assert not any(left_out(Path(name)) for name in ("03_train.ipynb", "kernel.py"))


@on_linux
def test_a_sweep_is_tried_in_containers_and_its_table_is_here(modal, trial_runs, tmp_path):
    """The trials have ended on the volume before, so that what is tested is the way there and back."""
    folder = tmp_path / "sizes"
    settings = {"default": {}, "good": {"lora.r": 8}, "broken": {"lora.r": 4}}
    sweep = create_sweep(folder, Sweep("smollm2-135m", 1000, (1, 2), settings))
    for trial in sweep.trials():
        leave(trial_runs(trial, "sizes") / trial.name, trial)
    code, output = modal.command("run", SCRIPT, "--sweep", folder, "--gpu", "t4", "--spend", "6")
    assert code == 0, output
    assert "6 trials on one Tesla T4 each, at most 1.69 h and $1.00 a trial, $6.00 in all." in output
    assert "broken-s2: failed it fell over" in output
    found = report(folder)["settings"]
    assert found["good"]["difference"] == pytest.approx(0.2)
    assert found["broken"]["unfinished"] == {"1": "failed: it fell over", "2": "failed: it fell over"}
    assert "+0.2000" in output
    asked = modal.functions["try_one"]
    assert asked.resources.gpu_config.gpu_type == "T4" and asked.retry_policy.retries == 0
    assert asked.timeout_secs == round(1 / 0.5904 * 3600)


@on_linux
def test_a_trial_whose_container_dies_takes_no_other_with_it(modal, trial_runs, tmp_path):
    """All but the last have ended before; the last is killed as soon as it begins."""
    folder = tmp_path / "sizes"
    sweep = create_sweep(folder, Sweep("smollm2-135m", 1000, (1, 2), {"default": {}, "small": {"lora.r": 8}}))
    *ended, last = sweep.trials()
    for trial in ended:
        leave(trial_runs(trial, "sizes") / trial.name, trial)
    process = modal.start("run", SCRIPT, "--sweep", folder, "--gpu", "t4", "--spend", "6")
    while process.poll() is None and not trial_runs(last, "sizes").exists():
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    os.killpg(modal.processes["try_one"][-1], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert output.count("A trial ended without a result: ") == 1
    found = report(folder)["settings"]
    assert list(found["default"]["losses"]) == ["1", "2"] and list(found["small"]["losses"]) == ["1"]
    assert found["small"]["unfinished"] == {"2": "waiting"}


@on_linux
def test_only_what_is_left_of_a_sweep_is_sent_and_paid_for(modal, trial_runs, tmp_path):
    """Two trials have ended here, one of them failed; a second attempt at that one ends on the volume."""
    folder = tmp_path / "sizes"
    sweep = create_sweep(folder, Sweep("smollm2-135m", 1000, (1, 2), {"default": {}, "small": {"lora.r": 8}}))
    first, second, third, fourth = sweep.trials()
    leave(folder / first.name, first)
    fail(folder / second.name)
    for trial in (third, fourth):
        leave(trial_runs(trial, "sizes") / trial.name, trial)
    command = ["run", SCRIPT, "--sweep", folder, "--gpu", "t4", "--spend", "6"]
    code, output = modal.command(*command)
    assert code == 0, output
    assert "2 of 4 trials have ended before." in output
    assert "2 trials on one Tesla T4 each, at most 5.08 h and $3.00 a trial, $6.00 in all." in output
    assert set(returned(output)) == {third.name, fourth.name}

    leave(trial_runs(second, "sizes") / second.name, second)
    fail(trial_runs(second, "sizes") / second.name)
    code, output = modal.command(*command, "--retry")
    assert code == 0, output
    assert "3 of 4 trials have ended before." in output
    assert returned(output) == {second.name: "finished"}
    assert list(report(folder)["settings"]["small"]["losses"]) == ["1", "2"]

    rented = len(modal.processes["try_one"])
    code, output = modal.command(*command)
    assert code == 0, output
    assert "4 of 4 trials have ended before." in output and "difference" in output
    assert len(modal.processes["try_one"]) == rented


def returned(output):
    """The state of each trial that came back."""
    return dict(re.findall(r"^(\w+-s\d): (finished|failed)", output, re.MULTILINE))


@pytest.mark.parametrize(
    ("changed", "state"),
    [({}, "failed"), ({"assignments": ("lora.r=8",)}, "waiting"), ({"trained_tokens": 2000}, "waiting"),
     ({"recipe": "llama-3.2-1b"}, "waiting")],
    ids=["the same", "setting", "budget", "recipe"],
)  # fmt: skip
def test_a_trial_finds_what_was_left_by_one_of_its_own_values_only(
    script, tmp_path, monkeypatch, changed, state
):
    monkeypatch.setenv("FINELAB_RUNS", str(tmp_path))
    trial_runs = script("train_on_volume").trial_runs
    trial = Trial("broken", 1, "smollm2-135m", ("lora.r=4",), 1000)
    leave(trial_runs(trial, "sizes") / trial.name, trial)
    other = replace(trial, **changed)
    assert outcome(other, trial_runs(other, "sizes")).state == state


def test_a_sweep_that_cannot_pay_for_its_trials_rents_nothing(script, tmp_path):
    create_sweep(tmp_path, Sweep("smollm2-135m", 1000, (1, 2), {"default": {}, "small": {"lora.r": 8}}))
    with pytest.raises(
        LabError, match=r"--spend 0\.05: 4 trials on one L4 each would have 0\.9 minutes;"
    ) as said:
        script("modal_train").sweep_on_modal(tmp_path, "l4", 0.05, retry=False)
    assert str(said.value).endswith("spend 0.54.")


def leave(run, trial):
    """What a trial that has ended leaves."""
    if trial.setting == "broken":
        fail(run)
        return
    (run / "notebooks").mkdir(parents=True)
    (run / "notebooks" / "03_train.ipynb").write_text("{}", encoding="utf-8")
    nats = 20 + trial.seed + 2 * (trial.setting == "good")
    row = {"heldout": "row", "question": "q", "tokens": 10, "bytes": 40, "base": 30.0, "tuned": nats}
    (run / "heldout_losses.json").write_text(json.dumps({"a": row}), encoding="utf-8")
    training = {"tokens_trained": 1000, "seconds": 5.0, "peak_memory_bytes": 1e9}
    (run / "evidence.json").write_text(json.dumps({"training": training}), encoding="utf-8")


def fail(run):
    """What a trial that failed leaves besides."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "failed.json").write_text('{"reason": "it fell over"}', encoding="utf-8")


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "give --run NAME for one run, or --sweep FOLDER for a sweep"),
        (["--run", "x", "--spend", "0.5"], "--spend 0.5: the forecast is $"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_before_anything_is_rented(modal, options, sentence):
    code, output = modal.command("run", SCRIPT, *options)
    assert code == 1
    assert output.strip().splitlines()[-1].startswith(sentence), output
    assert "Traceback" not in output
    assert not modal.processes


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ({"run": "../x"}, "--run ../x: a run has a name, not a path"),
        ({"recipe": "gpt"}, "there is no recipe 'gpt'"),
        ({"changes": ["lora.rank=8"]}, "--set: lora.rank: unknown key"),
        ({"gpu": "rtx-2060s"}, "--gpu rtx-2060s: Modal does not rent it out; there are: t4,"),
        ({"gpus": 16}, "--gpus 16: expected 1 to 8"),
        ({"hours": 30.0}, "--hours 30: expected 0.17 to 23.5"),
        ({"hours": 0.15}, "--hours 0.15: expected 0.17 to 23.5"),
        ({"spend": 0.1}, "--spend 0.1: 1 x L4 would have 7.5 minutes; 10 are the least"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_run_that_cannot_be_is_refused_in_one_sentence(script, monkeypatch, mistake, sentence):
    here = script("modal_train")
    monkeypatch.setattr(here, "with_gpu", None)  # there is no other way to a card
    with pytest.raises(LabError) as said:
        here.run_on_modal(**ASKED | mistake)
    assert str(said.value).startswith(sentence) and "\n" not in str(said.value)


def test_a_sweep_that_is_not_there_is_named(script, tmp_path):
    with pytest.raises(LabError, match=r"sweep\.toml is not there: make the sweep first"):
        script("modal_train").sweep_on_modal(tmp_path, "l4", 10.0, retry=False)


# A sitting, without its commands


@pytest.fixture
def sit(script, tmp_path, monkeypatch):
    """Calls `sitting` with commands that are only recorded and answer as they are told to."""
    monkeypatch.setenv("FINELAB_RUNS", str(tmp_path))
    monkeypatch.setattr("finelab.run.RUNS", tmp_path)
    here = script("train_on_volume")

    def call(*answers, spent_s=0, input_id="in-1", **changes):
        commands, commits, left = [], [], list(answers)

        def follow(command, ends):
            commands.append(command)
            answer = left.pop(0)
            return answer() if callable(answer) else answer

        monkeypatch.setattr(here, "follow", follow)
        if spent_s:
            sat = [{"seconds": spent_s, "usd_per_hour": 3.0}]
            (tmp_path / "mine" / "modal.json").write_text(json.dumps(sat), encoding="utf-8")
        done = here.sitting(JOB | changes, input_id, lambda: commits.append(1))
        return done, commands, len(commits)

    return call


DONE = (0, "done")


def hours_in(tmp_path):
    from finelab.recipe import read

    return read(tmp_path / "mine" / "recipe.toml").training.session_hours


def test_a_sitting_prepares_the_rows_then_trains(sit, tmp_path):
    done, commands, commits = sit(DONE, (0, "trained"))
    assert (done["state"], done["said"]) == ("finished", "trained")
    assert [command[-1] for command in commands] == ["data", "train"] and commits >= 2
    assert hours_in(tmp_path) == pytest.approx(2 - 0.1, abs=0.01)


def test_several_gpus_get_a_process_each(sit):
    _, commands, _ = sit(DONE, DONE, gpus=4)
    assert commands[1][1:] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4", "-m",
                               "finelab.train", "mine"]  # fmt: skip


def test_a_sitting_whose_time_is_over_is_followed_by_another(sit):
    from finelab.train.session import GO_ON

    done, _, _ = sit(DONE, (2, f"03_train: training stopped at step 5 of 9; {GO_ON}."))
    assert done["state"] == "stopped"


def test_a_mistake_in_the_rows_ends_it(sit):
    done, commands, _ = sit((2, "01_data: 20 of 40 rows cannot be used"))
    assert (done["state"], len(commands)) == ("failed", 1)


def test_what_is_left_of_the_money_shortens_the_sitting(sit, tmp_path):
    create_run(tmp_path / "mine", override(load_preset("smollm2-135m"), ["data.limit=40"]))
    done, _, _ = sit(DONE, DONE, spent_s=9000)
    assert done["usd"] == pytest.approx(7.5, abs=0.01)
    assert hours_in(tmp_path) == pytest.approx((10 - 7.5) / 3 - 0.1, abs=0.01)


def test_when_the_money_is_spent_nothing_runs(sit, tmp_path):
    create_run(tmp_path / "mine", override(load_preset("smollm2-135m"), ["data.limit=40"]))
    done, commands, _ = sit(spent_s=11_900)
    assert (done["state"], commands) == ("spent", [])
    assert done["said"] == "the limit of $10.00 is reached"


def test_a_run_is_trained_by_one_container_at_a_time(sit, tmp_path):
    """A second call while the first one trains, and one after it."""
    refused = []

    def meanwhile():
        refused.append(sit(input_id="in-2", hours=5.0))
        return DONE

    assert sit(DONE, meanwhile)[0]["state"] == "finished"
    ((done, commands, _),) = refused
    assert (done["state"], commands) == ("failed", [])
    assert re.fullmatch(
        r"another container trains run 'mine' \(it wrote \d+ s ago\); wait for it, or ask again in \d+ s\.",
        done["said"],
    )
    assert hours_in(tmp_path) < 2  # the one that trains goes by its recipe
    assert sit(DONE, DONE, input_id="in-2")[0]["state"] == "finished"


@pytest.mark.parametrize(
    ("last", "commands"),
    [
        ({"input": "in-2", "ago_s": 10, "ended": False}, 0),
        ({"input": "in-2", "ago_s": 80, "ended": False}, 2),
        ({"input": "in-2", "ago_s": 10, "ended": True}, 2),
        ({"input": "in-1", "ago_s": 10, "ended": False}, 2),
        ({}, 2),
    ],
    ids=["at work", "died", "ended", "taken back", "written by an older lab"],
)
def test_who_was_there_before_decides_whether_a_call_may_train(sit, tmp_path, last, commands):
    if last:
        last["at"] = time.time() - last.pop("ago_s")
    entry = {"seconds": 60.0, "usd_per_hour": 3.0} | last
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "modal.json").write_text(json.dumps([entry]), encoding="utf-8")
    assert len(sit(DONE, DONE)[1]) == commands


@on_linux
def test_when_the_limit_is_reached_the_command_saves_and_the_next_call_says_so(script, tmp_path, monkeypatch):
    """A dollar a second, and five of them; the rows would take for ever."""
    monkeypatch.setenv("FINELAB_RUNS", str(tmp_path))
    monkeypatch.setattr("finelab.run.RUNS", tmp_path)
    here = script("train_on_volume")
    here.LEAST_S, here.SAVE_S = 1, 0
    # a handler of its own: a shell that was started with SIGINT ignored, in the background, cannot trap it
    until_stopped = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, lambda *_: (print('finelab: saved', flush=True), sys.exit(130)))\n"
        "while True: signal.pause()"
    )
    here.FINELAB = (sys.executable, "-c", until_stopped)
    job = JOB | {"usd_per_hour": 3600.0, "spend_usd": 5.0}
    done = here.sitting(job, "in-1", lambda: None)
    assert (done["state"], done["said"]) == ("stopped", "saved")
    assert here.sitting(job, "in-2", lambda: None)["state"] == "spent"


def test_another_recipe_under_the_same_name_is_refused(sit):
    sit(DONE, DONE)
    done, commands, _ = sit(changes=["data.limit=41"])
    assert (done["state"], commands) == ("failed", [])
    assert "was made with another recipe (data.limit: 40 -> 41)" in done["said"]


def test_other_hours_are_no_other_recipe(sit, tmp_path):
    sit(DONE, DONE)
    assert sit(DONE, DONE, hours=5.0)[0]["state"] == "finished"
    assert hours_in(tmp_path) > 2


def test_a_volume_that_cannot_be_committed_for_a_while_keeps_the_account_all_the_same(
    script, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FINELAB_RUNS", str(tmp_path))
    here = script("train_on_volume")
    here.TICK_S = 0.01
    run = create_run(tmp_path / "mine", load_preset("smollm2-135m"))
    asked, enough = [], threading.Event()

    def commit():
        asked.append(here.account("mine")[-1]["seconds"])
        if len(asked) == 20:
            enough.set()
        if len(asked) < 10:
            raise RuntimeError("504 from Modal")

    with here.accounting(run, [], 3.0, "in-1", commit):
        assert enough.wait(60)
    assert asked[-1] > asked[0] == 0.0
    said = capsys.readouterr().out
    assert said.count("The volume was not committed (504 from Modal); it is tried again.") == 9


def test_what_a_command_says_last_is_kept_and_the_labs_sentence_before_it(script):
    here = script("train_on_volume")
    code = (
        "print('step 1'); print('finelab: it is this'); print('torch: 3 lines of noise'); raise SystemExit(3)"
    )
    ends = time.monotonic() + 600
    assert here.follow([sys.executable, "-c", code], ends) == (3, "it is this")
    assert here.follow([sys.executable, "-c", "print('a'); print('b')"], ends) == (0, "b")

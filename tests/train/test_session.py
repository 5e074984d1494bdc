"""A session over a real trainer: a tiny Llama, trained, stopped, resumed and finished."""

import dataclasses
import json
import re
import shutil
import signal
from contextlib import nullcontext

import pytest

from finelab import LabError
from finelab.files import sha256, write_json
from finelab.recipe import override
from finelab.run import ACCEPT_VARIABLE, TRAINING_LOCK, Run, alone, create_run
from finelab.train import Session, watch
from finelab.train.checkpoint import LATER, inspect, seal
from finelab.train.probe import unchanged
from tests.tiny import base_model, with_adapter
from tests.train.sittings import ROWS, at_step, sit, trainer_of

ADAPTER = "adapter_model.safetensors"


def train(run, stop_at=None, callbacks=(), **args):
    """One sitting, which a signal may stop at the end of a step."""
    session = Session(run)
    if stop_at:
        callbacks = [*callbacks, at_step(stop_at, lambda: signal.raise_signal(signal.SIGINT))]
    trainer = trainer_of(session, callbacks, **args)
    sit(session, trainer)
    return session, trainer


def changed(run, *assignments):
    """The run with another recipe, as if its file had been edited."""
    return Run(run.folder, override(run.recipe, list(assignments)))


@pytest.fixture
def stopping(run):
    """The run with early stopping after two measurements, each second step, that are not better."""
    changes = ["training.eval_steps=2", "training.early_stopping_patience=2", "data.validation_share=0.1"]
    return changed(run, *changes)


EARLY = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 64,  # every measurement is saved anyway
    "eval_on_start": True,
    "load_best_model_at_end": True,
    "save_total_limit": 2,
    "num_train_epochs": 8,
    "learning_rate": 3e-2,
}


def test_a_whole_run_is_recorded(run, capsys):
    session, trainer = train(run)
    session.complete(trainer)
    training = run.evidence()["training"]
    assert training["steps"] == 8
    assert training["tokens"] == 2 * 16 * 4
    assert training["tokens_trained"] == 2 * 16 * 3
    assert training["last_loss"] < training["first_loss"]
    assert training["best_step"] is None
    assert not training["stopped_early"]
    assert (run.adapter / ADAPTER).exists()
    shipped = (run.adapter / "chat_template.jinja").read_text("utf-8")
    assert shipped == '{%- set date_string = "26 Jul 2024" %}Today is {{ date_string }}.'
    assert "Starting: 8 steps." in capsys.readouterr().out


def test_a_stopped_run_says_so_and_goes_on(run, capsys):
    session, trainer = train(run, stop_at=3)
    assert (
        "Stopped, it was interrupted (SIGINT): step 3 is saved; run this notebook again, or the same lab.py "
        "command, to go on." in capsys.readouterr().out
    )
    with pytest.raises(LabError, match=r"training stopped at step 3 of 8; run this notebook again, or the"):
        session.complete(trainer)
    assert not run.adapter.exists()

    session, trainer = train(run)
    session.complete(trainer)
    assert "Going on from checkpoint-3: 5 of 8 steps are left." in capsys.readouterr().out
    assert run.evidence()["training"]["resumes"] == [3]


def test_the_same_session_asked_again_goes_on_from_what_was_saved_since(run):
    session, trainer = train(run, stop_at=3)
    assert session.resume_from_checkpoint is None
    sit(session, trainer)
    session.complete(trainer)
    assert run.evidence()["training"]["resumes"] == [3]


def test_a_finished_run_is_loaded_not_trained_on(run, capsys):
    session, trainer = train(run)
    session.complete(trainer)
    before = sha256(run.adapter / ADAPTER)
    session, trainer = train(run)
    assert "Training is finished: 8 of 8 steps" in capsys.readouterr().out
    session.complete(trainer)
    assert sha256(run.adapter / ADAPTER) == before
    assert run.evidence()["training"]["steps"] == 8
    assert run.evidence()["training"]["resumes"] == []


class Broken(Exception):
    """Stands for what ends a sitting at once: a second press of stop, too little memory."""


def broken_at(step, session, **args):
    """The trainer of a sitting that broke in this step, before its first checkpoint."""

    def break_off():
        raise Broken

    trainer = trainer_of(session, [at_step(step, break_off)], save_steps=64, **args)
    with pytest.raises(Broken):
        sit(session, trainer)
    trainer.callback_handler.callbacks.pop()
    return trainer


@pytest.mark.parametrize("again", ["training cell", "trainer's cell", "tuner's cell"])
def test_weights_that_moved_before_a_first_checkpoint_are_no_fresh_start(run, again, capsys):
    session = Session(run)
    trainer = broken_at(3, session)
    if again != "training cell":
        with unchanged(trainer.model) if "tuner" in again else nullcontext():  # as around a trial
            session = Session(run)
            trainer = trainer_of(session, model=trainer.model)
    capsys.readouterr()
    with pytest.raises(LabError, match=r"'trial' has no checkpoint .*: restart the kernel and run"):
        sit(session, trainer)
    assert "Starting" not in capsys.readouterr().out
    train(run)  # as after a restart


def test_weights_of_a_checkpoint_that_is_gone_are_no_fresh_start(run):
    train(run, stop_at=3)
    session = Session(run)
    trainer = trainer_of(session)
    sit(session, trainer)
    shutil.rmtree(run.checkpoints)
    with pytest.raises(LabError, match="was already trained for some steps"):
        Session(run).finished(trainer)


def test_a_step_of_warm_up_moves_no_weight_and_yet_the_optimizer(run):
    session = Session(run)
    trainer = broken_at(2, session, warmup_steps=2)
    with pytest.raises(LabError, match="was already trained for some steps"):
        sit(session, trainer)
    session = Session(run)
    sit(session, trainer_of(session, model=trainer.model))


def test_a_sitting_that_broke_in_its_first_step_may_begin_again(run):
    session = Session(run)
    trainer = broken_at(1, session)
    sit(session, trainer)
    session.complete(trainer)
    assert run.evidence()["training"]["steps"] == 8


def test_a_part_of_an_epoch_is_rounded_up_as_the_trainer_does(run, capsys):
    args = {"num_train_epochs": 0.6, "save_steps": 64}  # 2.4 of 4 steps
    session, trainer = train(run, stop_at=2, **args)
    with pytest.raises(LabError, match="training stopped at step 2 of 3"):
        session.complete(trainer)
    session, trainer = train(run, **args)
    session.complete(trainer)
    assert run.evidence()["training"]["steps"] == 3
    assert "Going on from checkpoint-2: 1 of 3 steps are left." in capsys.readouterr().out


def test_a_second_start_while_one_trains_is_refused_and_touches_nothing(run):
    second = Session(run)
    other = trainer_of(second)
    half = run.checkpoints / "checkpoint-1"
    refused = []

    def start_again():
        half.mkdir()  # as it is while the trainer writes it
        with pytest.raises(LabError, match="another process is at work on run 'trial'") as raised:
            second.finished(other)
        with pytest.raises(LabError, match="another process is at work"), second.sitting(other):
            pass
        refused.append(raised.value)
        half.rmdir()

    session, trainer = train(run, callbacks=[at_step(1, start_again)])
    session.complete(trainer)
    assert len(refused) == 1
    assert second.finished(other)


def test_training_outside_of_a_sitting_is_refused(run):
    session = Session(run)
    trainer = trainer_of(session)
    session.finished(trainer)
    with pytest.raises(LabError, match=r"with session\.sitting\(trainer\)"):
        trainer.train()


def test_early_stopping_keeps_the_best_adapter_and_trains_no_step_more(stopping, capsys):
    run = stopping
    session, trainer = train(run, **EARLY)
    session.complete(trainer)
    training = run.evidence()["training"]
    measured = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    best = min(measured, key=measured.get)
    assert training["stopped_early"]
    assert training["steps"] == best + 4 == max(measured) < 32
    assert (training["best_step"], training["best_validation_loss"]) == (best, measured[best])
    adapter = sha256(run.adapter / ADAPTER)
    assert adapter == sha256(run.checkpoints / f"checkpoint-{best}" / ADAPTER)
    assert adapter != sha256(run.checkpoints / f"checkpoint-{best + 4}" / ADAPTER)

    capsys.readouterr()
    shutil.rmtree(run.adapter)
    session, trainer = train(run, **EARLY)
    session.complete(trainer)
    assert f"Training is finished: {best + 4} of 32 steps, stopped early" in capsys.readouterr().out
    assert sha256(run.adapter / ADAPTER) == adapter
    assert run.evidence()["training"] == training


def test_a_run_that_stopped_early_before_its_first_planned_log_is_completed(stopping):
    run = changed(stopping, "training.max_first_loss=20")
    session, trainer = train(run, callbacks=[watch(run)], **EARLY, logging_steps=100)
    session.complete(trainer)
    training = run.evidence()["training"]
    assert training["stopped_early"]
    assert training["last_loss"] < training["first_loss"]


def test_a_run_that_stopped_early_goes_on_with_more_patience(stopping):
    train(stopping, **EARLY)
    patient = changed(stopping, "training.early_stopping_patience=40")
    with pytest.raises(LabError, match=r"training\.early_stopping_patience: 2 -> 40"):
        train(patient, **EARLY)
    session = Session(patient, accept_changes=True)
    trainer = trainer_of(session, **EARLY)
    sit(session, trainer)
    assert trainer.state.global_step == 32


def test_patience_is_counted_across_sittings(stopping, tmp_path):
    session, trainer = train(stopping, **EARLY)
    session.complete(trainer)
    expected = stopping.evidence()["training"]
    run = create_run(tmp_path / "again", stopping.recipe)
    last = expected["steps"]
    train(run, stop_at=last - 1, **EARLY)  # one measurement was not better, the next one is the second
    session, trainer = train(run, **EARLY)
    session.complete(trainer)
    found = run.evidence()["training"]
    assert found["resumes"] == [last - 1]
    assert [found[name] for name in ("steps", "best_step", "best_validation_loss")] == [
        expected[name] for name in ("steps", "best_step", "best_validation_loss")
    ]


def test_a_best_checkpoint_that_is_not_whole_is_named(stopping):
    _, trainer = train(stopping, **EARLY)
    best = trainer.state.best_global_step
    (stopping.checkpoints / f"checkpoint-{best}" / "optimizer.pt").unlink()
    with pytest.raises(LabError, match=rf"checkpoint-{best}, the best .*optimizer\.pt is missing"):
        Session(stopping).finished(trainer)


def test_a_kill_while_a_new_best_one_is_written_leaves_the_best_one_before(stopping):
    from transformers import TrainerCallback

    class Killed(BaseException):
        pass

    class Script(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            metrics["eval_loss"] = {0: 3.0, 2: 1.0, 4: 2.0, 6: 0.5}.get(state.global_step, 0.6)

        def on_save(self, args, state, control, **kwargs):  # before the session seals it
            if state.global_step == 6 and kill:
                raise Killed

    for kill in (True, False):
        session = Session(stopping)
        trainer = trainer_of(session, before=[Script()], **EARLY)
        with pytest.raises(Killed) if kill else nullcontext():
            sit(session, trainer)
    session.complete(trainer)
    training = stopping.evidence()["training"]
    assert (training["resumes"], training["best_step"], training["steps"]) == ([4], 6, 10)


def test_as_many_checkpoints_are_kept_as_the_trainer_was_told(run):
    train(run, save_total_limit=1)
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-8"]


def test_the_most_memory_of_all_sittings_is_recorded(run, monkeypatch):
    monkeypatch.setattr("finelab.train.session.peak_memory_bytes", lambda: 9_000)
    train(run, stop_at=3)
    monkeypatch.setattr("finelab.train.session.peak_memory_bytes", lambda: 5_000)
    session, trainer = train(run)
    session.complete(trainer)
    assert run.evidence()["training"]["peak_memory_bytes"] == 9_000


def test_a_run_on_two_machines_says_so(run):
    run.record("machine", {"device": "cuda: T4", "cores": 8})
    train(run, stop_at=3)
    run.record("machine", {"device": "cuda: RTX 5000", "cores": 8})
    train(run)
    assert run.evidence()["training"]["machines"] == ["cuda: T4, 8 cores", "cuda: RTX 5000, 8 cores"]


def test_a_second_process_is_another_machine(run):
    for processes in (2, 1):
        run.record("machine", {"device": "cpu: one", "cores": 2, "profile": {"processes": processes}})
        train(run, stop_at=3)
    assert run.evidence()["training"]["machines"] == ["cpu: one, 2 cores, 2 processes", "cpu: one, 2 cores"]


def test_gradients_by_hand_and_autograds_do_not_follow_each_other_unasked(run):
    run.record("machine", {"profile": {"fast_cpu_step": True}})
    train(run, stop_at=3)
    run.record("machine", {"profile": {"fast_cpu_step": False}})
    with pytest.raises(LabError, match=r"machine\.fast_cpu_step: True -> False"):
        train(run)


def test_a_run_whose_checkpoints_were_deleted_is_not_trained_again(run):
    session, trainer = train(run)
    session.complete(trainer)
    shutil.rmtree(run.checkpoints)
    with pytest.raises(LabError, match=f"has an adapter and no checkpoint.*--run {run.name} --from train"):
        Session(run)


def test_checkpoints_that_the_disk_cannot_hold_are_said_before_the_first_step(run):
    run.record("plan", {"disk": {"checkpoints": 10**18}})
    with pytest.raises(LabError, match="not enough disk for checkpoints"):
        train(run)
    assert not run.training_has_begun


def test_nothing_is_completed_beside_another_training_of_the_run(run):
    session, trainer = train(run)
    with alone(run, TRAINING_LOCK), pytest.raises(LabError, match="another process is at work"):
        session.complete(trainer)
    assert not run.adapter.exists()


LOOKS = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
LONG_LOOK = {"longest": {"step_s": 1.0, "look_s": 3600.0, "save_s": 1.0}}


def test_a_sitting_begins_with_the_longest_seconds_of_those_before(run):
    train(run, stop_at=3, **LOOKS)
    first = run.evidence()["training"]["longest"]
    assert first["step_s"] >= first["look_s"]
    assert first["save_s"] is not None
    run.record("training", LONG_LOOK)
    train(run, stop_at=5, **LOOKS)
    assert run.evidence()["training"]["longest"]["look_s"] == 3600


def test_a_later_sitting_stops_in_time_for_a_look_that_it_has_not_had_yet(run, capsys):
    train(run, stop_at=3)
    run.record("training", LONG_LOOK)
    train(changed(run, "training.session_hours=1"))
    assert "the 1 hours of this sitting are over: step 4 is saved" in capsys.readouterr().out


@pytest.mark.parametrize("since", ["another machine", "training anew"])
def test_what_took_long_elsewhere_does_not_stop_a_sitting(run, since):
    train(run, stop_at=3)
    run.record("training", LONG_LOOK)
    if since == "another machine":
        run.record("machine", {"device": "cuda: RTX 5000", "cores": 8})
    else:
        shutil.rmtree(run.checkpoints)
    session, trainer = train(changed(run, "training.session_hours=1"))
    session.complete(trainer)
    assert run.evidence()["training"]["longest"]["look_s"] == 0


def test_a_first_sitting_too_short_for_a_planned_step_says_so(run, capsys):
    run.record("plan", {"predicted": {"seconds": 80_000.0, "steps": 8}})
    session, trainer = train(changed(run, "training.session_hours=1"))
    said = capsys.readouterr().out
    assert "session_hours = 1 leaves 60.0 min for training, and a step and its save take up to 2.8 h" in said
    session.complete(trainer)  # the steps were shorter than planned


def test_what_was_accepted_is_forgotten_when_training_begins_anew(run):
    run.record("training", {"accepted_changes": ["lora.r: 8 -> 16"]})
    train(run)
    assert run.evidence()["training"]["accepted_changes"] == []


def test_what_changed_since_the_checkpoint_is_named_and_refused(run, monkeypatch):
    write_json(
        run.folder / "evidence.json",
        {"data": {"sha256": "a", "rows_sha256": "c"}, "machine": {"profile": {"dtype": "a"}}},
    )
    train(run, stop_at=3)
    run.record("data", {"sha256": "b", "rows_sha256": "d"})
    run.record("machine", {"profile": {"dtype": "b"}})
    edited = changed(run, "lora.random_state=7", "training.session_hours=9.0", "training.save_steps=5")
    with pytest.raises(LabError) as told:
        train(edited, learning_rate=2e-2)
    for name, old, new in (
        ("data.sha256", "'a'", "'b'"),
        ("data.rows_sha256", "'c'", "'d'"),
        ("machine.dtype", "'a'", "'b'"),
        ("lora.random_state", run.recipe.lora.random_state, 7),
        ("training.learning_rate", 0.01, 0.02),
    ):
        assert f"{name}: {old} -> {new}" in str(told.value)
    assert "session_hours" not in str(told.value)
    assert "save_steps" not in str(told.value)


def test_a_checkpoint_of_a_lab_that_did_not_hash_the_rows_goes_on(run):
    train(run, stop_at=3)
    run.record("data", {"rows_sha256": "d"})
    train(run)
    assert run.evidence()["training"]["resumes"]


@pytest.mark.parametrize(
    "rows",
    [
        [*ROWS[4:], *ROWS[:4]],
        ROWS[:15],
        [ROWS[0] | {"labels": [-100, -100, 7, 9]}, *ROWS[1:]],
        [*ROWS[:15], ROWS[15] | {"input_ids": [99, 5, 7, 9]}],
    ],
)
def test_other_rows_in_the_trainer_are_named_and_refused(run, rows):
    train(run, stop_at=3)
    with pytest.raises(LabError, match=r"data\.train_dataset_sha256: '\w+' -> '\w+'"):
        train(run, rows=rows)


@pytest.mark.parametrize(
    "cell",
    [
        {"max_grad_norm": 0.3},
        {"adam_beta1": 0.8},
        {"adam_beta2": 0.95},
        {"adam_epsilon": 1e-6},
        {"label_smoothing_factor": 0.1},
        {"neftune_noise_alpha": 5.0},
        {"lr_scheduler_kwargs": {"num_cycles": 2}, "lr_scheduler_type": "cosine"},
        {"dataloader_drop_last": True},
        {"bf16": True},
    ],
)
def test_a_changed_cell_of_the_arguments_is_named_and_refused(run, cell):
    train(run, stop_at=3)
    (name, value), *_ = cell.items()
    with pytest.raises(LabError, match=rf"\.{name}: .* -> {re.escape(repr(value))}"):
        train(run, **cell)


def test_a_checkpoint_of_a_lab_that_kept_less_of_the_trainer_goes_on(run):
    train(run, stop_at=3)
    start = inspect(run.checkpoints / "checkpoint-3")
    kept = {name: value for name, value in start.fingerprint.items() if name not in LATER}
    assert kept != start.fingerprint
    seal(start.folder, start.elapsed_s, kept, start.certificate, start.peak_memory_bytes)
    train(run, max_grad_norm=0.3)
    assert run.evidence()["training"]["resumes"] == [3]


def test_packed_rows_are_another_training(run):
    train(run, stop_at=3)
    packed = [row | {"seq_lengths": [4]} for row in ROWS]
    with pytest.raises(LabError, match=r"training\.packing: False -> True"):
        train(run, rows=packed)


@pytest.mark.parametrize(
    ("cell", "change"),
    [
        ({"lora_alpha": 64}, r"lora\.lora_alpha: 8 -> 64"),
        ({"lora_dropout": 0.5}, r"lora\.lora_dropout: 0\.1 -> 0\.5"),
        ({"use_rslora": True}, r"lora\.use_rslora: False -> True"),
        ({"use_dora": True}, r"lora\.use_dora: False -> True"),
        ({"r": 8}, r"lora\.r: 4 -> 8"),
        ({"target_modules": ["v_proj", "q_proj"]}, r"lora\.target_modules: \[.*\] -> \['q_proj', 'v_proj'\]"),
    ],
)
def test_a_changed_cell_of_the_adapter_is_named_and_refused(run, cell, change):
    train(run, stop_at=3)
    with pytest.raises(LabError, match=change):
        train(run, model=with_adapter(base_model(), **{"lora_dropout": 0.1} | cell))


def test_with_early_stopping_other_looks_are_another_training(stopping):
    train(stopping, stop_at=3, **EARLY)
    with pytest.raises(LabError, match=r"training\.eval_rows: 0 -> 1"):
        train(changed(stopping, "training.eval_rows=1"), **EARLY)


def test_new_intervals_hold_from_the_next_sitting_on(run):
    train(run, stop_at=3, save_steps=6, logging_steps=6, save_total_limit=8)
    _, trainer = train(run, save_steps=1, logging_steps=2, save_total_limit=8)
    kept = sorted(int(path.name.rpartition("-")[2]) for path in run.checkpoints.glob("checkpoint-*"))
    assert kept == [3, 4, 5, 6, 7, 8]
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry][-3:] == [4, 6, 8]


@pytest.mark.parametrize("by", ["argument", "variable"])
def test_a_change_may_be_accepted_and_is_recorded(run, by, monkeypatch, capsys):
    train(run, stop_at=3)
    if by == "variable":
        monkeypatch.setenv(ACCEPT_VARIABLE, "1")
    session = Session(run, **({"accept_changes": True} if by == "argument" else {}))
    trainer = trainer_of(session, weight_decay=0.5)
    sit(session, trainer)
    session.complete(trainer)
    assert run.evidence()["training"]["accepted_changes"] == ["training.weight_decay: 0.0 -> 0.5"]
    assert "Accepted since checkpoint-3: training.weight_decay: 0.0 -> 0.5." in capsys.readouterr().out


def test_the_argument_counts_more_than_the_variable(run, monkeypatch):
    monkeypatch.setenv(ACCEPT_VARIABLE, "1")
    assert Session(run).accept_changes
    assert not Session(run, accept_changes=False).accept_changes


def test_a_finished_run_is_loaded_by_other_versions_but_not_for_other_data(run, monkeypatch):
    from finelab.train import checkpoint

    run.record("data", {"sha256": "a"})
    train(run)
    monkeypatch.setattr(checkpoint, "versions", lambda: {"torch": "9.9"})
    session, _ = train(run)
    assert session.resume_from_checkpoint.endswith("checkpoint-8")
    run.record("data", {"sha256": "b"})
    with pytest.raises(LabError, match=r"data\.sha256: 'a' -> 'b'"):
        train(run)


def test_other_versions_are_named(run, monkeypatch):
    from finelab.train import checkpoint

    train(run, stop_at=3)
    found = checkpoint.versions()
    monkeypatch.setattr(checkpoint, "versions", lambda: found | {"torch": "9.9"})
    with pytest.raises(LabError) as told:
        train(run)
    assert f"versions.torch: '{found['torch']}' -> '9.9'" in str(told.value)


def test_a_whole_checkpoint_is_there_at_every_moment_of_a_save(run):
    from transformers import TrainerCallback

    from finelab.train.checkpoint import Checkpoint

    class Look(TrainerCallback):  # before the session's: the new one is written and not sealed
        def on_save(self, args, state, control, **kwargs):
            folders = sorted(run.checkpoints.glob("checkpoint-*"))
            whole = {path.name for path in folders if isinstance(inspect(path), Checkpoint)}
            seen.append((state.global_step, whole))

    seen = []
    session = Session(run)
    trainer = trainer_of(session, save_steps=1, save_total_limit=1)
    trainer.callback_handler.callbacks.insert(0, Look())
    sit(session, trainer)
    assert [step for step, _ in seen] == list(range(1, 9))
    assert all(whole == {f"checkpoint-{step - 1}"} for step, whole in seen[1:])


def test_the_manifest_holds_what_a_resume_needs(run):
    train(run, stop_at=3)
    manifest = json.loads((run.checkpoints / "checkpoint-3" / "finelab-manifest.json").read_text())
    assert manifest["certificate"]["resumes"] == []
    fields = {f"lora.{field.name}" for field in dataclasses.fields(run.recipe.lora)}
    assert fields <= set(manifest["fingerprint"])

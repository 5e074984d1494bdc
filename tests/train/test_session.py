"""A session over a real trainer: a tiny Llama, trained, stopped, resumed and finished."""

from pathlib import Path

import pytest

from finelab import LabError
from finelab.files import sha256
from finelab.train import Session, trained_share
from tests.tiny import base_model, with_adapter

ROWS = [{"input_ids": [3 + i, 5, 7, 9], "labels": [-100, 5, 7, 9]} for i in range(16)]


class Processing:
    """Stands for the tokenizer, of which the session only asks that it be saved."""

    def save_pretrained(self, folder):
        Path(folder, "tokenizer.json").write_text("{}", encoding="utf-8")


@pytest.fixture
def trainer_of(run):
    from transformers import DefaultDataCollator, Trainer, TrainerCallback, TrainingArguments

    class StopAt(TrainerCallback):
        def __init__(self, step):
            self.step = step

        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = control.should_save = state.global_step == self.step

    def make(session, stop_at=None):
        args = TrainingArguments(
            output_dir=str(run.checkpoints),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            learning_rate=1e-2,
            logging_steps=1,
            save_steps=2,
            save_total_limit=2,
            seed=3407,
            include_num_input_tokens_seen="all",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        callbacks = [session.callback(), *([StopAt(stop_at)] if stop_at else [])]
        trainer = Trainer(
            model=with_adapter(base_model()),
            args=args,
            train_dataset=ROWS,
            data_collator=DefaultDataCollator(),
            callbacks=callbacks,
        )
        trainer.processing_class = Processing()
        return trainer

    return make


def train(run, trainer_of, stop_at=None):
    session = Session(run)
    trainer = trainer_of(session, stop_at)
    if session.finished(trainer):
        session.restore(trainer)
    else:
        trainer.train(resume_from_checkpoint=session.resume_from_checkpoint)
    return session, trainer


def test_a_whole_run_is_recorded(run, trainer_of, capsys):
    session, trainer = train(run, trainer_of)
    session.complete(trainer, trained_share({"labels": [row["labels"] for row in ROWS]}))
    training = run.evidence()["training"]
    assert training["steps"] == 8
    assert training["tokens"] == 2 * 16 * 4
    assert training["tokens_trained"] == 2 * 16 * 3
    assert training["last_loss"] < training["first_loss"]
    assert (run.adapter / "adapter_model.safetensors").exists()
    said = capsys.readouterr().out
    assert "Starting: 8 steps." in said
    assert "step 8/8" in said


def test_a_stopped_run_says_so_goes_on_and_ends_as_if_never_stopped(run, trainer_of, tmp_path, capsys):
    from finelab.run import create_run

    straight = create_run(tmp_path / "straight", run.recipe)
    other, its_trainer = train(run, trainer_of, stop_at=3)
    with pytest.raises(LabError, match="training stopped at step 3 of 8"):
        other.complete(its_trainer, 0.75)
    assert not run.adapter.exists()

    session, trainer = train(run, trainer_of)
    session.complete(trainer, 0.75)
    assert "Going on from checkpoint-3: 5 of 8 steps are left." in capsys.readouterr().out
    assert run.evidence()["training"]["resumes"] == [3]

    whole = Session(straight)
    whole_trainer = trainer_of(whole)
    whole_trainer.args.output_dir = str(straight.checkpoints)
    assert not whole.finished(whole_trainer)
    whole_trainer.train()
    whole.complete(whole_trainer, 0.75)
    name = "adapter_model.safetensors"
    assert sha256(run.adapter / name) == sha256(straight.adapter / name)


def test_the_same_session_asked_again_goes_on_from_what_was_saved_since(run, trainer_of):
    session, _ = train(run, trainer_of, stop_at=3)
    assert session.resume_from_checkpoint is None
    assert not session.finished(trainer_of(session))
    assert session.resume_from_checkpoint.endswith("checkpoint-3")


def test_a_finished_run_is_loaded_not_trained_on(run, trainer_of, capsys):
    session, trainer = train(run, trainer_of)
    session.complete(trainer, 0.75)
    before = sha256(run.adapter / "adapter_model.safetensors")
    session, trainer = train(run, trainer_of)
    assert "Training is finished: 8 of 8 steps" in capsys.readouterr().out
    session.complete(trainer, 0.75)
    assert sha256(run.adapter / "adapter_model.safetensors") == before
    assert run.evidence()["training"]["steps"] == 8

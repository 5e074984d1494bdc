"""The certificate: what it tells apart, and that a resume which restored something else is refused."""

import signal

import pytest

from finelab import LabError
from finelab.run import create_run
from finelab.train import Session
from finelab.train.certificate import HASHES, compare
from tests.train.sittings import ROWS, at_step, sit, trainer_of

SAME = dict.fromkeys(HASHES, "same")


@pytest.fixture
def certificate(tmp_path, preset):
    """The certificate of a run of two steps; the arguments are the trainer's."""

    def train(name, **args):
        session = Session(create_run(tmp_path / name, preset))
        trainer = trainer_of(session, **{"max_steps": 2} | args)
        sit(session, trainer)
        session.complete(trainer)
        return session.run.evidence()["training"]["certificate"]

    return train


@pytest.fixture
def stopped(run):
    """A run stopped after its third step of eight."""
    session = Session(run)
    sit(session, trainer_of(session, [at_step(3, lambda: signal.raise_signal(signal.SIGINT))]))
    return run


@pytest.mark.parametrize("name", HASHES)
def test_what_differs_is_named(name):
    assert compare(SAME, SAME | {name: "other", "resumes": [3]}) == [name]


def test_resumes_are_no_difference():
    assert compare(SAME | {"resumes": []}, SAME | {"resumes": [3, 5]}) == []


@pytest.mark.slow
def test_equal_runs_have_equal_certificates_and_others_say_what_differs(certificate):
    first = certificate("first")
    assert first["resumes"] == []
    assert first["restored_exactly"]
    assert compare(first, certificate("second")) == []
    assert compare(first, certificate("rate", learning_rate=2e-2)) == [
        "learning_rate_sha256",
        "weights_sha256",
    ]
    assert compare(first, certificate("seed", data_seed=1)) == ["data_order_sha256", "weights_sha256"]
    other = [{**row, "input_ids": [9, *row["input_ids"][1:]]} for row in ROWS]
    assert compare(first, certificate("rows", rows=other)) == ["data_order_sha256", "weights_sha256"]


def test_weights_that_are_not_the_checkpoints_are_refused(stopped):
    session = Session(stopped)
    trainer = trainer_of(session)
    session.finished(trainer)
    with (
        pytest.raises(LabError, match="the weights restored from checkpoint-3 are not what it was sealed"),
        session.sitting(trainer),
    ):
        trainer.train()  # the checkpoint was forgotten


@pytest.mark.parametrize(
    ("method", "what"),
    [("_load_optimizer_and_scheduler", "optimizer"), ("_load_rng_state", "random states")],
)
def test_what_the_trainer_does_not_restore_is_refused(stopped, method, what, monkeypatch):
    from transformers import Trainer

    monkeypatch.setattr(Trainer, method, lambda self, checkpoint: None)
    session = Session(stopped)
    with pytest.raises(LabError, match=f"the {what} restored from checkpoint-3 are not what it was sealed"):
        sit(session, trainer_of(session))


def test_accepted_it_goes_on_and_the_certificate_says_so(stopped, monkeypatch, capsys):
    from transformers import Trainer

    monkeypatch.setattr(Trainer, "_load_rng_state", lambda self, checkpoint: None)
    session = Session(stopped, accept_changes=True)
    trainer = trainer_of(session)
    sit(session, trainer)
    session.complete(trainer)
    found = stopped.evidence()["training"]["certificate"]
    assert found["resumes"] == [3]
    assert not found["restored_exactly"]
    assert "Accepted: the random states restored from checkpoint-3" in capsys.readouterr().out


def test_the_trainer_is_left_as_it_was(run):
    session = Session(run)
    trainer = trainer_of(session, max_steps=1)
    sit(session, trainer)
    assert not {"get_batch_samples", "_load_rng_state"} & set(vars(trainer))

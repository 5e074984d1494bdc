"""The watch over real runs: a tiny Llama that is broken, breaks, diverges, is resumed, and ends well."""

import base64
import dataclasses
import functools
import importlib
import io
import math
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finelab import LabError, recipe
from finelab.run import Run
from finelab.train.curve import curve
from finelab.train.watch import (
    FP16_SKIPS,
    GROUPED_WINDOW,
    WINDOW,
    divergence,
    not_finite,
    reporters,
    slow_cause,
    slowdown,
    watch,
)
from tests.tiny import base_model, with_adapter

ROWS = [{"input_ids": [3 + i, 5, 7, 9], "labels": [-100, 5, 7, 9]} for i in range(16)]
LINE = r"step \d+/\d+  loss \d+\.\d{3}(  validation \d+\.\d{3})?  \d+ tok/s  ETA \d+:\d\d:\d\d"


@pytest.fixture
def run(run):
    """The tiny Llama knows nothing: it starts at ln(128) = 4.9."""
    return Run(run.folder, recipe.override(run.recipe, ["training.max_first_loss=20"]))


def make_trainer(folder, run, callbacks=(), model=None, **changes):
    from transformers import DefaultDataCollator, Trainer, TrainingArguments

    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "include_num_input_tokens_seen": "all",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return Trainer(
        model=model or with_adapter(base_model(), moved=False),
        args=TrainingArguments(**arguments | changes),
        train_dataset=ROWS,
        eval_dataset=ROWS[:4],
        data_collator=DefaultDataCollator(),
        callbacks=[*callbacks, watch(run)],
    )


@pytest.fixture
def trainer_of(tmp_path):
    return functools.partial(make_trainer, tmp_path / "out")


def lines(text):
    return [line for line in text.splitlines() if line.startswith("step ")]


# Whole runs


def test_a_run_that_goes_well_shows_its_last_line(run, trainer_of, capsys):
    trainer_of(run, eval_strategy="steps", eval_steps=4, eval_on_start=True).train()
    said = lines(capsys.readouterr().out)
    assert all(re.fullmatch(LINE, line) for line in said)
    assert said[-1].startswith("step 8/8  loss ")
    assert "  validation " in said[-1]
    assert said[-1].endswith("ETA 0:00:00")


def test_the_planned_tokens_say_how_long_it_takes_yet(run, trainer_of, capsys):
    from transformers import TrainerCallback

    class StopAtFour(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    run.record("plan", {"tokens": 10**9})
    trainer_of(run, [StopAtFour()]).train()
    line = lines(capsys.readouterr().out)[-1]
    assert line.startswith("step 4/8")
    assert int(re.search(r"ETA (\d+):", line)[1]) > 10  # 4 steps in the time of 4 would be no hours


def test_a_model_that_starts_as_if_it_knew_nothing_is_stopped_at_its_first_step(run, trainer_of, capsys):
    run = Run(run.folder, recipe.override(run.recipe, ["training.max_first_loss=3.0"]))
    trainer = trainer_of(run)
    with pytest.raises(LabError) as raised:
        trainer.train()
    assert trainer.state.global_step == 1
    said = str(raised.value)
    assert re.match(r"the first loss is 4\.\d\d, above training\.max_first_loss = 3\.\n", said)
    for cause in ("weights did not load right", "chat template", "labels are on the wrong tokens"):
        assert cause in said
    assert "--set training.max_first_loss=6" in said
    assert lines(capsys.readouterr().out)[-1].startswith("step 1/8")


def test_a_first_loss_that_is_infinite_is_no_number(run, trainer_of):
    trainer = trainer_of(run)
    trainer.compute_loss = lambda model, inputs, **kwargs: model(**inputs).loss * math.inf
    with pytest.raises(LabError, match=r"the loss is inf at step 1: training on would only write broken"):
        trainer.train()


def test_a_resumed_run_is_not_held_against_the_limit_of_a_first_step(run, trainer_of, tmp_path, capsys):
    trainer_of(run, save_strategy="steps", save_steps=4).train()
    strict = Run(run.folder, recipe.override(run.recipe, ["training.max_first_loss=3.0"]))
    run.record("training", {"resumes": [4]})
    trainer = trainer_of(strict)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert curve(trainer.state.log_history).steps == list(range(1, 9))
    assert lines(capsys.readouterr().out)[-1].startswith("step 8/8")


@pytest.mark.parametrize("hidden", [False, True], ids=["logged", "hidden by transformers"])
def test_a_loss_that_is_no_number_stops_before_it_is_saved(run, trainer_of, tmp_path, hidden):
    trainer = trainer_of(
        run, learning_rate=1e30, logging_nan_inf_filter=hidden, save_strategy="steps", save_steps=1
    )
    with pytest.raises(LabError, match=r"is nan at step 2: .* --set training.learning_rate=2.5e\+29"):
        trainer.train()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]


def test_with_few_logs_a_checkpoint_is_still_judged_before_it_is_written(run, trainer_of, tmp_path):
    trainer = trainer_of(run, learning_rate=1e30, logging_steps=100, save_strategy="steps", save_steps=4)
    with pytest.raises(LabError, match="is nan at step 4"):
        trainer.train()
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.parametrize("when", [{"eval_strategy": "steps", "eval_steps": 2}, {"eval_strategy": "epoch"}])
def test_with_few_logs_a_look_is_judged_before_it_has_a_checkpoint_saved(run, trainer_of, tmp_path, when):
    from transformers import TrainerCallback

    class Session(TrainerCallback):  # what the session does with early stopping
        def on_evaluate(self, args, state, control, **kwargs):
            control.should_save = True

    trainer = trainer_of(run, [Session()], learning_rate=1e30, logging_steps=100, **when)
    with pytest.raises(LabError, match="is nan at step"):
        trainer.train()
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_validation_loss_that_is_no_number_is_refused(run, trainer_of):
    trainer = trainer_of(run, learning_rate=1e30, eval_strategy="steps", eval_steps=1)
    with pytest.raises(LabError, match="the validation loss is nan at step 1: training on would only write"):
        trainer.train()


def test_with_few_logs_the_first_loss_is_still_that_of_the_first_step(run, trainer_of):
    run = Run(run.folder, recipe.override(run.recipe, ["training.max_first_loss=3.0"]))
    trainer = trainer_of(run, logging_steps=4)
    with pytest.raises(LabError, match="the first loss is"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_a_rate_that_grows_too_high_is_stopped_as_divergence(run, trainer_of):
    # All weights are trained: with an adapter alone this model's loss cannot rise.
    trainer = trainer_of(run, model=base_model(), num_train_epochs=50, learning_rate=3.0, warmup_steps=400)
    with pytest.raises(LabError, match="the loss diverges: the median of the last 20 logs is") as raised:
        trainer.train()
    assert trainer.state.global_step < 300
    assert "--set training.learning_rate=0.75" in str(raised.value)


@pytest.mark.slow
def test_a_notebook_shows_one_picture_of_the_whole_run(run, tmp_path):
    import nbformat
    from matplotlib.image import imread
    from nbclient import NotebookClient

    run.record("training", {"resumes": [4]})
    source = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from transformers import PrinterCallback
from finelab import recipe
from finelab.run import Run
from tests.train.test_watch import make_trainer
preset = recipe.override(recipe.load_preset("smollm2-135m"), ["training.max_first_loss=20"])
run = Run(Path({str(run.folder)!r}), preset)
trainer = make_trainer({str(tmp_path / "out")!r}, run, eval_strategy="steps", eval_steps=2)
trainer.remove_callback(PrinterCallback)
trainer.train();
"""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    (cell,) = NotebookClient(book, timeout=300).execute().cells
    (shown,) = [output["data"] for output in cell.outputs if output["output_type"] == "display_data"]
    assert re.fullmatch(LINE, shown["text/plain"])
    assert shown["text/plain"].startswith("step 8/8")
    assert imread(io.BytesIO(base64.b64decode(shown["image/png"]))).shape[:2] == (400, 720)


def test_a_picture_that_fails_does_not_stop_the_run(run, trainer_of, monkeypatch, capsys):
    monkeypatch.setattr("finelab.show.live.in_notebook", lambda: True)
    module = importlib.import_module("finelab.train.watch")  # the package has a function of this name
    monkeypatch.setattr(module, "png", lambda figure: 1 / 0)
    trainer = trainer_of(run)
    trainer.train()
    assert trainer.state.global_step == 8
    assert "The live picture cannot be drawn" in capsys.readouterr().out


# Losses


def healthy(seed, count, noise, start=1.6, end=0.9, heavy=False):
    draw = random.Random(seed)
    levels = [end + (start - end) * math.exp(-10 * step / count) for step in range(count)]
    if heavy:
        return [level * draw.lognormvariate(-noise * noise / 2, noise) for level in levels]
    return [level * max(0.02, draw.gauss(1, noise)) for level in levels]


def alarm(losses, limit=3.0, window=WINDOW):
    """The number of logs after which training would have been stopped, if at all."""
    return next((n for n in range(1, len(losses) + 1) if divergence(losses[:n], limit, window)), None)


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(30, 500),
    st.floats(0, 0.5),
    st.floats(0.8, 2.0),
    st.booleans(),
)
def test_a_noisy_curve_that_falls_is_left_alone(seed, count, noise, start, heavy):
    assert alarm(healthy(seed, count, noise, start, 0.6 * start, heavy)) is None


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2 * WINDOW, 200), st.floats(0, 0.3))
def test_a_curve_that_jumps_or_climbs_is_stopped_soon(seed, turn, noise):
    losses = healthy(seed, turn + 150, noise)
    jumped = [loss + 6 * (step >= turn) for step, loss in enumerate(losses)]
    assert turn < alarm(jumped) <= turn + WINDOW
    climbing = [loss + 0.02 * max(0, step - turn) for step, loss in enumerate(losses)]
    assert turn < alarm(climbing, limit=20.0) <= turn + 110


def test_a_curve_that_is_lost_from_its_start_is_stopped_by_the_limit():
    assert alarm([1.4, 1.6, 2.5, *[7.0] * 30]) == WINDOW


def test_one_batch_of_rubbish_is_no_divergence():
    losses = healthy(0, 200, 0.1)
    losses[120], losses[125] = 60.0, 25.0
    assert alarm(losses) is None


def test_rows_sorted_by_length_within_50_batches_are_no_divergence():
    draw = random.Random(3)
    cycle = [0.7 + 1.1 * (step % 50 / 49) ** 2 for step in range(600)]
    losses = [level * draw.gauss(1, 0.15) for level in cycle]
    assert alarm(losses, window=GROUPED_WINDOW) is None
    assert alarm(losses, window=WINDOW) is not None  # so the longer window is needed


def entries(norms, loss=1.0):
    return [{"loss": loss, "grad_norm": norm, "step": step} for step, norm in enumerate(norms, start=1)]


def test_with_fp16_gradients_overflow_at_first_and_that_is_no_fault():
    assert not_finite(entries([math.inf, math.nan, math.inf, 0.9]), fp16=True) is None
    assert not_finite(entries([math.inf] * (FP16_SKIPS - 1)), fp16=True) is None
    assert not_finite(entries([math.inf] * FP16_SKIPS), fp16=True) == "the norm of the gradients is inf"
    assert not_finite(entries([0.9, math.nan]), fp16=False) == "the norm of the gradients is nan"
    assert not_finite(entries([0.9], loss=math.nan), fp16=True) == "the loss is nan"


@pytest.mark.parametrize("fp16", [False, True])
def test_looks_between_two_logs_hide_no_fault(fp16):
    looks = [{"eval_loss": 1.0, "step": step} for step in range(3 * FP16_SKIPS)]
    broken = [each for entry in entries([math.inf] * FP16_SKIPS) for each in (entry, *looks)]
    assert not_finite(broken, fp16) == "the norm of the gradients is inf"
    assert not_finite([*looks, *entries([0.9])], fp16) is None


# Speed


def test_a_run_that_slows_down_for_long_is_told():
    assert slowdown([1000.0] * 60 + [500.0] * 15, WINDOW) == (500.0, 1000.0)


@given(st.lists(st.floats(700, 1000), min_size=1, max_size=200), st.data())
def test_a_steady_run_with_some_stops_is_not(rates, data):
    for place in data.draw(st.lists(st.integers(0, len(rates) - 1), max_size=WINDOW // 2 - 1)):
        rates[place] = 0.1
    assert slowdown(rates, WINDOW) is None


@dataclasses.dataclass
class Logs:
    """The log of a run whose steps of 100 tokens took these seconds, from `start` on."""

    seconds: list[float]
    start: int = 0

    def __iter__(self):
        clock = 0.0
        for step, took in enumerate(self.seconds, start=self.start + 1):
            clock += took
            seen = {"num_input_tokens_seen": 100 * step, "train_runtime": clock}
            yield {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-4, "step": step, **seen}


def watched(run, trainer, logs, history=()):
    """Let a watch follow logs that were made up, after those of earlier sittings."""
    from transformers import TrainerControl, TrainerState

    state, control = TrainerState(max_steps=1000), TrainerControl()
    state.log_history = list(history)
    state.global_step = state.log_history[-1]["step"] if history else 0
    watching = watch(run)
    watching.on_train_begin(trainer.args, state, control)
    for entry in logs:
        state.log_history.append(entry)
        state.global_step = entry["step"]
        watching.on_log(trainer.args, state, control, logs=entry)


def test_a_slow_machine_is_told_once(run, trainer_of, capsys):
    watched(run, trainer_of(run), Logs([0.1] * 60 + [0.3] * 40))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Slow")]
    assert len(said) == 1
    assert said[0].startswith("Slow: 333 tok/s, where 1,000 was usual. Likely another program")


def test_a_sitting_on_a_slower_machine_is_not_held_against_the_one_before(run, trainer_of, capsys):
    watched(run, trainer_of(run), Logs([0.4] * 60, start=100), history=Logs([0.1] * 100))
    assert "Slow" not in capsys.readouterr().out


def test_a_card_that_is_full_from_the_first_step_is_told_once_where_its_memory_spills(
    run, trainer_of, monkeypatch, capsys
):
    module = importlib.import_module("finelab.train.watch")  # the package has a function of this name
    held = iter(range(7_900_000_000, 8_000_000_000, 1_000_000))
    monkeypatch.setattr(module, "card_memory", lambda: (next(held), 8_000_000_000))
    for spills, told in ((True, ["Slow: The GPU's memory is full (7.9 of 8.0 GB)"]), (False, [])):
        monkeypatch.setattr(module, "SPILLS", spills)
        watched(run, trainer_of(run), Logs([0.3] * 10))
        said = [line for line in capsys.readouterr().out.splitlines() if "GPU's memory" in line]
        assert [line.partition(", and on")[0] for line in said] == told


def test_a_full_card_is_named_as_the_cause():
    assert slow_cause(7_900_000_000, 8_000_000_000).startswith("The GPU's memory is full (7.9 of 8.0 GB)")
    assert slow_cause(4_000_000_000, 8_000_000_000).startswith("Likely another program")


# Reporters


def test_a_reporter_that_is_not_installed_is_told_before_training(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LabError, match=r"'trackio', .* `%pip install trackio`"):
        reporters("trackio")
    assert reporters("none") == []


def test_a_reporter_that_is_installed_is_given_to_the_trainer(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert reporters("tensorboard") == ["tensorboard"]

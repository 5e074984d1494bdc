"""The curves of a run: what one can read from the figure."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from finelab import show
from finelab.train import curve


def lines_of(axes):
    return {line.get_label(): line for line in axes.lines}


def log_of(count, heldout=()):
    log = []
    for step in range(1, count + 1):
        seen = {"num_input_tokens_seen": 100 * step, "train_runtime": 0.5 * step}
        log.append({"loss": 2 - step / count, "learning_rate": 1e-4, "step": step, **seen})
        if step in heldout:
            log.append({"eval_loss": 2.5 - step / count, "eval_runtime": 0.0, "step": step})
    return log


def test_a_runs_log_becomes_its_panels():
    figure = show.loss_curve(*curve(log_of(40, heldout=(10, 40))), resumes=[20], title="step 40/40")
    loss, rate, speed = figure.axes
    assert loss.get_title(loc="left") == "step 40/40"
    assert set(lines_of(loss)) == {"loss", "smoothed", "validation", "resumed"}
    assert list(lines_of(loss)["validation"].get_xdata()) == [10, 40]
    assert list(lines_of(loss)["validation"].get_ydata()) == [2.25, 1.5]
    assert lines_of(loss)["loss"].get_ydata()[-1] == 1.0
    assert set(rate.lines[0].get_ydata()) == {1e-4}
    assert set(speed.lines[0].get_ydata()) == {200.0}


def test_every_resume_is_marked_in_every_panel_and_named_once():
    figure = show.loss_curve(*curve(log_of(9)), resumes=[3, 6])
    for axes in figure.axes:
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [3, 6]
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["loss", "smoothed", "resumed"]


@pytest.mark.parametrize("count", [1, 2, 12_500])
def test_a_run_of_any_length_is_drawn_and_its_last_steps_are_there(count):
    figure = show.loss_curve(*curve(log_of(count)))
    drawn = lines_of(figure.axes[0])["loss"].get_xdata()
    assert len(drawn) <= 1000
    assert drawn[-1] > 0.99 * count - 1
    picture = imread(io.BytesIO(show.png(figure)))
    assert picture.shape[1] == 720
    assert np.unique(picture.reshape(-1, picture.shape[-1]), axis=0).shape[0] > 10


def test_losses_alone_are_enough():
    figure = show.loss_curve([1, 2], [2.0, 1.0], [1e-4, 0.0])
    assert set(lines_of(figure.axes[0])) == {"loss", "smoothed"}
    assert show.png(figure).startswith(b"\x89PNG")

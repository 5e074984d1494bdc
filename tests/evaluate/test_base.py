import numpy as np
import torch

from finelab.evaluate import base_losses, token_nll
from finelab.run import create_run
from tests.tiny import base_model, with_adapter

ROWS = {
    "input_ids": [list(range(2, 12)), [7, 8, 9]],
    "labels": [[-100] * 4 + list(range(6, 12)), [-100, 8, 9]],
}
SAID = "measured before"


def fresh():
    """With B zero, as a run begins."""
    return with_adapter(base_model(), moved=False)


def kept(runs):
    return list((runs / ".base").glob("*.json"))


def test_the_second_run_takes_what_the_first_has_measured_bit_for_bit(tmp_path, preset, capsys):
    first = base_losses(create_run(tmp_path / "one", preset), fresh(), ROWS)
    assert SAID not in capsys.readouterr().out
    second = base_losses(create_run(tmp_path / "two", preset), fresh(), ROWS)
    assert SAID in capsys.readouterr().out
    for before, after, alone in zip(first, second, token_nll(base_model(), ROWS), strict=True):
        assert before.dtype == after.dtype and np.array_equal(before, after)
        np.testing.assert_allclose(after, alone, atol=1e-5)


def test_other_weights_other_rows_and_other_labels_are_measured_anew(run, capsys):
    base_losses(run, fresh(), ROWS)
    other = fresh()
    with torch.no_grad():
        next(weight for weight in other.parameters() if not weight.requires_grad)[3, 5] += 0.1
    base_losses(run, other, ROWS)
    base_losses(run, fresh(), ROWS | {"input_ids": [list(range(3, 13)), [7, 8, 9]]})
    base_losses(run, fresh(), ROWS | {"labels": [[-100] * 5 + list(range(7, 12)), [-100, 8, 9]]})
    assert SAID not in capsys.readouterr().out
    assert len(kept(run.folder.parent)) == 4


def test_of_a_trained_model_the_base_is_measured(run, capsys):
    found = base_losses(run, with_adapter(base_model()), ROWS)
    np.testing.assert_allclose(found[0], token_nll(base_model(), ROWS)[0], atol=1e-5)
    np.testing.assert_array_equal(base_losses(run, fresh(), ROWS)[0], found[0])
    assert SAID in capsys.readouterr().out


def test_with_a_start_that_changes_the_base_the_model_is_measured_as_it_is(run):
    started = with_adapter(base_model(), moved=False, init_lora_weights="pissa")
    found = base_losses(run, started, ROWS)
    np.testing.assert_allclose(found[0], token_nll(base_model(), ROWS)[0], atol=1e-4)
    assert kept(run.folder.parent) == []

"""The table at a run's end: all the numbers there are, in 80 columns."""

import pytest

from finelab.commands.summary import summary

EVIDENCE = {
    "data": {"source": "embedded", "train_rows": 336, "heldout_rows": 46, "tokens_trained": 21000},
    "adapter": {"trainable_parameters": 4884480, "total_parameters": 139399488},
    "training": {
        "steps": 42,
        "first_loss": 1.5312,
        "last_loss": 0.8,
        "tokens_trained": 20512,
        "tokens_per_s": 248.4,
        "seconds": 192.3,
    },
    "identity": [
        {"from": "adapter", "to": "merged", "mean_kl": 2e-3, "top1_agreement_share": 0.98,
         "passed": True, "weights": "210 tensors equal W + B @ A"},
        {"from": "base", "to": "merged", "mean_kl": 1.5, "top1_agreement_share": 0.5,
         "passed": False},
    ],
    "evaluation": {
        "heldout_nll_base": 1.5,
        "heldout_nll_tuned": 1.1,
        "difference": -0.4,
        "interval": [-0.5, -0.3],
        "verdict": "improved",
        "families": {
            "heldout_nll_base": 2.0,
            "heldout_nll_tuned": 2.1,
            "difference": 0.1,
            "interval": [-0.1, 0.3],
            "verdict": "no measurable change",
        },
    },
}  # fmt: skip


@pytest.fixture
def shown(run, console):
    def shown(evidence):
        for stage, values in evidence.items():
            run.record(stage, values)
        console.print(summary(run))
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= 80
        return " ".join(" ".join(line.strip("|") for line in lines).replace("|", " ").split())

    return shown


def test_the_table_says_what_was_trained_and_what_it_changed(shown):
    text = shown(EVIDENCE)
    assert "336 rows to train, 46 held out" in text
    assert "42 steps, 20,512 trained tokens, 3:12 min, 248 tokens/s" in text
    assert "1.500 -> 1.100 nats per token (-0.400, 95 % interval -0.500 to -0.300): improved" in text
    assert "2.000 -> 2.100 nats per token (+0.100, 95 % interval -0.100 to +0.300): no meas" in text
    assert "adapter -> merged passed: mean KL 2.0e-03, same next token 98.0%" in text
    assert "merged weights 210 tensors equal W + B @ A" in text
    assert "base -> merged FAILED: mean KL 1.5e+00" in text
    assert "python lab.py chat --run trial" in text


def test_the_table_says_where_things_are(shown, run):
    run.adapter.mkdir()
    text = shown({})
    assert "in it adapter" in text
    assert "merged," not in text


def test_numbers_that_are_not_there_are_dashes(shown):
    text = shown({"training": {"steps": 3}})
    assert "3 steps, - trained tokens, -, - tokens/s" in text
    assert "held-out loss - -> - nats per token (-, 95 % interval - to -): -" in text
    assert "merge check -" in text

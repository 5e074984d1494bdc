"""The loss of a look at the validation rows, by the real trainer, in micro-batches of several sizes."""

import numpy as np
import pytest
from transformers import Trainer, TrainingArguments
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from finelab.evaluate import response_nll
from finelab.train.look import mean_over_tokens
from tests.tiny import base_model, with_adapter

LABELLED = (1, 9, 2, 30, 3)


def rows():
    ids = [[3 + (i * k) % 90 for i in range(count + 4)] for k, count in enumerate(LABELLED, 1)]
    return [{"input_ids": each, "labels": [-100] * 4 + each[4:]} for each in ids]


def trainer_of(folder, model, eval_rows, size):
    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_eval_batch_size=size,
            prediction_loss_only=True,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        eval_dataset=eval_rows,
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0),
    )


@pytest.mark.parametrize("size", [1, 2, 5])
def test_it_is_the_mean_over_tokens_in_micro_batches_of_any_size(tmp_path, size):
    model = with_adapter(base_model())
    nats, tokens = response_nll(model, {key: [row[key] for row in rows()] for key in rows()[0]}).sum(axis=0)
    assert tokens == sum(LABELLED)
    trainer = trainer_of(tmp_path, model, rows(), size)
    with mean_over_tokens(trainer):
        assert trainer.evaluate()["eval_loss"] == pytest.approx(nats / tokens, rel=1e-5)
    own = trainer.evaluate()["eval_loss"]  # the trainer's own is as it was before
    assert size == len(LABELLED) or not np.isclose(own, nats / tokens, rtol=1e-4)


def test_a_batch_without_labels_adds_nothing(tmp_path):
    """As the fillers of several processes are; transformers' own loss of it is 0 / 0."""
    model, without = with_adapter(base_model()), {"input_ids": [5, 6], "labels": [-100, -100]}
    found = []
    for looked in (rows(), [*rows(), without]):
        trainer = trainer_of(tmp_path, model, looked, 1)
        with mean_over_tokens(trainer):
            found.append(trainer.evaluate()["eval_loss"])
    assert found[0] == found[1]

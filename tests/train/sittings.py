"""Sittings of a run over a real trainer and the tiny Llama, for the tests of session and resume."""

import gc
from pathlib import Path

from tests.tiny import base_model, with_adapter

ROWS = [{"input_ids": [3 + i, 5, 7, 9], "labels": [-100, 5, 7, 9]} for i in range(16)]
HELDOUT = [{"input_ids": [60 + i, 5, 80, 9], "labels": [-100, 5, 80, 9]} for i in range(4)]


class Processing:
    """Stands for the tokenizer, of which the session only asks that it be saved, with its date."""

    model_input_names = ("input_ids",)
    chat_template = "Today is {{ date_string }}."

    def save_pretrained(self, folder):
        Path(folder, "tokenizer.json").write_text("{}", encoding="utf-8")
        Path(folder, "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")


def trainer_of(session, callbacks=(), rows=ROWS, model=None, collator=None, before=(), **args):
    """A trainer of 8 steps: two epochs of 16 rows, with dropout, so that the random states matter.

    `callbacks` come after the session's, `before` before them.
    """
    from datasets import Dataset
    from transformers import DefaultDataCollator, PrinterCallback, Trainer, TrainingArguments

    gc.freeze()  # accelerate collects garbage at each start: 0.5 s over torch's modules
    values = {
        "output_dir": str(session.run.checkpoints),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 2,
        "save_total_limit": 2,
        "seed": 3407,
        "include_num_input_tokens_seen": "all",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    trainer = Trainer(
        model=model or with_adapter(base_model(), lora_dropout=0.1),
        args=TrainingArguments(**values | args),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=HELDOUT,
        data_collator=collator or DefaultDataCollator(),
        callbacks=[*before, *session.callbacks(), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.processing_class = Processing()
    return trainer


def sit(session, trainer):
    """What the notebook's training cell does."""
    if session.finished(trainer):
        session.restore(trainer)
    else:
        with session.sitting(trainer):
            trainer.train(resume_from_checkpoint=session.resume_from_checkpoint)


def at_step(step, act):
    """A callback that acts at the beginning of a step, after the session's own."""
    from transformers import TrainerCallback

    class AtStep(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step - 1:
                act()

    return AtStep()

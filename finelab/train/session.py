"""One sitting of a training run: where it starts, what it shows, how it is sealed and resumed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from finelab.data import IGNORE
from finelab.errors import LabError
from finelab.files import staged
from finelab.machine import peak_memory_bytes, require_free_space
from finelab.run import Run
from finelab.show import Live
from finelab.train.checkpoint import Checkpoint, newest_whole, seal


class Session:
    """Finds the newest whole checkpoint of a run and says whether anything is left to train.

    After `finished`, `resume_from_checkpoint` is what `trainer.train` takes: a folder, or None.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        require_free_space(run.folder, 1_000_000_000, "checkpoints")
        self._start: Checkpoint | None = None
        self._began = time.monotonic()

    @property
    def resume_from_checkpoint(self) -> str | None:
        """The newest whole checkpoint's folder, if there is one."""
        return str(self._start.folder) if self._start else None

    def finished(self, trainer: Any) -> bool:
        """Whether the newest whole checkpoint is the run's last step; says where training goes on.

        It looks each time, so that a cell run again after an interruption goes on too. transformers
        would train a finished run one step further.
        """
        self._start = newest_whole(self.run.checkpoints)
        steps = total_steps(trainer)
        done = self._start.step if self._start else 0
        if done >= steps:
            print(f"Training is finished: {done} of {steps} steps. The adapter is loaded, not trained on.")
        elif done:
            self.run.record("training", {"resumes": [*self._resumes(), done]})
            print(f"Going on from checkpoint-{done}: {steps - done} of {steps} steps are left.")
        else:
            print(f"Starting: {steps} steps.")
        return done >= steps

    def restore(self, trainer: Any) -> None:
        """Load the finished run's adapter and log into the trainer, in place of training."""
        from peft import load_peft_weights, set_peft_model_state_dict

        folder = self.resume_from_checkpoint
        set_peft_model_state_dict(trainer.model, load_peft_weights(folder, device="cpu"))
        trainer.state = trainer.state.load_from_json(str(Path(folder or "") / "trainer_state.json"))

    def callback(self) -> Any:
        """The trainer's callback: progress with an ETA, a sealed checkpoint at every save."""
        from transformers import TrainerCallback

        session, live = self, Live()

        class SessionCallback(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                session._began = time.monotonic()

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
                if logs and "loss" in logs:
                    finished = state.global_step == state.max_steps
                    live.show(session.progress(state, float(logs["loss"])), last=finished)

            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", session.elapsed_s)

        return SessionCallback()

    def progress(self, state: Any, loss: float) -> str:
        """One line: step, loss, tokens per second, time left by this sitting's pace."""
        steps = state.global_step - (self._start.step if self._start else 0)
        per_step = (time.monotonic() - self._began) / max(steps, 1)
        left = round(per_step * (state.max_steps - state.global_step))
        rate = state.num_input_tokens_seen / self.elapsed_s
        return (
            f"step {state.global_step}/{state.max_steps}  loss {loss:.3f}  {rate:.0f} tok/s  "
            f"ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        )

    @property
    def elapsed_s(self) -> float:
        """Seconds of training behind this point, earlier sittings included."""
        before = self._start.elapsed_s if self._start else 0.0
        return before + time.monotonic() - self._began

    def complete(self, trainer: Any, tokens_trained_share: float) -> None:
        """Save the adapter and record the run; LabError when training ended before its last step.

        `tokens_trained_share` is the share of tokens with a label, from the data stage.
        """
        state, steps = trainer.state, total_steps(trainer)
        if state.global_step < steps:
            raise LabError(
                f"training stopped at step {state.global_step} of {steps}; run this notebook again, "
                "it goes on from the last checkpoint."
            )
        # Without the trainer's autocast around forward, tuned is measured as the base was before.
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        with staged(self.run.adapter) as stage:
            trainer.model.save_pretrained(stage)
            trainer.processing_class.save_pretrained(stage)
        final = newest_whole(self.run.checkpoints)
        seconds = final.elapsed_s if final else self.elapsed_s
        tokens = int(state.num_input_tokens_seen)
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        self.run.record(
            "training",
            {
                "steps": state.global_step,
                "first_loss": losses[0],
                "last_loss": losses[-1],
                "tokens": tokens,
                "tokens_trained": round(tokens * tokens_trained_share),
                "seconds": round(seconds, 2),
                "tokens_per_s": round(tokens / seconds, 2),
                "trained_tokens_per_s": round(tokens * tokens_trained_share / seconds, 2),
                "peak_memory_bytes": peak_memory_bytes(),
                "resumes": self._resumes(),
            },
        )

    def _resumes(self) -> list[int]:
        return list(self.run.evidence().get("training", {}).get("resumes", []))


def trained_share(rows: Any) -> float:
    """The share of the rows' tokens that carry a label."""
    total = trained = 0
    for labels in rows["labels"]:
        total += len(labels)
        trained += len(labels) - labels.count(IGNORE)
    return trained / total


def total_steps(trainer: Any) -> int:
    """The optimizer steps of the whole run, as the trainer will count them."""
    if trainer.args.max_steps > 0:
        return int(trainer.args.max_steps)
    batches = len(trainer.get_train_dataloader())
    per_epoch = -(-batches // trainer.args.gradient_accumulation_steps)
    return int(per_epoch * trainer.args.num_train_epochs)

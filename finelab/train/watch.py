"""What watches over a training run: gates that stop it, a warning when it slows down, the live picture."""

from __future__ import annotations

import bisect
import importlib.util
import itertools
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finelab.errors import LabError
from finelab.resources import peak_memory_bytes
from finelab.run import Run
from finelab.show import Live, loss_curve, png
from finelab.train.curve import Curve, Growing

WINDOW = 20  # logs, over which a loss or a rate is judged
GROUPED_WINDOW = 50  # with length grouping rows are sorted within 50 batches, and short rows lose more
RISE = 0.5  # nats: a loss so much above its best means a perplexity of 1.65 times the best
ERRORS = 10  # standard errors: none of 2,400 noisy falling curves rose so high, with 4 four in ten did
SLOW = 0.6  # of the usual tokens per second
FULL = 0.95  # of the card's memory
SPILLS = sys.platform == "win32"  # the driver there moves what does not fit, and says nothing
FP16_SKIPS = 20  # steps in a row; the loss scale begins at 2^16 and is halved at each step that overflows


def watch(run: Run) -> Any:
    """The trainer's callback that stops a run which cannot end well, warns of a slow one, and shows it.

    `trainer.train` raises LabError at a first loss above `training.max_first_loss`, at a loss or gradient
    that is no number, a validation loss too, and at a loss that diverges. It stands after the session's
    callback.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.sitting = Sitting.begin(run, state)
            self.live, self.line, self.warned = Live(), "", set[bool]()
            self.growing = Growing()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # no checkpoint before its loss was judged, and after a look there may be one
            control.should_log |= control.should_save or control.should_evaluate or state.global_step == 1

        on_epoch_end = on_step_end  # a changed cell may save or look at the end of epochs

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
            self.points = self.growing.read(state.log_history)
            if not self.points.losses or not {"loss", "eval_loss"} & logs.keys():
                return
            self.line = self.sitting.line(state, self.points)
            wrong = fault(self.sitting, run.recipe.training.max_first_loss, args, state, self.points)
            self.show(last=wrong is not None)
            if wrong:
                raise LabError(wrong)
            self.warn(slowdown(self.sitting.rates(self.points), window_of(args)), card_memory())

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.line:
                self.show(last=True)

        def show(self, last: bool) -> None:
            title = f"{self.line}  memory {peak_memory_bytes() / 1e9:.2f} GB"
            resumes = self.sitting.resumes
            self.live.show(
                self.line, lambda: png(loss_curve(*self.points, resumes=resumes, title=title)), last
            )

        def warn(self, slow: tuple[float, float] | None, memory: tuple[int, int]) -> None:
            full = is_full(*memory)
            # what spills from the first step on has no faster steps to be compared with
            if (slow or (full and SPILLS)) and full not in self.warned:
                self.warned.add(full)
                rates = f"{slow[0]:,.0f} tok/s, where {slow[1]:,.0f} was usual. " if slow else ""
                print(f"Slow: {rates}{slow_cause(*memory)}", flush=True)

    return Watch()


@dataclass(frozen=True)
class Sitting:
    """When and where this sitting began, the run's tokens as planned, the steps where it was resumed."""

    began: float
    step: int
    tokens: int
    total_tokens: int | None
    resumes: list[int]

    @classmethod
    def begin(cls, run: Run, state: Any) -> Sitting:
        """The sitting that begins now, at the trainer's `state`."""
        evidence = run.evidence()
        return cls(
            time.monotonic(),
            state.global_step,
            state.num_input_tokens_seen,
            evidence.get("plan", {}).get("tokens"),
            evidence.get("training", {}).get("resumes", []),
        )

    def rates(self, points: Curve) -> list[float]:
        """The tokens per second of each log of this sitting: an earlier one may have had another machine."""
        return points.tokens_per_s[bisect.bisect(points.steps, self.step) :]

    def line(self, state: Any, points: Curve) -> str:
        """One line of progress, as `commands/progress.py` finds it: it begins with "step "."""
        elapsed = max(time.monotonic() - self.began, 0.016)  # the tick of the clock on Windows
        tokens = state.num_input_tokens_seen - self.tokens
        done, left = state.global_step - self.step, state.max_steps - state.global_step
        if self.total_tokens and tokens:
            done, left = tokens, max(self.total_tokens - state.num_input_tokens_seen, 0)
        seconds = round(elapsed * left / max(done, 1))
        validation = [f"validation {points.validation_losses[-1]:.3f}"] if points.validation_losses else []
        return "  ".join(
            [
                f"step {state.global_step}/{state.max_steps}",
                f"loss {points.losses[-1]:.3f}",
                *validation,
                f"{tokens / elapsed:.0f} tok/s",
                f"ETA {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}",
            ]
        )


def reporters(report_to: str) -> list[str]:
    """`training.report_to` as `SFTConfig` takes it; LabError when its package is not installed."""
    if report_to == "none":
        return []
    if importlib.util.find_spec(report_to) is None:
        raise LabError(
            f"training.report_to is {report_to!r}, but that package is not installed here; install it with "
            f"`%pip install {report_to}` in a cell and restart the kernel, or take training.report_to=none."
        )
    return [report_to]


def window_of(args: Any) -> int:
    """The number of logs over which a loss or a rate is judged."""
    return GROUPED_WINDOW if args.train_sampling_strategy == "group_by_length" else WINDOW


# Gates


def fault(sitting: Sitting, limit: float, args: Any, state: Any, points: Curve) -> str | None:
    """Why training must not go on after the last log, and what to do, if so."""
    if what := not_finite(state.log_history, args.fp16):
        return not_finite_text(what, state.global_step, args)
    first = sitting.step == 0 and len(points.losses) == 1
    if first and points.losses[0] > limit:
        return first_loss_text(points.losses[0], limit)
    if rise := divergence(points.losses, limit, window_of(args)):
        return divergence_text(*rise, state.global_step, args)
    return None


def not_finite(log_history: Sequence[dict[str, Any]], fp16: bool) -> str | None:
    """Which value of the last log is no finite number; of a look, its own loss.

    With fp16 the loss scale is found by gradients that overflow: the trainer skips such a step and halves the
    scale, so there only FP16_SKIPS of them in a row count.
    """
    look = log_history[-1].get("eval_loss", 0.0)
    if not math.isfinite(look):
        return f"the validation loss is {look}"
    wanted = FP16_SKIPS if fp16 else 1
    losses = (entry for entry in reversed(log_history) if "loss" in entry)  # looks are logged between them
    last = list(itertools.islice(losses, wanted))
    if not math.isfinite(last[0]["loss"]):
        return f"the loss is {last[0]['loss']}"
    norms = [entry.get("grad_norm", 0.0) for entry in last]
    if len(last) < wanted or any(math.isfinite(norm) for norm in norms):
        return None
    return f"the norm of the gradients is {norms[0]}"


def divergence(losses: Sequence[float], limit: float, window: int) -> tuple[float, float] | None:
    """The median of the last `window` losses and the bound that it exceeds, when the loss diverges.

    The bound is `limit`, which held for the first loss, or lies above the best mean of `window` losses by
    RISE and by ERRORS standard errors. A median, as one odd batch is no divergence; the noise comes from
    differences of neighbours before the last window, which a trend hardly changes.
    """
    import numpy as np

    if len(losses) < window:
        return None
    now = statistics.median(losses[-window:])
    if now > limit:
        return now, limit
    earlier = np.asarray(losses[:-window])
    if len(earlier) < window:
        return None
    best = float(np.convolve(earlier, np.full(window, 1 / window), "valid").min())
    noise = float(np.sqrt(np.mean(np.diff(earlier) ** 2) / 2))
    bound = best + max(RISE, ERRORS * noise / math.sqrt(window))
    return (now, bound) if now > bound else None


def first_loss_text(loss: float, limit: float) -> str:
    """What to say of a first loss above the limit."""
    return f"""the first loss is {loss:.2f}, above training.max_first_loss = {limit:g}.
An instruct model starts near 0.9 to 2.1, one that knows nothing near 11, the logarithm of its vocabulary.
Training on would take hours and teach nothing. The usual causes:
- The weights did not load right: the checkpoint is broken or another model's, or its quantisation failed.
  Let the model answer a question before training; try --set model.load_in_4bit=false, or another checkpoint.
- The chat template or the tokenizer is not this model's. Compare a row as text in notebook 01 with the format
  on the model's card; take the tokenizer from the model's own repository.
- The labels are on the wrong tokens. The X-ray of notebook 01 shows them: the answers and their end token.
A base model or an odd data set may start higher: then start a new run (--run NAME) with
--set training.max_first_loss={math.ceil(loss) + 1}."""


def not_finite_text(what: str, step: int, args: Any) -> str:
    """What to say of a loss or gradient that is no number."""
    dtype = (
        " fp16 overflows above 65,504; bfloat16, where the card has it, and float32 do not: set the "
        "environment variable FINELAB_MACHINE to dtype=bfloat16 or dtype=float32."
    )
    return (
        f"{what} at step {step}: training on would only write broken weights, so it is stopped. The last "
        f"whole checkpoint is kept. {_new_run(args)}{dtype if args.fp16 else ''}"
    )


def divergence_text(loss: float, bound: float, step: int, args: Any) -> str:
    """What to say of a loss that rises for good."""
    return (
        f"the loss diverges: the median of the last {window_of(args)} logs is {loss:.2f} at step {step}, and "
        f"up to {bound:.2f} would be noise. Training is stopped. The last whole checkpoint is kept, but it "
        f"may be from after the rise began. {_new_run(args)}"
    )


def _new_run(args: Any) -> str:
    return (
        f"Start a new run (--run NAME) with a lower learning rate than {args.learning_rate:g}, for example "
        f"--set training.learning_rate={args.learning_rate / 4:g}."
    )


# Speed


def slowdown(tokens_per_s: Sequence[float], window: int) -> tuple[float, float] | None:
    """The median rate of the last `window` logs and of all, when the first is below SLOW of the second.

    Medians: a checkpoint, or a laptop that slept, is one slow log.
    """
    if len(tokens_per_s) < 2 * window:
        return None
    import numpy as np

    now, usual = float(np.median(tokens_per_s[-window:])), float(np.median(tokens_per_s))
    return (now, usual) if now < SLOW * usual else None


def card_memory() -> tuple[int, int]:
    """Bytes that torch has reserved on the CUDA card and those it has; both 0 without one."""
    import torch

    if not torch.cuda.is_available():
        return 0, 0
    return torch.cuda.memory_reserved(), torch.cuda.get_device_properties(0).total_memory


def is_full(reserved_bytes: int, total_bytes: int) -> bool:
    """Whether torch holds so much of the card that on Windows a part of it lies in main memory."""
    return reserved_bytes > FULL * total_bytes


def slow_cause(reserved_bytes: int, total_bytes: int) -> str:
    """The likely cause of a slowdown and what to do about it."""
    if is_full(reserved_bytes, total_bytes):
        return (
            f"The GPU's memory is full ({reserved_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB), and on "
            "Windows the driver then moves a part of it into main memory. Close other programs that use the "
            "GPU, or start a new run with half of training.per_device_train_batch_size, twice its "
            "gradient_accumulation_steps, and training.tune = false, which keeps them."
        )
    return (
        "Likely another program uses this machine, or heat or a power-saving mode lowers its clock: close "
        "the one, cool or plug in the other. The run itself is sound."
    )

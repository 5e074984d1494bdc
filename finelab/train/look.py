"""A look at the validation rows on the way: its loss is the mean over their labelled tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from finelab.data import IGNORE
from finelab.train import distributed


@contextlib.contextmanager
def mean_over_tokens(trainer: Any) -> Iterator[None]:
    """Let the trainer's `eval_loss` be nats per labelled token, as the held-out loss is.

    transformers takes the mean of the micro-batches' means, which is another number for each of their sizes:
    2.09 with one row, 2.01 with two, where the mean over tokens is 2.00 (114 rows of the embedded default).
    The two methods are laid over this trainer only, and taken away at the end.
    """
    import torch

    found: list[tuple[Any, int]] = []

    def prediction_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labelled = int((inputs["labels"][..., 1:] != IGNORE).sum())
        if trainer.args.device.type == "cpu":  # TRL asks for log-probabilities, past the step by hand
            with torch.no_grad(), trainer.compute_loss_context_manager():
                loss, *rest = model(**inputs).loss, None, None
        else:
            loss, *rest = type(trainer).prediction_step(trainer, model, inputs, *args, **kwargs)
        found.append((loss * labelled if labelled else 0.0, labelled))  # without labels it may be 0 / 0
        return loss, *rest

    def evaluation_loop(*args: Any, **kwargs: Any) -> Any:
        found.clear()
        output = type(trainer).evaluation_loop(trainer, *args, **kwargs)
        own = float(sum(nats for nats, _ in found)), sum(count for _, count in found)
        nats, tokens = map(sum, zip(*distributed.gather(own), strict=True))
        output.metrics["eval_loss"] = nats / max(tokens, 1)
        return output

    trainer.prediction_step, trainer.evaluation_loop = prediction_step, evaluation_loop
    try:
        yield
    finally:
        del trainer.prediction_step, trainer.evaluation_loop

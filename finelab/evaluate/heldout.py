"""The loss of each labelled token of some rows: one pass of the model, from which all else is computed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finelab.data import IGNORE
from finelab.train.memory import SCORED_AT_ONCE

if TYPE_CHECKING:
    import torch

TokenLosses = list[NDArray[np.float32]]
BATCH_TOKENS = 1024  # padding included; on a CPU 512 take 0.95 of the time, 2,048 take 1.04


def base_and_tuned(model: Any, rows: Any, what: str = "held-out rows") -> tuple[TokenLosses, TokenLosses]:
    """The token losses of `rows` with the adapter of a PEFT model switched off, and on."""
    with model.disable_adapter():
        base = token_nll(model, rows, f"base on {what}")
    return base, token_nll(model, rows, f"tuned on {what}")


def response_nll(model: Any, rows: Any) -> NDArray[np.float64]:
    """Negative log-likelihood of each row's labelled tokens: an array (rows, 2) of nats and tokens."""
    return row_totals(token_nll(model, rows, "held-out loss"))


def row_totals(losses: TokenLosses) -> NDArray[np.float64]:
    """Each row's nats and number of tokens: an array (rows, 2)."""
    return np.array([(row.sum(dtype=np.float64), len(row)) for row in losses]).reshape(-1, 2)


def token_nll(
    model: Any, rows: Mapping[str, Any], progress: str = "loss", batch_tokens: int = BATCH_TOKENS
) -> TokenLosses:
    """The nats of each labelled token, a row's in the order in which they stand in it.

    `rows` has the columns `input_ids` and `labels`. The first token of a row is predicted by nothing and
    has no loss. Rows run from the shortest to the longest, so that little is padded.
    """
    import torch
    from tqdm import tqdm

    input_ids, labels = rows["input_ids"], rows["labels"]
    losses: TokenLosses = [np.empty(0, np.float32)] * len(input_ids)
    batches = list(batches_by_length([len(row) for row in input_ids], batch_tokens))
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in tqdm(batches, progress, unit="batch", delay=2):
            found = _batch_nll(model, [input_ids[i] for i in batch], [labels[i] for i in batch])
            for index, row in zip(batch, found, strict=True):
                losses[index] = row
    model.train(was_training)
    return losses


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """The rows' numbers from the shortest row on, in batches of at most `batch_tokens` padded positions.

    A longer row is a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _batch_nll(model: Any, input_ids: list[list[int]], labels: list[list[int]]) -> TokenLosses:
    """The logits at a position are scored against the next position's label."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils.rnn import pad_sequence

    def padded(values: list[list[int]], filler: int) -> torch.Tensor:
        tensors = [torch.tensor(value) for value in values]
        return pad_sequence(tensors, batch_first=True, padding_value=filler).to(model.device)

    mask = padded([[1] * len(row) for row in input_ids], 0)
    targets = padded(labels, IGNORE)[:, 1:]
    scored = targets != IGNORE
    with _head_sees(model, scored):
        logits = model(input_ids=padded(input_ids, 0), attention_mask=mask).logits[0]
    parts = zip(logits.split(SCORED_AT_ONCE), targets[scored].split(SCORED_AT_ONCE), strict=True)
    nats = [cross_entropy(logit.float(), target, reduction="none") for logit, target in parts]
    ends = np.cumsum(scored.sum(dim=1).cpu().numpy())[:-1]
    return np.split(torch.cat(nats).cpu().numpy().astype(np.float32), ends)


@contextlib.contextmanager
def _head_sees(model: Any, scored: torch.Tensor) -> Iterator[None]:
    """Give the output head the scored positions only, as one row: it is a quarter of a small model's work."""

    def pick(head: Any, hidden: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (hidden[0][:, :-1][scored][None],)

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()

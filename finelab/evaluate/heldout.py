"""The loss of the answers in held-out conversations, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from finelab.data import IGNORE


def response_nll(
    model: Any, rows: Any, batch_size: int = 8, progress: str = "held-out loss"
) -> NDArray[np.float64]:
    """Negative log-likelihood of each row's labelled tokens: an array (rows, 2) of nats and tokens.

    Rows run from the shortest to the longest, so that little is padded.
    """
    import torch
    from tqdm import tqdm

    input_ids, labels = rows["input_ids"], rows["labels"]
    order = sorted(range(len(input_ids)), key=lambda index: len(input_ids[index]))
    result = np.zeros((len(order), 2))
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for start in tqdm(range(0, len(order), batch_size), progress, unit="batch", delay=2):
            batch = order[start : start + batch_size]
            nats = _batch_nll(model, [input_ids[i] for i in batch], [labels[i] for i in batch])
            result[batch, 0] = nats
            result[batch, 1] = [sum(label != IGNORE for label in labels[i][1:]) for i in batch]
    model.train(was_training)
    return result


def _batch_nll(model: Any, input_ids: list[list[int]], labels: list[list[int]]) -> list[float]:
    """Nats of each row: the logits at a position are scored against the next position's label."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils.rnn import pad_sequence

    def padded(values: list[list[int]], filler: int) -> torch.Tensor:
        tensors = [torch.tensor(value) for value in values]
        return pad_sequence(tensors, batch_first=True, padding_value=filler).to(model.device)

    mask = padded([[1] * len(row) for row in input_ids], 0)
    logits = model(input_ids=padded(input_ids, 0), attention_mask=mask).logits[:, :-1]
    targets = padded(labels, IGNORE)[:, 1:]
    scored = targets != IGNORE
    nats = torch.zeros(targets.shape, dtype=torch.float32, device=targets.device)
    nats[scored] = cross_entropy(logits[scored].float(), targets[scored], reduction="none")
    return [float(row) for row in nats.sum(dim=1)]

"""The X-ray: what stands in every tokenised row, measured again from the rows themselves.

It shares no code with the tokenising, so that a mistake there shows here.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

IGNORE = -100


def faults(batches: Iterable[pa.RecordBatch], tokenizer: Any) -> dict[str, int]:
    """How often each thing occurs that must not, in the rows' `input_ids` and `labels`.

    A row with `cut_answer` may lack the end token of its last answer.
    """
    control = np.zeros(len(tokenizer), dtype=bool)
    control[[i for i, token in tokenizer.added_tokens_decoder.items() if token.special]] = True
    found: Counter[str] = Counter()
    for batch in batches:
        if not len(batch):
            continue
        offsets = batch["input_ids"].offsets.to_numpy() - batch["input_ids"].offsets[0].as_py()
        start, end = offsets[:-1], offsets[1:]
        ids = batch["input_ids"].flatten().to_numpy()
        labels = batch["labels"].flatten().to_numpy()
        trained = labels != IGNORE
        is_end = ids == tokenizer.eos_token_id
        last_of_answer = trained & ~np.append(trained[1:], False)
        last_of_answer[end - 1] = trained[end - 1]
        last_of_answer[end[batch["cut_answer"].to_numpy(zero_copy_only=False)] - 1] = False
        twice = (ids[start] == tokenizer.bos_token_id) & (ids[np.minimum(start + 1, end - 1)] == ids[start])
        found.update(
            {
                "rows with nothing to learn": int((np.add.reduceat(trained, start) == 0).sum()),
                "rows that begin with two BOS tokens": int((twice & (end - start > 1)).sum()),
                "labels that are not the token": int((trained & (labels != ids)).sum()),
                "control tokens trained": int((trained & control[ids] & ~is_end).sum()),
                "answers without their end token": int((last_of_answer & ~is_end).sum()),
            }
        )
    return dict(found)


def by_source(
    sources: Sequence[str], lengths: NDArray[Any], trained: NDArray[Any], truncated: NDArray[Any]
) -> list[dict[str, Any]]:
    """Rows, tokens, trained share, truncated share and lengths of each source, the largest first."""
    import pandas as pd

    table = pd.DataFrame(
        {"source": sources, "tokens": lengths, "trained": trained, "truncated": truncated}
    ).groupby("source")
    found = pd.DataFrame(
        {
            "rows": table.size(),
            "tokens": table["tokens"].sum(),
            "trained_share": (table["trained"].sum() / table["tokens"].sum()).round(4),
            "truncated_share": table["truncated"].mean().round(4),
            "median_tokens": table["tokens"].median().astype(int),
            "longest_tokens": table["tokens"].max(),
        }
    )
    ordered = found.sort_values(["rows", "tokens"], ascending=False, kind="stable")
    records: list[dict[str, Any]] = ordered.reset_index().to_dict("records")
    return records


def padding(lengths: Sequence[int], batch_size: int, max_length: int, seed: int) -> dict[str, float]:
    """The share of an epoch's positions that is padding: in random batches, in batches of like length
    as the trainer's `group_by_length` makes them, and packed into rows of `max_length`."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    shuffled = random.Random(seed).sample(list(lengths), len(lengths))
    order = get_length_grouped_indices(
        list(lengths), batch_size, generator=torch.Generator().manual_seed(seed)
    )
    return {
        "random": padding_share(shuffled, batch_size),
        "group_by_length": padding_share([lengths[i] for i in order], batch_size),
        "packing": 1 - sum(lengths) / (packed_rows(lengths, max_length) * max_length),
    }


def padding_share(lengths: Sequence[int], batch_size: int) -> float:
    """The share of padding when each `batch_size` rows in turn are as long as the longest of them."""
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return 1 - sum(lengths) / sum(len(batch) * max(batch) for batch in batches)


def packed_rows(lengths: Sequence[int], max_length: int) -> int:
    """How many rows of `max_length` hold all of these, by best-fit decreasing as in TRL's packing."""
    free = np.zeros(max_length + 1, dtype=np.int64)  # how many rows have so much room left
    for length in sorted(lengths, reverse=True):
        fit = length + int(np.argmax(free[length:] > 0))
        if free[fit] > 0:
            free[fit] -= 1
        else:
            fit = max_length
        free[fit - length] += 1
    return int(free.sum())

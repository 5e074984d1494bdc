"""Micro-batches without padding: rows one after another, or packed rows, each document apart from the others.

The documents of a flat batch are told apart by `position_ids` that begin again at 0: transformers' causal
mask then keeps them apart, and TRL's collator takes the label from each one's first token. On a CPU the lab
passes the collator and packs beforehand, because Unsloth turns both off there; on CUDA Unsloth does both
itself, as long as no collator is passed.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from finelab.data.xray import IGNORE
from finelab.errors import LabError
from finelab.machine import Profile


class Batch(NamedTuple):
    """What a micro-batch computes: rows, token positions, and the sum of the squared lengths that attend."""

    rows: int
    positions: int
    squares: int


def by_the_lab(profile: Profile) -> bool:
    """Whether the lab flattens and packs here, and not Unsloth."""
    return bool(profile.device == "cpu")


def collator(tokenizer: Any, profile: Profile) -> Any | None:
    """The `data_collator` that flattens a micro-batch into one row; None on CUDA: Unsloth has its own."""
    if not by_the_lab(profile):
        return None
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id, padding_free=True)


def batching(profile: Profile, packing: bool) -> dict[str, Any]:
    """What `SFTConfig` takes for such batches: who packs, and how tokens are counted.

    A flat batch has no mask, so that "non_padding" would leave out each real token that is also the padding
    token: SmolLM2's end of turn. All positions of a flat batch are tokens, so "all" counts right.
    """
    if by_the_lab(profile):
        return {"packing": False, "include_num_input_tokens_seen": "all"}
    return {"packing": packing, "include_num_input_tokens_seen": "non_padding"}


def training_rows(rows: Any, profile: Profile, packing: bool, max_length: int) -> Any:
    """The `train_dataset` of a trainer: the columns it takes, packed already where Unsloth does not pack."""
    chosen = rows.select_columns(["input_ids", "labels"])
    return packed(chosen, max_length) if packing and by_the_lab(profile) else chosen


def eval_rows(rows: Any, count: int) -> Any:
    """The `eval_dataset` of a trainer: `count` of the rows, spread evenly; 0 for all of them."""
    chosen = rows.select_columns(["input_ids", "labels"])
    if not count or count >= len(rows):
        return chosen
    return chosen.select([i * len(rows) // count for i in range(count)])


def packed(rows: Any, max_length: int) -> Any:
    """Rows of up to `max_length` tokens, each of whole documents, as TRL packs them.

    That is best fit within each 1,000 rows. The column `seq_lengths` has the documents' lengths. LabError for
    a row that is longer.
    """
    from trl import pack_dataset

    lengths, _ = token_counts(rows)
    longest = max(lengths)
    if longest > max_length:
        raise LabError(
            f"row {lengths.index(longest)} has {longest} tokens, and a packed row holds {max_length}; "
            f"prepare the rows again with notebook 01_data, or raise model.max_seq_length."
        )
    with no_progress_bars():
        return pack_dataset(rows.select_columns(["input_ids", "labels"]), max_length, strategy="bfd")


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep `datasets` from drawing a bar for what takes no time."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def flattens(trainer: Any) -> bool:
    """Whether a trainer's micro-batches are flat: its own collator is asked, as on CUDA Unsloth decides."""
    loader = trainer.get_train_dataloader()
    batch = loader.collate_fn([loader.dataset[0]] * 2)
    return int(batch["input_ids"].shape[0]) == 1


def batch_of(lengths: Sequence[int], squares: Sequence[int], flat: bool) -> Batch:
    """The micro-batch of rows with these lengths, each with the sum of its documents' squared lengths."""
    squared = sum(squares) if flat else len(lengths) * max(lengths) ** 2
    return Batch(len(lengths), positions(lengths, flat), squared)


def positions(lengths: Sequence[int], flat: bool) -> int:
    """What a micro-batch of such rows computes: with padding, each is as long as the longest."""
    return sum(lengths) if flat else len(lengths) * max(lengths)


def token_counts(rows: Any) -> tuple[list[int], list[int]]:
    """The length of each row of a `datasets.Dataset`, and how many of its tokens carry a label."""
    import pyarrow.compute as pc

    lengths: list[int] = []
    trained: list[int] = []
    for table in rows.with_format("arrow").iter(batch_size=1000):
        labels = table["labels"].combine_chunks()
        sizes = pc.list_value_length(labels).to_numpy()
        before = np.concatenate([[0], np.cumsum(labels.flatten().to_numpy() != IGNORE)])
        ends = np.cumsum(sizes)
        lengths += sizes.tolist()
        trained += (before[ends] - before[ends - sizes]).tolist()
    return lengths, trained


def rows_sha256(rows: Any) -> str:
    """A hash of a `datasets.Dataset`'s tokens, labels and documents, in the order of its rows.

    100,000 rows of 700 tokens take 0.7 s, and 1.5 s where they were shuffled and not written anew.
    """
    import pyarrow.compute as pc

    digest = hashlib.sha256()
    names = [name for name in ("input_ids", "labels", "seq_lengths") if name in rows.column_names]
    for table in rows.select_columns(names).with_format("arrow").iter(batch_size=1000):
        for name in names:
            lists = table[name].combine_chunks()
            for numbers in (pc.list_value_length(lists), lists.flatten()):
                digest.update(numbers.to_numpy().astype(np.int32))  # of any width
    return digest.hexdigest()


def row_squares(rows: Any, lengths: Sequence[int]) -> list[int]:
    """For each row of a `datasets.Dataset` the sum of its documents' squared lengths."""
    if "seq_lengths" not in rows.column_names:
        return [length**2 for length in lengths]
    return [sum(length**2 for length in documents) for documents in rows["seq_lengths"]]


def collated(batch: Mapping[str, Any], rows: int) -> Batch:
    """The `Batch` that `rows` rows were collated to."""
    size, length = batch["input_ids"].shape
    if "attention_mask" in batch or "position_ids" not in batch:
        return Batch(rows, int(size * length), int(size * length**2))
    import torch

    starts = torch.nonzero(batch["position_ids"][0] == 0)[:, 0]
    ends = torch.cat([starts[1:], starts.new_tensor([length])])
    return Batch(rows, int(size * length), int(((ends - starts) ** 2).sum()))

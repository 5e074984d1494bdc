"""What `litgpt finetune_lora` of train.py is given: rows that are tokens already, and a clock.

A module of its own, as LitGPT is told by name where its rows come from, and is not installed elsewhere.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from litgpt.data import DataModule, get_sft_collate_fn
from litgpt.prompts import Default
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader

MARKS: list[float] = []  # the first batch's start, then each optimizer step's end


class Rows(DataModule):
    """The rows of a file in their order, in LitGPT's own padded batches."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.rows, self.prompt_style = json.loads(Path(path).read_text(encoding="utf-8")), Default()
        register_optimizer_step_post_hook(lambda *_: MARKS.append(time.perf_counter()))

    def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        """LitGPT says here how many rows it takes at once."""
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        """All rows."""
        return self.batches(self.rows, self.batch_size, started)

    def val_dataloader(self) -> DataLoader:
        """One row: LitGPT looks at it before it starts, which is not timed."""
        return self.batches(self.rows[:1], 1, get_sft_collate_fn())

    def batches(self, rows: list[dict[str, list[int]]], size: int, collate: Any) -> DataLoader:
        """Padded on the right, with the counts that LitGPT prints."""
        samples = []
        for row in rows:
            count = len(row["input_ids"])
            counts = {"raw": count, "raw_plus_prompt_template": count}
            samples.append({key: torch.tensor(ids) for key, ids in row.items()} | {"token_counts": counts})
        return DataLoader(samples, size, collate_fn=collate)


def started(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """LitGPT's own collator; the clock starts with its first batch."""
    MARKS.extend([] if MARKS else [time.perf_counter()])
    return get_sft_collate_fn()(samples)

"""Forgetting: the loss on a frozen set of general text that no recipe trains on.

36 paragraphs of plain prose and 20 short questions with answers, about what the embedded data set does not
have; written for this project, under its licence. `NEUTRAL_SHA256` holds the set still, so that numbers of
different runs and dates stay comparable.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finelab.data import Row, control_tokens, standardize, tokenize
from finelab.data.read import EMBEDDED
from finelab.errors import LabError
from finelab.evaluate.compare import Comparison, by_group
from finelab.files import sha256

NEUTRAL = EMBEDDED.with_name("neutral.jsonl")
LONGEST = 1024  # tokens; no row has a quarter of that
NEUTRAL_SHA256 = "dae1508b4b1ac0b5075d070f4698bcff158b34bc5f4a9494158eb38b0401fad2"


def neutral_rows(tokenizer: Any, date_string: str) -> dict[str, list[Any]]:
    """The neutral set's columns `source`, `input_ids` and `labels`, tokenised for this model.

    Prose is scored as it stands, without a chat template; of a question only the answer is scored. The rows
    do not depend on a run's max_seq_length. LabError when the file is not the frozen one.
    """
    if sha256(NEUTRAL) != NEUTRAL_SHA256:
        raise LabError(
            f"{NEUTRAL.name} is not the frozen set (sha256 {NEUTRAL_SHA256[:12]}...), so forgetting measured "
            "on it says nothing; put the file back with git checkout."
        )
    rows = [json.loads(line) for line in NEUTRAL.read_text(encoding="utf-8").splitlines()]
    texts = [row["text"] for row in rows if "text" in row]
    prose = tokenizer(texts)["input_ids"]
    talks = [Row(number, row) for number, row in enumerate(rows, start=1) if "conversations" in row]
    conversations = standardize(talks, control_tokens(tokenizer)).conversations
    answers = tokenize(tokenizer, conversations, LONGEST, date_string).rows
    return {
        "source": ["prose"] * len(prose) + ["instructions"] * len(answers),
        "input_ids": prose + [row.input_ids.tolist() for row in answers],
        "labels": prose + [row.labels.tolist() for row in answers],
    }


def forgetting(
    sources: Sequence[str], base: NDArray[np.float64], tuned: NDArray[np.float64]
) -> dict[str, Comparison]:
    """The comparisons of "prose" and "instructions"; "worse" means that something was forgotten.

    They are never added up: a new style of answers, which lowers the second, would hide what the first lost.
    """
    return by_group(sources, base, tuned, order=("prose", "instructions"))

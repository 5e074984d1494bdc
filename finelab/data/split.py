"""The split into training and held-out rows, by the first question and by source.

A row's side depends on its own content alone, so it stays when rows are added, and two answers to
one question are on the same side.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from finelab.data.conversation import Message
from finelab.errors import LabError

TRAIN, BY_ROW, BY_FAMILY, VALIDATION = "train", "row", "family", "validation"
# Held-out rows for a verdict: with 5 of them 7 % of A/A comparisons were called a change, from 8 on 6 %
# (benchmarks/calibration.py).
MIN_ROWS = 8


def question_key(messages: Sequence[Message]) -> str:
    """A hash of the first user message, whatever its case and white space: 64 hexadecimal digits."""
    question = next(each["content"] for each in messages if each["role"] == "user")
    return hashlib.sha256(" ".join(question.casefold().split()).encode()).hexdigest()


def side(
    source: str,
    key: str,
    heldout_share: float,
    heldout_sources: Sequence[str] = (),
    validation_share: float = 0.0,
) -> str:
    """A row's side: `TRAIN`, `BY_ROW` for a held-out row, `BY_FAMILY` for one of a held-out source.

    A held-out source is a kind of conversation that the model never trains on. `VALIDATION` is neither
    trained on nor reported: those rows are looked at on the way, and may choose the checkpoint.
    """
    if source in heldout_sources:
        return BY_FAMILY
    place = int(key[:8], 16) / 2**32  # evenly spread from 0 to 1
    if place < heldout_share:
        return BY_ROW
    return VALIDATION if place < heldout_share + validation_share else TRAIN


def check_sides(
    sides: Counter[str],
    sources: Iterable[str],
    questions: Iterable[str],
    heldout_share: float,
    heldout_sources: Sequence[str] = (),
    validation_share: float = 0.0,
) -> None:
    """LabError when no row is of a held-out source, or a side that was asked for has no row.

    `sides` counts the rows of each side, `sources` are those that any row has, `questions` the rows'
    `question_key`, which are looked at only to say why.
    """
    known = set(sources)
    if missing := sorted(set(heldout_sources) - known):
        raise LabError(
            f"data.heldout_sources: no row has the source {missing[0]!r}; "
            f"there are: {', '.join(sorted(known)[:20])}."
        )
    if not sides[TRAIN] or not sides[BY_ROW]:
        if sides.total() > 1 and len(set(questions)) == 1:
            raise LabError(
                f"all {sides.total()} rows have the same first question, so they fall to one side, and both "
                "training and held-out rows are needed: put what tells them apart into the first question."
            )
        raise LabError(
            f"of {sides.total()} rows {sides[TRAIN]} fell to training and {sides[BY_ROW]} to the held-out "
            f"rows (rows with the same first question fall together); both are needed: give more rows, "
            f"raise data.limit where it is set, or change data.heldout_share = {heldout_share}."
        )
    if validation_share and not sides[VALIDATION]:
        raise LabError(
            f"none of {sides.total()} rows fell to the validation rows: give more rows, or change "
            f"data.validation_share = {validation_share}."
        )

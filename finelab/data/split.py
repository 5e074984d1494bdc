"""The split into training and held-out rows, by content hash and by source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finelab.errors import LabError

BY_ROW, BY_FAMILY = "row", "family"


def split(
    rows: Sequence[dict[str, Any]], heldout_share: float, heldout_sources: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training rows and held-out rows; the latter say in `heldout` whether by row or by family.

    A row's side depends on its content alone, so it stays when rows are added. Every row of
    `heldout_sources` is held out: kinds of conversation that the model never trains on.
    """
    known = {row["source"] for row in rows}
    if missing := sorted(set(heldout_sources) - known):
        raise LabError(
            f"data.heldout_sources: no row has the source {missing[0]!r}; "
            f"there are: {', '.join(sorted(known)[:20])}."
        )
    train, heldout = [], []
    for row in rows:
        if row["source"] in heldout_sources:
            heldout.append(row | {"heldout": BY_FAMILY})
        elif int(row["id"][-8:], 16) < heldout_share * 2**32:  # limit() sorts by the first digits
            heldout.append(row | {"heldout": BY_ROW})
        else:
            train.append(row)
    by_row = sum(row["heldout"] == BY_ROW for row in heldout)
    if not train or not by_row:
        raise LabError(
            f"of {len(rows)} rows {len(train)} fell to training and {by_row} to the held-out rows; "
            f"both are needed: give more rows, or change data.heldout_share = {heldout_share}."
        )
    return train, heldout

"""What the data stage found, as numbers for the evidence and as text for the reader."""

from __future__ import annotations

from typing import Any

from finelab.data.read import Source
from finelab.data.standardize import Standardized
from finelab.data.tokens import Tokenized


def summary(
    source: Source,
    standardized: Standardized,
    tokenized: Tokenized,
    train_rows: int,
    heldout_rows: int,
    padding_share: float,
) -> dict[str, Any]:
    """The evidence's `data` object; tokens count all kept rows, before padding."""
    dropped = dict(standardized.dropped_counts)
    if tokenized.too_long:
        dropped["first answer longer than max_seq_length"] = len(tokenized.too_long)
    return {
        "source": source.name,
        "revision": source.revision,
        "sha256": source.sha256,
        "broken": source.broken,
        "rows_in": standardized.rows_in,
        "rows_usable": len(standardized.conversations),
        "rows_kept": len(tokenized.rows),
        "dropped": dropped,
        "repaired": dict(standardized.repaired),
        "train_rows": train_rows,
        "heldout_rows": heldout_rows,
        "tokens_total": sum(tokenized.lengths),
        "tokens_trained": tokenized.tokens_trained,
        "truncated_share": tokenized.truncated / len(tokenized.rows),
        "padding_share": round(padding_share, 4),
    }


def repairs_table(standardized: Standardized) -> str:
    """Each repair with its count and first example, one a line."""
    if not standardized.repaired:
        return "no row needed a repair"
    lines = []
    for kind, count in standardized.repaired.most_common():
        before, after = standardized.examples[kind]
        example = f"   {before!r} -> {after!r}" if before else ""
        lines.append(f"{count:6}  {kind}{example}")
    return "\n".join(lines)


def dropped_rows(standardized: Standardized) -> str:
    """Each reason for dropping a row with its count and first row number, one a line."""
    first: dict[str, int] = {}
    for number, reason in standardized.dropped:
        first.setdefault(reason, number)
    lines = [
        f"{count:6}  {reason} (first in row {first[reason]})"
        for reason, count in standardized.dropped_counts.most_common()
    ]
    return "\n".join(lines) or "no row was dropped"

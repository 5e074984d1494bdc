"""What the data stage found, as numbers for the evidence and as text for the reader."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from finelab.data import duplicates, xray
from finelab.data.dropped import DroppedRows
from finelab.data.read import Source
from finelab.data.split import MIN_ROWS, VALIDATION
from finelab.data.standardize import Standardized
from finelab.recipe import Recipe

SHOWN = 40  # sources with numbers of their own in the report


def report(
    recipe: Recipe,
    sources: Sequence[Source],
    found: Standardized,
    dropped: DroppedRows,
    chosen: int,
    deselected: int,
    splits: Mapping[str, pa.Table],
    leaks: duplicates.Leakage,
    tokenizer: Any,
) -> dict[str, Any]:
    """The evidence's `data` object; tokens count all kept rows, before padding.

    `chosen` rows were to be tokenised, `deselected` are those that selection left out on purpose.
    """
    rows = pa.concat_tables(splits.values())
    validation_rows = splits["heldout"]["heldout"].to_pylist().count(VALIDATION)
    lengths, trained = rows["length"].to_numpy(), rows["trained_tokens"].to_numpy()
    truncated = rows["truncated"].to_numpy()
    batch_size, seed = recipe.training.per_device_train_batch_size, recipe.training.seed
    train_lengths = splits["train"]["length"].to_pylist()
    padding = xray.padding(train_lengths, batch_size, recipe.model.max_seq_length, seed)
    faults = xray.faults((batch for table in splits.values() for batch in table.to_batches()), tokenizer)
    lost = chosen - len(rows)
    unread_share = (dropped.counts.total() - deselected - lost) / max(found.rows_in, 1)
    return {
        "source": ", ".join(source.name for source in sources),
        "revision": ", ".join(source.revision for source in sources if source.revision),
        "sha256": _sha256(sources),
        "rows_sha256": _rows_sha256(splits["train"]),
        "broken": [f"{source.name}: {source.broken}" for source in sources if source.broken],
        "rows_in": found.rows_in,
        "rows_chosen": chosen,
        "rows_kept": len(rows),
        "dropped": dict(dropped.counts),
        "dropped_first": dropped.first,
        # of the rows that were not chosen nobody knows whether they could be tokenised
        "dropped_share": unread_share + (1 - unread_share) * lost / chosen,
        "repaired": dict(found.repaired.most_common()),
        "repair_examples": {kind: example._asdict() for kind, example in found.examples.items()},
        "train_rows": len(splits["train"]),
        "heldout_rows": len(splits["heldout"]) - validation_rows,
        "validation_rows": validation_rows,
        "tokens_total": int(lengths.sum()),
        "tokens_trained": int(trained.sum()),
        "truncated_share": float(truncated.mean()),
        "cut_answers": int(rows["cut_answer"].to_numpy().sum()),
        "padding_share": round(padding["random"], 4),
        "padding": {name: round(share, 4) for name, share in padding.items()},
        "leaked_rows": leaks.rows,
        "leaked_share": leaks.share,
        "faults": faults,
        "by_source": xray.by_source(rows["source"].to_pylist(), lengths, trained, truncated)[:SHOWN],
    }


def summary(numbers: Mapping[str, Any]) -> str:
    """The report in a few lines."""
    validation = f", {numbers['validation_rows']:,} for validation" if numbers["validation_rows"] else ""
    no_verdict = f"\nfewer than {MIN_ROWS} held-out rows give no verdict: raise data.heldout_share"
    few = no_verdict if numbers["heldout_rows"] < MIN_ROWS else ""
    return (
        f"{numbers['rows_in']:,} rows read, {numbers['rows_chosen']:,} of them chosen, "
        f"{numbers['rows_kept']:,} of those usable: {numbers['train_rows']:,} to train on, "
        f"{numbers['heldout_rows']:,} held out{validation}\n"
        f"{numbers['tokens_total']:,} tokens, {numbers['tokens_trained']:,} of them labelled "
        f"({numbers['tokens_trained'] / numbers['tokens_total']:.0%}); "
        f"{numbers['truncated_share']:.1%} of the rows were cut, "
        f"{numbers['cut_answers']:,} inside an answer\n"
        f"{numbers['leaked_rows']:,} held-out rows nearly repeat a training row{few}"
    )


def repairs(numbers: Mapping[str, Any]) -> str:
    """Each repair with the number of rows and the first example, one a line."""
    lines = []
    for kind, count in numbers["repaired"].items():
        example = numbers["repair_examples"][kind]
        lines.append(
            f"{count:8,}  {kind}   row {example['number']}: {example['before']!r} -> {example['after']!r}"
        )
    return "\n".join(lines) or "no row needed a repair"


def left_out(numbers: Mapping[str, Any]) -> str:
    """Each reason for leaving out a row with the number of rows and the first of them, one a line."""
    ordered = sorted(numbers["dropped"].items(), key=lambda item: -item[1])
    lines = [f"{count:8,}  {why} (first: {numbers['dropped_first'][why]})" for why, count in ordered]
    not_picked = numbers["rows_in"] - sum(numbers["dropped"].values()) - numbers["rows_kept"]
    if not_picked:
        lines.append(f"{not_picked:8,}  not picked by data.limit or data.weights")
    lines += [f"       ?  {broken}; nothing behind it is read" for broken in numbers["broken"]]
    return "\n".join(lines) or "no row was left out"


def repairs_of(found: Standardized) -> str:
    """The repairs of a few rows, as `repairs` shows those of all."""
    examples = {kind: example._asdict() for kind, example in found.examples.items()}
    return repairs({"repaired": found.repaired, "repair_examples": examples})


def _sha256(sources: Sequence[Source]) -> str:
    if len(sources) == 1:
        return sources[0].sha256
    return hashlib.sha256("".join(source.sha256 for source in sources).encode()).hexdigest()


def _rows_sha256(rows: pa.Table) -> str:
    """A hash of the rows' tokens and labels, which also another template, tokenizer or lab may change."""
    digest = hashlib.sha256()
    for column in ("input_ids", "labels"):
        for chunk in rows[column].chunks:
            digest.update(chunk.flatten().to_numpy())
    digest.update(rows["length"].to_numpy())
    return digest.hexdigest()

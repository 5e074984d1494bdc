"""The rows that were left out, each with its file, its number and the reason, in dropped.jsonl."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from finelab.errors import LabError

EXPECTED = (
    "expected turns in `conversations` or `messages`, or a question and an answer as in prompt/completion or "
    "instruction/output"
)
LONGEST = 20_000  # characters of a dropped row that are kept


class DroppedRows:
    """Counts the rows that are left out and writes each of them down.

    `first` says for each reason which row it was met in first.
    """

    def __init__(self, path: Path) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def add(self, file: str, row: int, reason: str, value: Any = None) -> None:
        """Leave out row `row` of `file`; `value` is the row as it was read, where it is at hand."""
        self.counts[reason] += 1
        self.first.setdefault(reason, f"{file}, row {row}")
        try:
            text = json.dumps(value, default=str)
        except (RecursionError, ValueError):
            text = "null"  # nested too deeply to be written
        shown = f'"value": {text}' if len(text) <= LONGEST else f'"value_cut": {json.dumps(text[:LONGEST])}'
        record = json.dumps({"file": file, "row": row, "reason": reason}, ensure_ascii=False)
        self._file.write(f"{record[:-1]}, {shown}}}\n")

    def add_file(self, path: Path) -> None:
        """Take over the rows that another `DroppedRows` has written to `path`."""
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                self.counts[row["reason"]] += 1
                self.first.setdefault(row["reason"], f"{row['file']}, row {row['row']}")
                self._file.write(line)

    def check(self, rows_in: int, max_dropped_share: float) -> None:
        """LabError with a table of the reasons when no row is left, or too large a share was dropped."""
        lost = self.counts.total()
        if lost < rows_in and lost <= max_dropped_share * rows_in:
            return
        lines = [
            f"{count:9,}  {count / max(rows_in, 1):6.1%}  {reason} (first: {self.first[reason]})"
            for reason, count in self.counts.most_common(10)
        ]
        limit, way = f"; the limit is data.max_dropped_share = {max_dropped_share}", " or raise the limit"
        if lost >= rows_in:
            limit = way = ""  # no limit would help
        raise LabError(
            f"{lost:,} of {rows_in:,} rows cannot be used{limit}.\n"
            + "\n".join(["     rows   share  reason", *lines])
            + f"\n{EXPECTED[0].upper()}{EXPECTED[1:]}; mend these rows{way}."
        )

    def __enter__(self) -> DroppedRows:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def none_usable(rows: int, reasons: Counter[str], max_seq_length: int) -> LabError:
    """What to say when not one of so many rows can be used; the commonest reason says what to change."""
    most = max(reasons, key=lambda reason: reasons[reason], default="")
    way = ""
    if "max_seq_length" in most:
        way = f"raise model.max_seq_length = {max_seq_length}, or "
    elif "min_trained_tokens" in most:
        way = "lower data.min_trained_tokens, or "
    elif "chat template" not in most:
        way = f"{EXPECTED}: "
    return LabError(f"none of {rows:,} rows can be used ({most_common(reasons)}); {way}mend the rows.")


def most_common(reasons: Counter[str]) -> str:
    """The three commonest reasons, each with the number of its rows."""
    return ", ".join(f"{count:,} x {why}" for why, count in reasons.most_common(3))

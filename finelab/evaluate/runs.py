"""Several runs side by side on the rows that all of them held out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finelab.errors import LabError
from finelab.evaluate.compare import NATS, NO_CHANGE, TOO_FEW, Comparison, by_group, questions_of
from finelab.evaluate.heldout import TokenLosses, row_totals
from finelab.evaluate.tokens import answer_bytes
from finelab.files import write_json
from finelab.run import Run

LOSSES = "heldout_losses.json"
_DIFFER = "differ on these rows"
_PAIR = {NO_CHANGE: "not told apart on these rows", TOO_FEW: TOO_FEW}
NOTE = "one seed each: notebook 07 tells settings apart"


@dataclass(frozen=True)
class SideBySide:
    """Each run against its base and each pair, by kind, on `rows` conversations that all held out whole.

    The intervals of a kind's pairs hold together at 95 % (Bonferroni). They cover the choice of rows, not
    that of seeds: two seeds of one setting are two models, and may differ.
    """

    rows: int
    to_base: dict[str, dict[str, Comparison]]
    pairs: dict[tuple[str, str], dict[str, Comparison]]

    def __str__(self) -> str:
        lines = [
            f"base -> {name}, held out by {kind}: {each}"
            for name, kinds in self.to_base.items()
            for kind, each in kinds.items()
        ]
        lines += [
            f"{first} -> {second}, held out by {kind}: {each.measured}: {_PAIR.get(each.verdict, _DIFFER)}"
            for (first, second), kinds in self.pairs.items()
            for kind, each in kinds.items()
        ]
        return "\n".join([*lines, NOTE] if self.pairs else lines)


def keep_losses(run: Run, tokenizer: Any, rows: Any, base: TokenLosses, tuned: TokenLosses) -> None:
    """Write each held-out row's kind, question, nats, tokens and bytes to the run's `heldout_losses.json`."""
    told = {
        "heldout": rows["heldout"],
        "question": questions_of(rows),
        "tokens": [len(row) for row in base],
        "bytes": answer_bytes(tokenizer, rows),
        "base": row_totals(base)[:, 0].tolist(),
        "tuned": row_totals(tuned)[:, 0].tolist(),
    }
    kept = zip(rows["id"], zip(*told.values(), strict=True), strict=True)
    write_json(run.folder / LOSSES, {id_: dict(zip(told, row, strict=True)) for id_, row in kept})


def shared_rows(kept: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """The ids of the rows that all have, and with the same answer: one may have been cut shorter."""
    common = sorted(set.intersection(*(set(losses) for losses in kept)))
    return [id_ for id_ in common if len({losses[id_]["bytes"] for losses in kept}) == 1]


def compare_runs(runs: Sequence[Run]) -> SideBySide:
    """Hold runs against their bases and each other; LabError when they share no held-out row.

    In nats per token when all have the same tokens in each row, else in bits per byte.
    """
    kept = {run.name: _read(run) for run in runs}
    shared = shared_rows(list(kept.values()))
    if not shared:
        raise LabError(
            f"the runs {', '.join(kept)} have no held-out row in common that is cut alike: give them the "
            "same data, data.heldout_share and model.max_seq_length, or compare those that have."
        )
    same_tokens = len({tuple(losses[id_]["tokens"] for id_ in shared) for losses in kept.values()}) == 1
    weight, scale, unit = ("tokens", 1.0, NATS) if same_tokens else ("bytes", np.log(2), "bits per byte")
    first_run = next(iter(kept.values()))
    kinds, questions = ([first_run[id_][name] for id_ in shared] for name in ("heldout", "question"))

    def column(name: str, model: str) -> NDArray[np.float64]:
        rows = [kept[name][id_] for id_ in shared]
        return np.array([(row[model] / scale, row[weight]) for row in rows])

    def by_kind(
        base: NDArray[np.float64], tuned: NDArray[np.float64], level: float = 0.95
    ) -> dict[str, Comparison]:
        return by_group(kinds, base, tuned, ("row", "family"), questions, level=level, unit=unit)

    couples = list(combinations(kept, 2))
    level = 1 - 0.05 / max(1, len(couples))
    return SideBySide(
        rows=len(shared),
        to_base={name: by_kind(column(name, "base"), column(name, "tuned")) for name in kept},
        pairs={
            (first, second): by_kind(column(first, "tuned"), column(second, "tuned"), level)
            for first, second in couples
        },
    )


def _read(run: Run) -> dict[str, Any]:
    path = run.require(run.folder / LOSSES, "06_evaluate")
    try:
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except json.JSONDecodeError as error:
        raise LabError(f"{path}: not valid JSON ({error}); run notebook 06_evaluate of it again.") from error

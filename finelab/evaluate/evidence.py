"""The one place where an evaluation becomes evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finelab.evaluate.compare import Comparison
from finelab.evaluate.neutral import NEUTRAL_SHA256

Comparisons = Mapping[str, Comparison]


def evidence(
    results: Comparisons,
    weights: str,
    *,
    by_source: Comparisons | None = None,
    by_length: Comparisons | None = None,
    bits_per_byte: Comparison | None = None,
    by_token_class: Comparisons | None = None,
    forgetting: Comparisons | None = None,
    answers: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The evidence's `evaluation`: the rows' comparison, the families' below it, and what else was measured.

    `results` are what `by_kind` gives, `weights` is what the model's were in, as a profile says it, the other
    arguments are what the functions of their names give.
    """
    found = results["row"].evidence("heldout_nll_") | {"weights": weights}
    if "family" in results:
        found["families"] = results["family"].evidence("heldout_nll_")
    groups = {"by_source": by_source, "by_length": by_length, "by_token_class": by_token_class}
    for name, group in groups.items():
        if group is not None:
            found[name] = {key: each.evidence() for key, each in group.items()}
    if bits_per_byte is not None:
        found["bits_per_byte"] = bits_per_byte.evidence()
    if forgetting is not None:
        parts = {key: each.evidence() for key, each in forgetting.items()}
        found["forgetting"] = {"sha256": NEUTRAL_SHA256, **parts}
    if answers is not None:
        found["answers"] = dict(answers)
    return found

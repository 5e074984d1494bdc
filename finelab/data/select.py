"""Which conversations of which sources are used: filters, a limit, and a mix of sources by weight.

What is picked depends on content hashes alone, never on the order of rows, and stays picked when
rows are added, as far as the numbers allow.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finelab.data.conversation import Conversation
from finelab.errors import LabError

Hashes = Sequence[str] | NDArray[np.uint64]
NO_LANGUAGE = "zxx"  # what py3langid calls numbers, markup and code
ENOUGH, PLENTY = 150, 1000  # characters that tell a language in most cases, and in all (0.6 ms)


def unwanted(
    conversation: Conversation, languages: Sequence[str] = (), min_score: float | None = None
) -> str | None:
    """The reason for which a conversation is left out, None when it is used.

    A row without a score is used, and so is one in no language, such as numbers or code: a filter
    leaves out only what it knows to be wrong. `languages` are codes that `check_languages` accepts.
    """
    if min_score is not None and conversation.score is not None and conversation.score < min_score:
        return "score below data.min_score"
    if languages and (found := language(conversation)) not in (*languages, NO_LANGUAGE):
        return f"language {found} is not in data.languages"
    return None


def language(conversation: Conversation) -> str:
    """The two-letter code of the language of the answers, or `NO_LANGUAGE`.

    Short answers, such as a name or a number, are filled up to `ENOUGH` with the questions: 456 of
    our 459 rows are found English so, and the other 3 are not English; by the answers alone, 418.
    """
    answers = "\n".join(each["content"] for each in conversation.messages if each["role"] == "assistant")
    questions = "\n".join(each["content"] for each in conversation.messages if each["role"] == "user")
    text = answers[:PLENTY] + "\n" + questions[: max(0, ENOUGH - len(answers))]
    code: str = _identifier().classify(text)[0]
    return code


def check_languages(languages: Sequence[str]) -> None:
    """LabError for a code that cannot be detected, with those that can."""
    known = sorted(set(_identifier().labels) - {NO_LANGUAGE}) if languages else []
    for code in languages:
        if code not in known:
            raise LabError(f"data.languages: {code!r} is not known; the codes are: {', '.join(known)}.")


@cache
def _identifier() -> Any:
    """py3langid's model, 0.9 s to load, for the languages with a two-letter code.

    Without this limit Chinese in traditional characters is often taken for Cantonese (yue).
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages([code for code in identifier.labels if len(code) == 2 or code == NO_LANGUAGE])
    return identifier


def limit(ids: Hashes, rows: int | None) -> list[int]:
    """The indices of the `rows` lowest content hashes, in ascending order; all without a limit."""
    if rows is None or rows >= len(ids):
        return list(range(len(ids)))
    return sorted(heapq.nsmallest(rows, range(len(ids)), key=ids.__getitem__))


def mix(
    ids_by_source: Sequence[Hashes], weights: Sequence[float] = (), rows: int | None = None
) -> list[list[int]]:
    """For each source the indices of its rows in the mix, in ascending order.

    The mix is the largest in which no row is repeated and each source has its weight's share, to
    within one row; of at most `rows` rows. Without weights the shares are those of all rows.
    LabError when the weights do not fit the sources.
    """
    sizes = [len(ids) for ids in ids_by_source]
    if weights:
        _check_weights(weights, sizes)
    counts = _counts(sizes, weights or sizes, rows)
    return [limit(ids, count) for ids, count in zip(ids_by_source, counts, strict=True)]


def _counts(sizes: Sequence[int], weights: Sequence[float], rows: int | None) -> list[int]:
    """How many rows each source gives; the rows that rounding leaves go to the largest remainders."""
    exact = [Fraction(str(weight)) for weight in weights]  # 0.7 as it is written: 7 / 10
    if not any(exact):
        return [0] * len(sizes)
    shares = [weight / sum(exact) for weight in exact]
    total = min(math.floor(size / share) for size, share in zip(sizes, shares, strict=True) if share)
    if rows is not None:
        total = min(total, rows)
    counts = [math.floor(total * share) for share in shares]
    remainders = [count - total * share for count, share in zip(counts, shares, strict=True)]
    for source in sorted(range(len(sizes)), key=remainders.__getitem__)[: total - sum(counts)]:
        counts[source] += 1
    return counts


def _check_weights(weights: Sequence[float], sizes: Sequence[int]) -> None:
    if len(weights) != len(sizes):
        raise LabError(
            f"data.weights has {len(weights)} numbers and data.sources {len(sizes)} sources; "
            "give one number for each source, or none."
        )
    for index, (weight, size) in enumerate(zip(weights, sizes, strict=True)):
        if not (math.isfinite(weight) and weight >= 0):
            raise LabError(f"data.weights[{index}] = {weight}: expected a number that is not below 0.")
        if weight and not size:
            raise LabError(
                f"data.weights[{index}] = {weight}, but no row of that source is left; "
                "set the weight to 0, or take the source out of data.sources."
            )
    if not any(weights):
        raise LabError("data.weights are all 0; at least one must be above 0.")

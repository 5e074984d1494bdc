"""What was learned, token by token: format against content, and the answers that changed most."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finelab.data import IGNORE
from finelab.evaluate.compare import Comparison, compare, questions_of
from finelab.evaluate.heldout import TokenLosses

END, SPACE, PUNCTUATION, CONTENT = "end token", "white space", "punctuation and markup", "content"
FORMAT = (END, SPACE, PUNCTUATION)


def labelled(row: Mapping[str, Any]) -> list[int]:
    """The tokens of a row that have a loss, in their order."""
    return [label for label in row["labels"][1:] if label != IGNORE]


def token_class(text: str, special: bool = False) -> str:
    """What a token is for: the end token, white space, punctuation and markup, or content.

    Content has a letter, a digit, or a sign that is not in ASCII's punctuation, such as a degree or an emoji.
    """
    if special:
        return END
    if not text.strip():
        return SPACE
    signs = [each for each in text if not each.isspace()]
    if all(sign in string.punctuation or unicodedata.category(sign).startswith("P") for sign in signs):
        return PUNCTUATION
    return CONTENT


def by_token_class(tokenizer: Any, rows: Any, base: TokenLosses, tuned: TokenLosses) -> dict[str, Comparison]:
    """A comparison of the losses of each class of token, of all format tokens, and of content."""
    classes, questions = _classes(tokenizer, rows), questions_of(rows)
    wanted = {kind: (kind,) for kind in (END, SPACE, PUNCTUATION)} | {"format": FORMAT, CONTENT: (CONTENT,)}
    found = {}
    for name, kinds in wanted.items():
        chosen = [np.isin(each, kinds) for each in classes]
        if any(each.any() for each in chosen):
            found[name] = compare(_totals(base, chosen), _totals(tuned, chosen), questions=questions)
    return found


def format_share(base: TokenLosses, tuned: TokenLosses, tokenizer: Any, rows: Any) -> float:
    """The share of all of the change in nats that format tokens make; NaN when nothing changed."""
    changes = np.concatenate([after - before for before, after in zip(base, tuned, strict=True)])
    is_format = np.isin(np.concatenate(_classes(tokenizer, rows)), FORMAT)
    total = changes.sum(dtype=np.float64)
    return float(changes[is_format].sum(dtype=np.float64) / total) if total else float("nan")


def most_changed(
    base: NDArray[np.float64], tuned: NDArray[np.float64], count: int = 10
) -> tuple[list[int], list[int]]:
    """The rows whose loss per token fell most, and those in which it rose most, the strongest first."""
    changes = (tuned[:, 0] - base[:, 0]) / np.maximum(base[:, 1], 1)
    order = np.argsort(changes, kind="stable").tolist()
    fell = [index for index in order if changes[index] < 0]
    rose = [index for index in reversed(order) if changes[index] > 0]
    return fell[:count], rose[:count]


def token_changes(
    tokenizer: Any, row: Mapping[str, Any], base: NDArray[np.float32], tuned: NDArray[np.float32]
) -> tuple[list[str], list[float]]:
    """A row's tokens as text, and how far each one's loss moved; NaN for a token without a label."""
    changes = iter((tuned - base).tolist())
    moved = [float("nan")] + [
        next(changes) if label != IGNORE else float("nan") for label in row["labels"][1:]
    ]
    return [tokenizer.decode([token]) for token in row["input_ids"]], moved


def answer_bytes(tokenizer: Any, rows: Any) -> list[int]:
    """The bytes of each row's answers as text, without their end tokens and outer white space; at least 1."""
    texts = tokenizer.batch_decode([labelled(row) for row in rows], skip_special_tokens=True)
    return [max(1, len(text.strip().encode())) for text in texts]


def _classes(tokenizer: Any, rows: Any) -> list[NDArray[np.str_]]:
    """The class of each labelled token; each id of the vocabulary is looked at once."""
    ids = [labelled(row) for row in rows]
    special = set(tokenizer.all_special_ids)
    known = {token: token_class(tokenizer.decode([token]), token in special) for token in set().union(*ids)}
    return [np.array([known[token] for token in row], dtype=np.str_) for row in ids]


def _totals(losses: TokenLosses, chosen: list[NDArray[np.bool_]]) -> NDArray[np.float64]:
    """Nats and number of the chosen tokens in each row."""
    pairs = zip(losses, chosen, strict=True)
    return np.array([(row[mask].sum(dtype=np.float64), mask.sum()) for row, mask in pairs])

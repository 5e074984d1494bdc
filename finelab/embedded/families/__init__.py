"""Ten families of conversations whose answers are computed, and can be read back and checked.

A family's module says what its questions are, and how the words of a finished text are found to be right
on another path than the one that made them. What the families share is in `common`.
"""

from random import Random

from finelab.embedded.families import (
    counting,
    date_arithmetic,
    follow_up,
    json_extraction,
    list_formatting,
    sorting,
    string_edits,
    system_style,
    table_lookup,
    unit_conversion,
)
from finelab.embedded.families.common import Conversation, Family, Row

__all__ = [
    "FAMILIES",
    "Conversation",
    "Family",
    "Row",
    "check_answer",
    "make_conversation",
    "result_of",
]

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (
        unit_conversion,
        date_arithmetic,
        sorting,
        json_extraction,
        list_formatting,
        string_edits,
        follow_up,
        system_style,
        counting,
        table_lookup,
    )
}


def make_conversation(name: str, rng: Random) -> Row:
    """A row of the data set from the named family."""
    family = FAMILIES[name]
    return {"conversations": family.make(rng), "source": name, "score": family.score}


def check_answer(row: Row) -> bool:
    """Whether the answers of a generated row are right."""
    family = FAMILIES[row["source"]]
    try:
        return family.check(row["conversations"])
    except (LookupError, ValueError):
        return False  # a text that cannot be read back is not an answer


def result_of(row: Row) -> str | None:
    """The words that alone answer the row's last question; None for a row that no family made.

    A row with a family's name whose own answer that family does not find right is nobody's.
    """
    if row["source"] not in FAMILIES or not check_answer(row):
        return None
    return FAMILIES[row["source"]].result(row["conversations"])

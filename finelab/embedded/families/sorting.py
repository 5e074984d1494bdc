"""Numbers and words put in order."""

from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

from finelab.embedded.families.common import COLLECTIONS, Kind, Words, family_of, join, split

# The orders, and whether the largest or the last letter comes first.
NUMERIC = {"from smallest to largest": False, "from largest to smallest": True}
ALPHABETIC = {"in alphabetical order": False, "in reverse alphabetical order": True}


def _fill_order(rng: Random) -> dict[str, object]:
    what = rng.choice(("numbers", "scores", "prices", *COLLECTIONS))
    words = COLLECTIONS.get(what)
    order, backward = rng.choice(tuple((ALPHABETIC if words else NUMERIC).items()))
    items: list[Any] = rng.sample(words or range(10, 250), rng.randrange(4, 7))
    ranked = [str(item) for item in sorted(items, reverse=backward)]
    return {
        "what": what,
        "order": order,
        "items": join([str(item) for item in items]),
        "sorted": ", ".join(ranked),
        "first": ranked[0],
        "last": ranked[-1],
    }


def _order_holds(words: Words) -> bool:
    items, ranked = split(words["items"]), words["sorted"].split(", ")
    keys: list[Any] = [int(item) for item in ranked] if words["order"] in NUMERIC else ranked
    backward = (NUMERIC | ALPHABETIC)[words["order"]]
    return (
        Counter(items) == Counter(ranked)
        and all(a > b if backward else a < b for a, b in pairwise(keys))
        and (words["first"], words["last"]) == (ranked[0], ranked[-1])
    )


ORDER = Kind(
    questions=(
        "Sort these {what} {order}: {items}.",
        "Please list these {what} {order}: {items}.",
        "Can you arrange these {what} {order}? They are {items}.",
        "I have these {what}: {items}. List them {order}.",
        "{name} needs these {what} {order}: {items}.",
    ),
    answer="{sorted}. The list starts with {first} and ends with {last}.",
    result="sorted",
    fill=_fill_order,
    holds=_order_holds,
)
FAMILY = family_of("sorting", 4.4, ORDER)

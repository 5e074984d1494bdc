"""Conversations whose later questions build on the earlier ones: a bill, or a list that changes."""

from random import Random

from finelab.embedded.families.common import (
    LISTS,
    Conversation,
    Family,
    ask,
    exchanges,
    join,
    match,
    read,
    split,
    talk,
)
from finelab.embedded.families.list_formatting import BULLETS, laid_out, layout

THINGS = split(
    "lunch, a book, a train ticket, a scarf, a museum visit, a phone case, a plant, "
    "a concert ticket, a raincoat, a haircut"
)
SPENT = (
    "I spent {start} dollars on {first} and {price} dollars on {thing}. How much is that together?",
    "So far I have paid {start} dollars for {first} and {price} dollars for {thing}. What is the total?",
    "{name} paid {start} dollars for {first} and {price} dollars for {thing}. What does that come to?",
)
ADDED = (
    "Then there was {thing} for {price} dollars. What is the total now?",
    "Add {price} dollars for {thing}.",
    "I forgot {thing}, which cost {price} dollars. And now?",
)
REFUNDED = (
    "The money for {refunded} was paid back in full. What remains?",
    "Now take off the price of {refunded}.",
)
TOTAL = "{total} dollars. That is {left} {sign} {right}."

START = ("Start a {topic} list: {items}.", "Make me a {topic} list: {items}.")
APPEND = ('Add "{added}" at the end.', 'Please also put "{added}" on it, at the end.')
REMOVE = ('Take "{removed}" off the list.', 'Please remove "{removed}" again.')
SORT = ("Now sort it alphabetically.", "Can you put it in alphabetical order?")
LISTED = "{list}\n\nThe list has {count} items."


def _make_total(rng: Random) -> Conversation:
    x, y, z = rng.sample(THINGS, 3)
    a, b, c = (rng.randrange(5, 60) for _ in range(3))
    turns = [ask(rng, SPENT, start=a, first=x, price=b, thing=y), _sum_up(a, b)]
    turns += [ask(rng, ADDED, price=c, thing=z), _sum_up(a + b, c)]
    if rng.random() < 0.5:
        turns += [ask(rng, REFUNDED, refunded=x), _sum_up(a + b + c, -a)]
    return talk(*turns)


def _sum_up(before: int, change: int) -> str:
    sign = "-" if change < 0 else "+"
    return TOTAL.format(total=before + change, left=before, sign=sign, right=abs(change))


def _total_holds(turns: list[tuple[str, str]]) -> bool:
    ledger: dict[str, int] = {}
    for question, answer in turns:
        asked, told = read(question, *SPENT, *ADDED, *REFUNDED), read(answer, TOTAL)
        if "first" in asked:
            ledger = {asked["first"]: int(asked["start"])}
        before = sum(ledger.values())
        if "refunded" in asked:
            sign, change = "-", ledger.pop(asked["refunded"])
        else:
            sign, change = "+", int(asked["price"])
            ledger[asked["thing"]] = change
        numbers = {"total": sum(ledger.values()), "left": before, "sign": sign, "right": change}
        if told != {key: str(value) for key, value in numbers.items()}:
            return False
    return True


def _make_list(rng: Random) -> Conversation:
    topic = rng.choice(("shopping", "packing"))
    *items, item = rng.sample(LISTS[topic], rng.randrange(4, 6))
    turns = [ask(rng, START, topic=topic, items=join(items)), _show(items)]
    items.append(item)
    turns += [ask(rng, APPEND, added=item), _show(items)]
    if rng.random() < 0.3:
        turns += [ask(rng, SORT), _show(sorted(items))]
    elif rng.random() < 0.5:
        gone = rng.choice(items[:-1])
        turns += [ask(rng, REMOVE, removed=gone), _show([item for item in items if item != gone])]
    return talk(*turns)


def _show(items: list[str]) -> str:
    return LISTED.format(list=layout(BULLETS, items), count=len(items))


def _list_holds(turns: list[tuple[str, str]]) -> bool:
    items: list[str] = []
    for question, answer in turns:
        asked, told = read(question, *START, *APPEND, *REMOVE, *SORT), read(answer, LISTED)
        if "items" in asked:
            items = split(asked["items"])
        elif "added" in asked:
            items.append(asked["added"])
        elif "removed" in asked:
            items.remove(asked["removed"])
        else:
            items.sort()
        if laid_out(BULLETS, told["list"]) != items or int(told["count"]) != len(items):
            return False
    return True


def _make(rng: Random) -> Conversation:
    return rng.choice((_make_total, _make_list))(rng)


def _check(conversation: Conversation) -> bool:
    turns = exchanges(conversation)
    return _list_holds(turns) if match(turns[0][0], *START) else _total_holds(turns)


def _result(conversation: Conversation) -> str:
    _, answer = exchanges(conversation)[-1]
    if told := match(answer, LISTED):
        return told["list"]
    return f"{read(answer, TOTAL)['total']} dollars"


FAMILY = Family("follow-up", _make, _check, _result, 4.9)

"""What the families share: templates that are filled and read back, lists in English, and words."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

Turn = dict[str, str]
Conversation = list[Turn]
Row = dict[str, Any]
Words = dict[str, str]


@dataclass(frozen=True)
class Family:
    """One source of the data set: it makes conversations and checks them.

    `result` gives of a right conversation the words that alone answer its last question.
    """

    name: str
    make: Callable[[Random], Conversation]
    check: Callable[[Conversation], bool]
    result: Callable[[Conversation], str]
    score: float


@dataclass(frozen=True)
class Kind:
    """One sort of question: templates, what fills them, and whether the words read back are right.

    `result` names the word of the answer that alone answers the question.
    """

    questions: Sequence[str]
    answer: str
    result: str
    fill: Callable[[Random], Mapping[str, object]]
    holds: Callable[[Words], bool]


def family_of(name: str, score: float, *kinds: Kind) -> Family:
    """A family of single questions, each of one of the kinds."""

    def make(rng: Random) -> Conversation:
        kind = rng.choice(kinds)
        words = kind.fill(rng)
        return talk(ask(rng, kind.questions, **words), kind.answer.format(**words))

    def check(conversation: Conversation) -> bool:
        [(question, answer)] = exchanges(conversation)
        for kind in kinds:
            if (asked := match(question, *kind.questions)) is not None:
                told = read(answer, kind.answer)
                repeated = all(asked[key] == told[key] for key in asked.keys() & told.keys())
                return repeated and kind.holds(asked | told)
        return False

    def result(conversation: Conversation) -> str:
        [(question, answer)] = exchanges(conversation)
        kind = next(kind for kind in kinds if match(question, *kind.questions) is not None)
        return read(answer, kind.answer)[kind.result].removeprefix("about ")

    return Family(name, make, check, result, score)


def ask(rng: Random, templates: Sequence[str], **words: object) -> str:
    """A question from one of the templates."""
    return rng.choice(templates).format(name=rng.choice(NAMES), **words)


@cache
def pattern(template: str) -> re.Pattern[str]:
    """The expression that reads a filled template back."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(template)), re.DOTALL)


def match(text: str, *templates: str) -> Words | None:
    """The words in the text by the first template that fits all of it."""
    found = (pattern(template).fullmatch(text) for template in templates)
    return next((fit.groupdict() for fit in found if fit), None)


def read(text: str, *templates: str) -> Words:
    """What `match` finds, which has to be there."""
    words = match(text, *templates)
    if words is None:
        raise ValueError(f"no template fits: {text}")
    return words


def talk(*values: str, system: str | None = None) -> Conversation:
    """A conversation in which the user and the model take turns."""
    start = [{"from": "system", "value": system}] if system else []
    turns = zip(("human", "gpt") * len(values), values, strict=False)
    return start + [{"from": role, "value": value} for role, value in turns]


def exchanges(conversation: Conversation) -> list[tuple[str, str]]:
    """The pairs of question and answer."""
    values = [turn["value"] for turn in conversation if turn["from"] != "system"]
    return list(zip(values[::2], values[1::2], strict=True))


def join(items: Sequence[str]) -> str:
    """A list as English writes it: "a", "a and b", "a, b, and c"."""
    if len(items) < 3:
        return " and ".join(items)
    return f"{', '.join(items[:-1])}, and {items[-1]}"


def split(text: str) -> list[str]:
    """The items of a list that `join` wrote, or of one with commas only."""
    return re.split(r", and |, | and ", text)


def plural(noun: str, number: int) -> str:
    """The noun as it stands after the number."""
    return noun if number == 1 else f"{noun}s"


def amount(number: int, noun: str) -> str:
    """The number and its noun."""
    return f"{number} {plural(noun, number)}"


NAMES = split(
    "Amara, Bilal, Carmen, Daiki, Elif, Farah, Goran, Hana, Ivan, Jonas, Kofi, Leila, Mateo, "
    "Nadia, Oscar, Priya, Rosa, Sanna, Tariq, Uma, Viktor, Wen, Yusuf, Zofia"
)
CITIES = split(
    "Accra, Bergen, Cairo, Dakar, Edinburgh, Geneva, Hanoi, Istanbul, Kyoto, Lima, Mumbai, "
    "Nairobi, Oslo, Porto, Quito, Riga, Seville, Toronto, Utrecht, Warsaw"
)
FRUITS = split("apples, bananas, cherries, figs, grapes, lemons, mangoes, pears, plums, quinces")
TOOLS = split("brushes, chisels, clamps, drills, files, hammers, rulers, saws, wrenches")
COLLECTIONS = {"names": NAMES, "cities": CITIES, "fruits": FRUITS, "tools": TOOLS}
LISTS = {
    "shopping": split(
        "rice, milk, eggs, bread, butter, olive oil, lentils, oats, tomatoes, spinach, yogurt, "
        "coffee, honey, black pepper, onions, paper towels"
    ),
    "to-do": split(
        "water the plants, call the dentist, pay the rent, fold the laundry, return the books, "
        "charge the camera, clean the oven, book the train, feed the cat, print the tickets"
    ),
    "packing": split(
        "passport, rain jacket, toothbrush, phone charger, water bottle, warm socks, sunglasses, "
        "notebook, headphones, swimsuit"
    ),
}
COLORS = split("red, blue, green, yellow, white, purple")
DAYS = split("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
# Sentences with a gap, and the words that can stand in it.
SENTENCES = {
    "Please bring the {} folder to the meeting.": COLORS,
    "The {} kite flew over the old bridge.": COLORS,
    "She painted the {} door before lunch.": COLORS,
    "We parked next to the {} van at the station.": COLORS,
    "Our next rehearsal is on {} after work.": DAYS,
    "The shop on the corner closes early on {}.": DAYS,
    "Could you send me the notes by {} morning?": DAYS,
    "My cousin moved to {} with two suitcases.": CITIES,
    "The night train to {} leaves from platform nine.": CITIES,
    "They sell fresh {} at the market near the river.": FRUITS,
    "Grandma packed {} and cheese for the trip.": FRUITS,
    "He keeps the {} in the cupboard under the stairs.": TOOLS,
}

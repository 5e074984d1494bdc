"""Ten families of conversations whose answers are computed, and can be read back and checked.

Most families are made of kinds. A kind has templates for the question and one for the answer;
`fill` computes the words that go into both, and `holds` takes the words that were read back out of
the finished text and decides, on a path of its own, whether the answer is right.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from itertools import pairwise
from random import Random
from typing import Any

Turn = dict[str, str]
Conversation = list[Turn]
Row = dict[str, Any]
Words = dict[str, str]


@dataclass(frozen=True)
class Family:
    """One source of the data set: it makes conversations and checks them."""

    name: str
    make: Callable[[Random], Conversation]
    check: Callable[[Conversation], bool]
    score: float


@dataclass(frozen=True)
class Kind:
    """One sort of question: its templates, the words that fill them, and whether words hold."""

    questions: tuple[str, ...]
    answer: str
    fill: Callable[[Random], Words]
    holds: Callable[[Words], bool]


# --------------------------------------------------------------------------- templates, both ways


@cache
def pattern(template: str) -> re.Pattern[str]:
    """The expression that reads a filled template back."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(template)), re.DOTALL)


def read(templates: tuple[str, ...], text: str) -> Words:
    """The words in the text by the first template that fits all of it."""
    for template in templates:
        if match := pattern(template).fullmatch(text):
            return match.groupdict()
    raise ValueError(f"no template fits: {text}")


def fits(templates: tuple[str, ...], text: str) -> bool:
    """Whether one of the templates fits the whole text."""
    return any(pattern(template).fullmatch(text) for template in templates)


def ask(rng: Random, templates: tuple[str, ...], **words: object) -> str:
    """A question from one of the templates."""
    return rng.choice(templates).format(name=rng.choice(NAMES), **words)


def talk(*values: str, system: str | None = None) -> Conversation:
    """A conversation in which the user and the model take turns."""
    start = [{"from": "system", "value": system}] if system else []
    turns = zip(("human", "gpt") * len(values), values, strict=False)
    return start + [{"from": role, "value": value} for role, value in turns]


def exchanges(conversation: Conversation) -> list[tuple[str, str]]:
    """The pairs of question and answer."""
    values = [turn["value"] for turn in conversation if turn["from"] != "system"]
    return list(zip(values[::2], values[1::2], strict=True))


def family_of(name: str, score: float, *kinds: Kind) -> Family:
    """A family of single questions, each of one of the kinds."""

    def make(rng: Random) -> Conversation:
        kind = rng.choice(kinds)
        words = kind.fill(rng)
        return talk(ask(rng, kind.questions, **words), kind.answer.format(**words))

    def check(conversation: Conversation) -> bool:
        [(question, answer)] = exchanges(conversation)
        for kind in kinds:
            if fits(kind.questions, question):
                asked, told = read(kind.questions, question), read((kind.answer,), answer)
                repeated = all(asked[key] == told[key] for key in asked.keys() & told.keys())
                return repeated and kind.holds(asked | told)
        return False

    return Family(name, make, check, score)


def join(items: list[str]) -> str:
    """A list as English writes it: "a", "a and b", "a, b, and c"."""
    if len(items) < 3:
        return " and ".join(items)
    return f"{', '.join(items[:-1])}, and {items[-1]}"


def split(text: str) -> list[str]:
    """The items of a list that `join` wrote."""
    return re.split(r", and |, | and ", text)


def amount(number: int, noun: str) -> str:
    """A number and its noun in the singular or the plural."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# -------------------------------------------------------------------------------------- word bank


def _items(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


def _pairs(text: str) -> Words:
    return dict(pair.split(": ") for pair in text.split(", "))


NAMES = _items(
    "Amara, Bilal, Carmen, Daiki, Elif, Farah, Goran, Hana, Ivan, Jonas, Kofi, Leila, Mateo, "
    "Nadia, Oscar, Priya, Rosa, Sanna, Tariq, Uma, Viktor, Wen, Yusuf, Zofia"
)
PEOPLE = _items(
    "Mina Okafor, Łukasz Nowak, José Álvarez, Zoë Laurent, Søren Holm, Aylin Yıldız, Ravi Menon, "
    "Grace Mbeki, Linh Tran, Emil Björk, Noor Haddad, Hiro Tanaka, Ana Kovač, Samuel Reed"
)
CITIES = _items(
    "Accra, Bergen, Cairo, Dakar, Edinburgh, Geneva, Hanoi, Istanbul, Kyoto, Lima, Mumbai, "
    "Nairobi, Oslo, Porto, Quito, Riga, Seville, Toronto, Utrecht, Warsaw"
)
FRUITS = _items("apples, bananas, cherries, figs, grapes, lemons, mangoes, pears, plums, quinces")
TOOLS = _items("brushes, chisels, clamps, drills, files, hammers, rulers, saws, wrenches")
COLLECTIONS = {"names": NAMES, "cities": CITIES, "fruits": FRUITS, "tools": TOOLS}
LISTS = {
    "shopping": _items(
        "rice, milk, eggs, bread, butter, olive oil, lentils, oats, tomatoes, spinach, yogurt, "
        "coffee, honey, black pepper, onions, paper towels"
    ),
    "to-do": _items(
        "water the plants, call the dentist, pay the rent, fold the laundry, return the books, "
        "charge the camera, clean the oven, book the train, feed the cat, print the tickets"
    ),
    "packing": _items(
        "passport, rain jacket, toothbrush, phone charger, water bottle, warm socks, sunglasses, "
        "notebook, headphones, swimsuit"
    ),
}
COLORS = _items("red, blue, green, yellow, white, purple")
DAYS = _items("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
MONTHS = _items(
    "January, February, March, April, May, June, July, August, September, October, November, December"
)
# The sentences that string edits and counting work on, each with one word that can be exchanged.
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


def sentence(rng: Random) -> str:
    """A plain English sentence."""
    frame = rng.choice(tuple(SENTENCES))
    return frame.format(rng.choice(SENTENCES[frame]))


# -------------------------------------------------------------------------------- unit-conversion

# Smaller unit, larger unit, one of the larger, how many smaller ones that is, values to ask for.
CONVERSIONS = (
    ("kilometers", "miles", "mile", 1.609344, range(5, 90), range(2, 60)),
    ("centimeters", "inches", "inch", 2.54, range(10, 200, 5), range(2, 40)),
    ("feet", "meters", "meter", 1 / 0.3048, range(5, 120), range(2, 50)),
    ("pounds", "kilograms", "kilogram", 1 / 0.45359237, range(5, 180), range(2, 90)),
    ("grams", "ounces", "ounce", 28.349523125, range(50, 900, 25), range(2, 24)),
    ("liters", "US gallons", "US gallon", 3.785411784, range(5, 80), range(2, 30)),
    ("milliliters", "US cups", "US cup", 236.5882365, range(250, 1500, 50), range(2, 9)),
    ("minutes", "hours", "hour", 60, range(90, 600, 30), range(2, 36)),
    ("hours", "days", "day", 24, range(36, 200, 12), range(2, 15)),
    ("days", "weeks", "week", 7, range(21, 120, 7), range(2, 30)),
    ("megabytes", "gigabytes", "gigabyte", 1000, range(500, 9000, 500), range(2, 64)),
)
# The same units in meters, grams, liters, seconds or bytes: the check's own source.
SIZES = {
    "kilometers": 1000, "miles": 1609.344, "centimeters": 0.01, "inches": 0.0254,
    "feet": 0.3048, "meters": 1, "pounds": 453.59237, "kilograms": 1000, "grams": 1,
    "ounces": 28.349523125, "liters": 1, "US gallons": 3.785411784, "milliliters": 0.001,
    "US cups": 0.2365882365, "minutes": 60, "hours": 3600, "days": 86400, "weeks": 604800,
    "megabytes": 1e6, "gigabytes": 1e9,
}  # fmt: skip


def near(value: float, places: int, unit: str) -> str:
    """A quantity, called "about" where it had to be rounded."""
    text = f"{value:.{places}f}".rstrip("0").rstrip(".")
    return f"{text} {unit}" if abs(float(text) - value) < 1e-9 else f"about {text} {unit}"


def is_near(text: str, value: float, places: int, unit: str) -> bool:
    """Whether the text is the quantity to that many places, and says "about" only when rounded."""
    told = read(("about {number} {unit}", "{number} {unit}"), text)
    error = abs(float(told["number"]) - value)
    honest = text.startswith("about ") == (error > 1e-9)
    return told["unit"] == unit and honest and error <= 0.5 * 10**-places + 1e-9


def _fill_units(rng: Random) -> Words:
    small, large, one, factor, few, many = rng.choice(CONVERSIONS)
    down = rng.random() < 0.5
    unit, target = (large, small) if down else (small, large)
    value = rng.choice(many if down else few)
    return {
        "value": str(value),
        "unit": unit,
        "target": target,
        "result": near(value * factor if down else value / factor, 1, target),
        "one": one,
        "size": near(factor, 3, small),
        "verb": "multiply" if down else "divide",
        "by": f"{factor:.3f}".rstrip("0").rstrip("."),
    }


def _units_hold(words: Words) -> bool:
    unit, target = SIZES[words["unit"]], SIZES[words["target"]]
    small, large = sorted((words["unit"], words["target"]), key=lambda name: SIZES[name])
    factor = max(unit, target) / min(unit, target)
    return (
        is_near(words["result"], float(words["value"]) * unit / target, 1, words["target"])
        and is_near(words["size"], factor, 3, small)
        and words["size"].removeprefix("about ") == f"{words['by']} {small}"
        and words["one"] in (large.removesuffix("s"), large.removesuffix("es"))
        and words["verb"] == ("multiply" if unit > target else "divide")
    )


def _fill_degrees(rng: Random) -> Words:
    if rng.random() < 0.5:
        value, unit, target = rng.randrange(-20, 101), "Celsius", "Fahrenheit"
        result, how = near(value * 1.8 + 32, 1, "°F"), "Multiply by 1.8, then add 32"
    else:
        value, unit, target = rng.randrange(14, 213), "Fahrenheit", "Celsius"
        result, how = near((value - 32) / 1.8, 1, "°C"), "Subtract 32, then divide by 1.8"
    return {"value": str(value), "unit": unit, "target": target, "result": result, "how": how}


def _degrees_hold(words: Words) -> bool:
    value = float(words["value"])
    if words["unit"] == "Celsius":
        rule, result, sign = "Multiply by 1.8, then add 32", value * 9 / 5 + 32, "°F"
    else:
        rule, result, sign = "Subtract 32, then divide by 1.8", (value - 32) * 5 / 9, "°C"
    return words["how"] == rule and is_near(words["result"], result, 1, sign)


DEGREES = Kind(
    questions=(
        "What is {value} degrees {unit} in {target}?",
        "The display says {value} degrees {unit}. How much is that in {target}?",
    ),
    answer="{value} degrees {unit} is {result}. {how}.",
    fill=_fill_degrees,
    holds=_degrees_hold,
)
UNITS = Kind(
    questions=(
        "How many {target} are {value} {unit}?",
        "Convert {value} {unit} to {target}.",
        "What is {value} {unit} in {target}?",
        'My notes say "{value} {unit}". What is that in {target}?',
        "{name} wrote down {value} {unit}. How much is that in {target}?",
        "I need {value} {unit} in {target}. Can you convert it?",
    ),
    answer="{value} {unit} is {result}. One {one} is {size}, so {verb} by {by}.",
    fill=_fill_units,
    holds=_units_hold,
)

# -------------------------------------------------------------------------------- date-arithmetic


def spell(day: date) -> str:
    """A date as American English writes it, whatever the machine's language."""
    return f"{MONTHS[day.month - 1]} {day.day}, {day.year}"


def spelled(text: str) -> date:
    """The date that `spell` wrote."""
    month, day, year = text.replace(",", "").split(" ")
    return date(int(year), MONTHS.index(month) + 1, int(day))


def weeks(days: int) -> str:
    """A number of days in weeks and days."""
    whole, rest = divmod(days, 7)
    if rest == 0:
        return f"exactly {amount(whole, 'week')}"
    return f"{amount(whole, 'week')} and {amount(rest, 'day')}"


def in_weeks(text: str, days: int) -> bool:
    """Whether the text says that many days in weeks and days."""
    match = re.fullmatch(r"(?:exactly )?(\d+) weeks?(?: and ([1-6]) days?)?", text)
    return match is not None and int(match[1]) * 7 + int(match[2] or 0) == days


def weekday(day: date) -> str:
    """The English name of the day of the week."""
    return DAYS[day.weekday()]


def is_weekday(text: str, day: date) -> bool:
    """Whether the day of the week is right, counted from a Monday."""
    return DAYS.index(text) == (day - date(2024, 1, 1)).days % 7


def _some_day(rng: Random) -> date:
    return date(rng.randrange(2024, 2031), 1, 1) + timedelta(days=rng.randrange(8, 365))


def _fill_shift(rng: Random) -> Words:
    start, days, direction = _some_day(rng), rng.randrange(8, 120), rng.choice(("after", "before"))
    end = start + timedelta(days=days if direction == "after" else -days)
    return {
        "start": spell(start),
        "days": str(days),
        "direction": direction,
        "end": spell(end),
        "weekday": weekday(end),
        "weeks": weeks(days),
    }


def _shift_holds(words: Words) -> bool:
    start, end, days = spelled(words["start"]), spelled(words["end"]), int(words["days"])
    first, last = (start, end) if words["direction"] == "after" else (end, start)
    return (
        last.toordinal() - first.toordinal() == days
        and is_weekday(words["weekday"], end)
        and in_weeks(words["weeks"], days)
    )


def _fill_gap(rng: Random) -> Words:
    start, days = _some_day(rng), rng.randrange(8, 200)
    end = start + timedelta(days=days)
    return {"start": spell(start), "end": spell(end), "days": str(days), "weeks": weeks(days)}


def _gap_holds(words: Words) -> bool:
    days = int(words["days"])
    gap = spelled(words["end"]).toordinal() - spelled(words["start"]).toordinal()
    return gap == days and in_weeks(words["weeks"], days)


def _fill_weekday(rng: Random) -> Words:
    day = _some_day(rng)
    year = date(day.year, 1, 1)
    days = (day - year).days
    return {
        "start": spell(day),
        "weekday": weekday(day),
        "days": str(days),
        "weeks": weeks(days),
        "first": weekday(year),
        "year": spell(year),
    }


def _weekday_holds(words: Words) -> bool:
    day, days = spelled(words["start"]), int(words["days"])
    return (
        is_weekday(words["weekday"], day)
        and spelled(words["year"]) == date(day.year, 1, 1)
        and is_weekday(words["first"], date(day.year, 1, 1))
        and days == day.timetuple().tm_yday - 1
        and in_weeks(words["weeks"], days)
    )


SHIFT = Kind(
    questions=(
        "What date is {days} days {direction} {start}?",
        "Which date comes {days} days {direction} {start}?",
        "{name} needs the date {days} days {direction} {start}. Which date is it?",
        "My deadline is {days} days {direction} {start}. What date is that?",
    ),
    answer="{end}. It is a {weekday}, and {days} days are {weeks}.",
    fill=_fill_shift,
    holds=_shift_holds,
)
GAP = Kind(
    questions=(
        "How many days are there from {start} to {end}?",
        "How long is it from {start} until {end}, in days?",
        "{name} leaves on {start}, and returns on {end}. How many days later is that?",
    ),
    answer="{days} days. That is {weeks}, not counting {start}.",
    fill=_fill_gap,
    holds=_gap_holds,
)
WEEKDAY = Kind(
    questions=(
        "What day of the week is {start}?",
        "On which weekday does {start} fall?",
        "{name} has an appointment on {start}. Which day of the week is that?",
    ),
    answer="{weekday}. It is {days} days, or {weeks}, after {first}, {year}.",
    fill=_fill_weekday,
    holds=_weekday_holds,
)

# ---------------------------------------------------------------------------------------- sorting

# The orders, and whether the largest or the last letter comes first.
NUMERIC = {"from smallest to largest": False, "from largest to smallest": True}
ALPHABETIC = {"in alphabetical order": False, "in reverse alphabetical order": True}


def _fill_order(rng: Random) -> Words:
    what = rng.choice(("numbers", "scores", "prices", *COLLECTIONS))
    numeric = what not in COLLECTIONS
    pool: Any = range(10, 250) if numeric else COLLECTIONS[what]
    order, backward = rng.choice(tuple((NUMERIC if numeric else ALPHABETIC).items()))
    items = rng.sample(pool, rng.randrange(4, 7))
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
    fill=_fill_order,
    holds=_order_holds,
)

# -------------------------------------------------------------------------------- json-extraction

# Notes about the same keys. A key that a note does not mention becomes null.
NOTES = {
    ("name", "age", "city"): (
        "{name} is {age} years old and lives in {city}.",
        "{name}, who turned {age} last week, works in {city}.",
        "{name} has lived in {city} for many years.",
    ),
    ("customer", "item", "quantity"): (
        "{customer} ordered {quantity} {item} this morning.",
        "Please send {quantity} {item} to {customer}.",
        "{customer} would like to order {item}, but has not said how many.",
    ),
    ("event", "day", "time"): (
        "The {event} takes place on {day} at {time}.",
        "On {day} at {time} we meet for the {event}.",
        "The {event} was moved to {day}, and the time is still open.",
    ),
    ("traveler", "origin", "destination", "departure"): (
        "{traveler} takes the {departure} train from {origin} to {destination}.",
        "{traveler} is going from {origin} to {destination} by bus, leaving at {departure}.",
    ),
    ("product", "color", "price"): (
        "The {color} {product} costs {price} dollars.",
        "For {price} dollars you can have the {product} in {color}.",
        "We also sell the {product} in {color}; ask us for the price.",
    ),
}
CLOCK = tuple(f"{hour}:{minute}" for hour in range(7, 22) for minute in ("00", "15", "30", "45"))
VALUES: dict[str, tuple[object, ...]] = {
    "name": PEOPLE,
    "age": tuple(range(18, 80)),
    "city": CITIES,
    "customer": PEOPLE,
    "item": ("desk lamps", "notebooks", "office chairs", "blue pens", "coffee mugs", "folders"),
    "quantity": tuple(range(2, 60)),
    "event": ("choir rehearsal", "book club", "team lunch", "chess evening", "parent meeting"),
    "day": DAYS,
    "time": CLOCK,
    "traveler": PEOPLE,
    "origin": CITIES[::2],
    "destination": CITIES[1::2],
    "departure": CLOCK,
    "product": ("backpack", "umbrella", "bicycle helmet", "desk", "raincoat", "suitcase"),
    "color": COLORS,
    "price": tuple(range(9, 190)),
}


def _fill_json(rng: Random) -> Words:
    keys = rng.choice(tuple(NOTES))
    note = rng.choice(NOTES[keys])
    values = {key: rng.choice(VALUES[key]) if f"{{{key}}}" in note else None for key in keys}
    answer = json.dumps(values, ensure_ascii=False)
    return {"keys": join(list(keys)), "note": note.format(**values), "json": answer}


def _json_holds(words: Words) -> bool:
    keys = tuple(split(words["keys"]))
    found = read(NOTES[keys], words["note"])
    values = {key: int(text) if text.isdigit() else text for key, text in found.items()}
    answer = json.loads(words["json"])
    return tuple(answer) == keys and answer == dict.fromkeys(keys) | values


EXTRACTION = Kind(
    questions=(
        "Extract {keys} as JSON, with null for anything that is missing.\n\n{note}",
        "{note}\n\nGive me {keys} from this note as JSON. Use null for missing values.",
        "Turn this note into a JSON object with the keys {keys}. "
        "If a value is not stated, use null.\n\nNote: {note}",
        "Reply with JSON only. Read the note and fill in {keys}, using null for gaps: {note}",
    ),
    answer="{json}",
    fill=_fill_json,
    holds=_json_holds,
)

# -------------------------------------------------------------------------------- list-formatting

NUMBERED, BULLETS = "numbered list", "bullet list with dashes"
COMMAS, UPPERCASE = "single line separated by commas", "list in uppercase, one item per line"


def layout(style: str, items: list[str]) -> str:
    """The items written in the style."""
    if style == NUMBERED:
        return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
    if style == BULLETS:
        return "\n".join(f"- {item}" for item in items)
    if style == COMMAS:
        return ", ".join(items)
    return "\n".join(items).upper()


def laid_out(style: str, text: str) -> list[str]:
    """The items read back from a text in the style."""
    if style == COMMAS:
        return text.split(", ")
    if style == UPPERCASE:
        return text.lower().splitlines() if text.isupper() else []
    mark = r"- (.+)" if style == BULLETS else r"\d\. (.+)"
    items = re.findall(rf"^{mark}$", text, re.MULTILINE)
    in_order = "".join(re.findall(r"^\d", text, re.MULTILINE)) in ("", "123456789"[: len(items)])
    return items if in_order and len(items) == len(text.splitlines()) else []


def _fill_layout(rng: Random) -> Words:
    topic, style = rng.choice(tuple(LISTS)), rng.choice((NUMBERED, BULLETS, COMMAS, UPPERCASE))
    items = rng.sample(LISTS[topic], rng.randrange(3, 7))
    words = {"topic": topic, "style": style, "items": rng.choice(("; ", " / ", "\n")).join(items)}
    return words | {"list": layout(style, items), "count": str(len(items))}


def _layout_holds(words: Words) -> bool:
    items = re.split(r"; | / |\n", words["items"])
    return laid_out(words["style"], words["list"]) == items and int(words["count"]) == len(items)


LAYOUT = Kind(
    questions=(
        "Turn my {topic} list into a {style}:\n{items}",
        "Write this {topic} list as a {style}:\n{items}",
        "Here is {name}'s {topic} list:\n{items}\n\nPlease make it a {style}.",
        "Please format the {topic} list below as a {style}.\n\n{items}",
    ),
    answer="{list}\n\nThat is {count} items, in the order you gave them.",
    fill=_fill_layout,
    holds=_layout_holds,
)

# ----------------------------------------------------------------------------------- string-edits

CASES = {
    "snake_case": "the words are lowercase and joined with underscores",
    "kebab-case": "the words are lowercase and joined with hyphens",
    "title case": "each word starts with a capital letter",
}
TITLES = (
    ("weekly", "monthly", "quarterly", "final", "draft", "shared"),
    ("sales", "travel", "budget", "garden", "music", "weather"),
    ("report", "plan", "summary", "overview", "checklist", "survey"),
)


def _fill_replace(rng: Random) -> Words:
    frame = rng.choice(tuple(SENTENCES))
    old, new = rng.sample(SENTENCES[frame], 2)
    return {"old": old, "new": new, "text": frame.format(old), "edited": frame.format(new)}


def _replace_holds(words: Words) -> bool:
    before, after = words["text"].split(words["old"]), words["edited"].split(words["new"])
    return before == after and len(before) == 2


def _fill_remove(rng: Random) -> Words:
    frame = rng.choice([frame for frame, words in SENTENCES.items() if words is COLORS])
    old = rng.choice(COLORS)
    return {"old": old, "text": frame.format(old), "edited": frame.replace("{} ", "")}


def _remove_holds(words: Words) -> bool:
    return [w for w in words["text"].split() if w != words["old"]] == words["edited"].split()


def _fill_case(rng: Random) -> Words:
    parts, style = [rng.choice(choices) for choices in TITLES], rng.choice(tuple(CASES))
    edited = {"snake_case": "_".join(parts), "kebab-case": "-".join(parts)}
    text = " ".join(parts)
    result = edited.get(style, text.title())
    return {"text": text, "style": style, "edited": result, "same": style, "rule": CASES[style]}


def _case_holds(words: Words) -> bool:
    style, edited = words["style"], words["edited"]
    shape = {"snake_case": r"[a-z_]+", "kebab-case": r"[a-z-]+", "title case": r"([A-Z][a-z]+ ?)+"}
    return (
        re.fullmatch(shape[style], edited) is not None
        and re.split(r"[_\- ]", edited.lower()) == words["text"].split()
        and (words["same"], words["rule"]) == (style, CASES[style])
    )


REPLACE = Kind(
    questions=(
        'Replace "{old}" with "{new}" in this sentence: {text}',
        'Please change "{old}" to "{new}":\n\n{text}',
        'Edit this line so that it says "{new}" instead of "{old}": {text}',
    ),
    answer='{edited}\n\nI changed "{old}" to "{new}" and kept the rest.',
    fill=_fill_replace,
    holds=_replace_holds,
)
REMOVE = Kind(
    questions=(
        'Remove the word "{old}" from this sentence: {text}',
        'Take the word "{old}" out and leave everything else as it is:\n\n{text}',
    ),
    answer='{edited}\n\nI took out "{old}" and kept the rest.',
    fill=_fill_remove,
    holds=_remove_holds,
)
CASE = Kind(
    questions=(
        'Write "{text}" in {style}.',
        'I need "{text}" in {style}, please.',
        'How does "{text}" look in {style}?',
    ),
    answer="{edited}\n\nIn {same}, {rule}.",
    fill=_fill_case,
    holds=_case_holds,
)

# ------------------------------------------------------------------------------------- follow-up

THINGS = _items(
    "lunch, a book, a train ticket, a scarf, a museum visit, a phone case, a plant, "
    "a concert ticket, a raincoat, a haircut"
)
SPENT = (
    "I spent {a} dollars on {x} and {b} dollars on {y}. How much is that together?",
    "So far I have paid {a} dollars for {x} and {b} dollars for {y}. What is the total?",
    "{name} paid {a} dollars for {x} and {b} dollars for {y}. What does that come to?",
)
ADDED = (
    "Then there was {z} for {c} dollars. What is the total now?",
    "Add {c} dollars for {z}.",
    "I forgot {z}, which cost {c} dollars. And now?",
)
REFUNDED = (
    "The money for {x} was paid back in full. What remains?",
    "Now take off the price of {x}.",
)
TOTAL = ("{total} dollars. That is {left} {sign} {right}.",)


def _make_total(rng: Random) -> Conversation:
    x, y, z = rng.sample(THINGS, 3)
    a, b, c = (rng.randrange(5, 60) for _ in range(3))
    turns = [ask(rng, SPENT, a=a, b=b, x=x, y=y), _sum_up(a, "+", b)]
    turns += [ask(rng, ADDED, c=c, z=z), _sum_up(a + b, "+", c)]
    if rng.random() < 0.5:
        turns += [ask(rng, REFUNDED, x=x), _sum_up(a + b + c, "-", a)]
    return talk(*turns)


def _sum_up(left: int, sign: str, right: int) -> str:
    total = left + right if sign == "+" else left - right
    return TOTAL[0].format(total=total, left=left, sign=sign, right=right)


def check_total(turns: list[tuple[str, str]]) -> bool:
    """Whether every answer agrees with a ledger of what was bought and paid back."""
    ledger: dict[str, int] = {}
    for question, answer in turns:
        told, before = read(TOTAL, answer), sum(ledger.values())
        asked = read(SPENT + ADDED + REFUNDED, question)
        if "y" in asked:
            before = int(asked["a"])
            ledger = {asked["x"]: before, asked["y"]: int(asked["b"])}
        elif "z" in asked:
            ledger[asked["z"]] = int(asked["c"])
        else:
            del ledger[asked["x"]]
        change = sum(ledger.values()) - before
        expected = (str(before + change), str(before), "+-"[change < 0], str(abs(change)))
        if expected != (told["total"], told["left"], told["sign"], told["right"]):
            return False
    return True


START = ("Start a {topic} list: {items}.", "Make me a {topic} list: {items}.")
APPEND = ('Add "{item}" at the end.', 'Please also put "{item}" on it, at the end.')
REMOVAL = ('Take "{item}" off the list.', 'Please remove "{item}" again.')
SORT = ("Now sort it alphabetically.", "Can you put it in alphabetical order?")
LISTED = ("{list}\n\nThe list has {count} items.",)


def _make_list(rng: Random) -> Conversation:
    topic = rng.choice(("shopping", "packing"))
    *items, item = rng.sample(LISTS[topic], rng.randrange(4, 6))
    turns = [ask(rng, START, topic=topic, items=join(items)), _show(items)]
    items.append(item)
    turns += [ask(rng, APPEND, item=item), _show(items)]
    if rng.random() < 0.3:
        turns += [ask(rng, SORT), _show(sorted(items))]
    elif rng.random() < 0.5:
        gone = rng.choice(items[:-1])
        turns += [ask(rng, REMOVAL, item=gone), _show([item for item in items if item != gone])]
    return talk(*turns)


def _show(items: list[str]) -> str:
    return LISTED[0].format(list=layout(BULLETS, items), count=len(items))


def check_list(turns: list[tuple[str, str]]) -> bool:
    """Whether every answer shows the list as the wishes so far have made it."""
    items: list[str] = []
    for question, answer in turns:
        told = read(LISTED, answer)
        shown = laid_out(BULLETS, told["list"])
        if fits(START, question):
            items = split(read(START, question)["items"])
        elif fits(APPEND, question):
            items = [*items, read(APPEND, question)["item"]]
        elif fits(REMOVAL, question):
            items.remove(read(REMOVAL, question)["item"])
        elif fits(SORT, question) and all(a <= b for a, b in pairwise(shown)):
            items = [item for item in shown if item in items]
        if shown != items or int(told["count"]) != len(items):
            return False
    return True


def _make_follow_up(rng: Random) -> Conversation:
    return rng.choice((_make_total, _make_list))(rng)


def _check_follow_up(conversation: Conversation) -> bool:
    turns = exchanges(conversation)
    return check_list(turns) if fits(START, turns[0][0]) else check_total(turns)


# ----------------------------------------------------------------------------------- system-style


@dataclass(frozen=True)
class Fact:
    """One sort of general knowledge: how to ask for it, how to say it, and what is known."""

    questions: tuple[str, ...]
    sentence: str
    known: Words


FACTS = (
    Fact(
        questions=(
            "What is the capital of {key}?",
            "Which city is the capital of {key}?",
            "Name the capital of {key}.",
        ),
        sentence="The capital of {key} is {word}.",
        known=_pairs(
            "France: Paris, Japan: Tokyo, Kenya: Nairobi, Peru: Lima, Norway: Oslo, Egypt: Cairo, "
            "Canada: Ottawa, Poland: Warsaw, Portugal: Lisbon, Greece: Athens, Cuba: Havana, "
            "Thailand: Bangkok, Austria: Vienna, Ireland: Dublin, Hungary: Budapest, Ghana: Accra, "
            "Vietnam: Hanoi, Finland: Helsinki, Chile: Santiago, Senegal: Dakar"
        ),
    ),
    Fact(
        questions=("What is a young {key} called?", "What do you call a young {key}?"),
        sentence="A young {key} is called a {word}.",
        known=_pairs(
            "cow: calf, dog: puppy, cat: kitten, sheep: lamb, horse: foal, goat: kid, "
            "duck: duckling, bear: cub, frog: tadpole, kangaroo: joey, swan: cygnet, deer: fawn"
        ),
    ),
    Fact(
        questions=("What is the currency of {key}?", "Which currency does {key} use?"),
        sentence="The currency of {key} is the {word}.",
        known=_pairs(
            "Japan: yen, India: rupee, Mexico: peso, Poland: złoty, Switzerland: franc, "
            "Brazil: real, South Korea: won, Turkey: lira, Thailand: baht, Sweden: krona, "
            "South Africa: rand, Kenya: shilling"
        ),
    ),
    Fact(
        questions=("What is the opposite of {key}?", "Tell me the opposite of {key}."),
        sentence="The opposite of {key} is {word}.",
        known=_pairs(
            "early: late, empty: full, shallow: deep, narrow: wide, ancient: modern, "
            "arrive: depart, generous: stingy, victory: defeat, question: answer, "
            "increase: decrease, north: south, always: never"
        ),
    ),
)
PERSONAS = (
    "You are a helpful assistant for students.",
    "You are a quiz host at a school.",
    "You are a patient tutor for beginners.",
    "You answer the questions of museum visitors.",
)
ONE_WORD = "Answer in exactly one word, without punctuation."
AS_JSON = 'Reply only with a JSON object that has the key "answer".'
CAPITALS = "Write every answer in capital letters."
FRAMES = {
    "End every answer with 'Over.'": "{sentence} Over.",
    "Begin every answer with 'Good question!'": "Good question! {sentence}",
    "After every answer, ask 'Shall I explain more?'": "{sentence} Shall I explain more?",
    "Write every answer as a bullet point that starts with a dash.": "- {sentence}",
}


def obey(rule: str, word: str, sentence: str) -> str:
    """The answer as the rule wants it."""
    if rule == ONE_WORD:
        return word.capitalize()
    if rule == AS_JSON:
        return json.dumps({"answer": word}, ensure_ascii=False)
    return sentence.upper() if rule == CAPITALS else FRAMES[rule].format(sentence=sentence)


def obeys(rule: str, answer: str, word: str, sentence: str) -> bool:
    """Whether the answer follows the rule and says what is known."""
    if rule == ONE_WORD:
        return answer[:1].isupper() and answer.lower() == word.lower()
    if rule == AS_JSON:
        return bool(json.loads(answer) == {"answer": word})
    if rule == CAPITALS:
        return answer.isupper() and answer.lower() == sentence.lower()
    return read((FRAMES[rule],), answer) == {"sentence": sentence}


def _make_style(rng: Random) -> Conversation:
    rule, turns = rng.choice((ONE_WORD, AS_JSON, CAPITALS, *FRAMES)), []
    for fact in rng.sample(FACTS, 2):
        key, word = rng.choice(tuple(fact.known.items()))
        turns.append(ask(rng, fact.questions, key=key))
        turns.append(obey(rule, word, fact.sentence.format(key=key, word=word)))
    return talk(*turns, system=f"{rng.choice(PERSONAS)} {rule}")


def known(question: str) -> tuple[str, str]:
    """The right word for the question, and the sentence that says it."""
    for fact in FACTS:
        if fits(fact.questions, question):
            key = read(fact.questions, question)["key"]
            return fact.known[key], fact.sentence.format(key=key, word=fact.known[key])
    raise ValueError(f"no fact answers: {question}")


def _check_style(conversation: Conversation) -> bool:
    templates = tuple(f"{persona} {{rule}}" for persona in PERSONAS)
    rule = read(templates, conversation[0]["value"])["rule"]
    return all(obeys(rule, answer, *known(question)) for question, answer in exchanges(conversation))


# --------------------------------------------------------------------------------------- counting

SPELLING = _items(
    "banana, coffee, committee, cucumber, engineer, grammar, holiday, mistletoe, necessary, "
    "parallel, pineapple, raccoon, strawberry, tomorrow, umbrella, volleyball"
)


def _fill_words(rng: Random) -> Words:
    text = sentence(rng)
    words = text.rstrip(".?").split(" ")
    return {"text": text, "count": str(len(words)), "listed": ", ".join(words)}


def _words_hold(words: Words) -> bool:
    listed = words["listed"].split(", ")
    return words["text"][:-1] == " ".join(listed) and len(listed) == int(words["count"])


def _fill_spelling(rng: Random) -> Words:
    word = rng.choice(SPELLING)
    letter = rng.choice(word)
    places = [str(place) for place, other in enumerate(word, 1) if other == letter]
    noun = "letter" if len(places) == 1 else "letters"
    return {
        "word": word,
        "letter": letter,
        "times": amount(len(places), "time"),
        "spelled": "-".join(word),
        "places": f"{noun} {join(places)}",
    }


def _spelling_holds(words: Words) -> bool:
    noun, places = words["places"].split(" ", 1)
    marked = {int(place) for place in split(places)}
    rest = "".join("" if i in marked else other for i, other in enumerate(words["word"], 1))
    return (
        rest == words["word"].replace(words["letter"], "")
        and len(rest) + len(marked) == len(words["word"])
        and words["times"] == amount(len(marked), "time")
        and noun == ("letter" if len(marked) == 1 else "letters")
        and words["spelled"].split("-") == list(words["word"])
    )


def _fill_items(rng: Random) -> Words:
    what = rng.choice(tuple(COLLECTIONS))
    items = rng.sample(COLLECTIONS[what], rng.randrange(4, 9))
    return {"what": what, "items": ", ".join(items), "count": str(len(items)), "all": join(items)}


def _items_hold(words: Words) -> bool:
    items = split(words["all"])
    return ", ".join(items) == words["items"] and len(items) == int(words["count"])


WORD_COUNT = Kind(
    questions=(
        "How many words are in this sentence?\n\n{text}",
        "Count the words: {text}",
        'How many words does "{text}" have?',
    ),
    answer="{count} words. One by one, they are {listed}.",
    fill=_fill_words,
    holds=_words_hold,
)
SPELLING_COUNT = Kind(
    questions=(
        'How many times does the letter "{letter}" appear in "{word}"?',
        'How often does "{word}" contain the letter "{letter}"?',
    ),
    answer="{times}. In {spelled}, look at {places}.",
    fill=_fill_spelling,
    holds=_spelling_holds,
)
ITEM_COUNT = Kind(
    questions=(
        "How many {what} are on this list? {items}",
        "Please count these {what}: {items}",
        "{name} wrote down {items}. How many {what} is that?",
    ),
    answer="{count} {what}. They are {all}.",
    fill=_fill_items,
    holds=_items_hold,
)
# ----------------------------------------------------------------------------------- table-lookup

Table = dict[str, dict[str, int]]
PRICED = {"price": range(12, 190), "stock": range(2, 60)}
# What a row is, the names of the rows, and the values of the columns.
TABLES: dict[str, tuple[tuple[str, ...], dict[str, range]]] = {
    "item": (("Lamp", "Chair", "Desk", "Shelf", "Rug", "Mirror"), PRICED),
    "plant": (("Fern", "Cactus", "Ivy", "Aloe", "Orchid"), PRICED),
    "student": (NAMES, {"score": range(40, 101), "age": range(11, 19)}),
    "city": (CITIES, {"temperature": range(4, 38), "humidity": range(30, 95)}),
    "trail": (
        ("Lake Loop", "Ridge Path", "Oak Walk", "River Track", "Hill Climb"),
        {"elevation": range(120, 900, 10), "rating": range(1, 11)},
    ),
}
SUMMABLE = ("price", "stock", "score")


def draw_table(rng: Random, *keys: str) -> tuple[str, Table, str]:
    """What the rows are, the table as data, and the table as text."""
    key = rng.choice(keys)
    names, columns = TABLES[key]
    rows = rng.sample(names, rng.randrange(3, 5))
    filled = {name: rng.sample(values, len(rows)) for name, values in columns.items()}
    table = {row: {name: filled[name][i] for name in columns} for i, row in enumerate(rows)}
    lines = [[key, *columns], ["---"] * 3]
    lines += [[row, *map(str, cells.values())] for row, cells in table.items()]
    return key, table, "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_table(text: str) -> Table:
    """The table in a text."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    (_, *columns), _, *rows = lines
    return {row: dict(zip(columns, map(int, cells), strict=True)) for row, *cells in rows}


def _fill_lookup(rng: Random) -> Words:
    _, table, text = draw_table(rng, *TABLES)
    row = rng.choice(tuple(table))
    column = rng.choice(tuple(table[row]))
    return {"table": text, "row": row, "column": column, "cell": str(table[row][column])}


def _lookup_holds(words: Words) -> bool:
    return read_table(words["table"])[words["row"]][words["column"]] == int(words["cell"])


def _fill_extreme(rng: Random) -> Words:
    key, table, text = draw_table(rng, *TABLES)
    column, extreme = rng.choice(tuple(TABLES[key][1])), rng.choice(("highest", "lowest"))
    ranked = sorted(table, key=lambda row: table[row][column], reverse=extreme == "highest")
    best, second = (str(table[row][column]) for row in ranked[:2])
    words = {"table": text, "key": key, "column": column, "extreme": extreme}
    return words | {"row": ranked[0], "best": best, "second": second}


def _extreme_holds(words: Words) -> bool:
    table, column = read_table(words["table"]), words["column"]
    best, second = int(words["best"]), int(words["second"])
    others = [cells[column] for row, cells in table.items() if row != words["row"]]
    closest = max(others) if words["extreme"] == "highest" else min(others)
    return (
        table[words["row"]][column] == best
        and second == closest
        and (best > second) == (words["extreme"] == "highest")
    )


def _fill_sum(rng: Random) -> Words:
    _, table, text = draw_table(rng, "item", "plant", "student")
    first = next(iter(table.values()))
    column = rng.choice([name for name in first if name in SUMMABLE])
    values = [cells[column] for cells in table.values()]
    terms = " + ".join(map(str, values))
    return {"table": text, "column": column, "total": str(sum(values)), "terms": terms}


def _sum_holds(words: Words) -> bool:
    terms = [int(term) for term in words["terms"].split(" + ")]
    column = [cells[words["column"]] for cells in read_table(words["table"]).values()]
    return terms == column and sum(terms) == int(words["total"])


LOOKUP = Kind(
    questions=(
        "{table}\n\nWhat {column} does the table give for {row}?",
        "Here is a table.\n\n{table}\n\nWhat is the {column} for {row}?",
    ),
    answer="{cell}. I read it in the row for {row}, under {column}.",
    fill=_fill_lookup,
    holds=_lookup_holds,
)
EXTREME = Kind(
    questions=(
        "{table}\n\nWhich {key} has the {extreme} {column}?",
        "Look at this table.\n\n{table}\n\nFind the {key} with the {extreme} {column}.",
    ),
    answer="{row}. The {extreme} {column} is {best}, and the next is {second}.",
    fill=_fill_extreme,
    holds=_extreme_holds,
)
SUM = Kind(
    questions=(
        "{table}\n\nWhat do the numbers under {column} add up to?",
        "{table}\n\nPlease add up the {column} column.",
    ),
    answer="{total}. That is {terms}, the numbers under {column}.",
    fill=_fill_sum,
    holds=_sum_holds,
)

# --------------------------------------------------------------------------------------- registry

FAMILIES = {
    family.name: family
    for family in (
        # Units three times: they have many pairs, and degrees only one.
        family_of("unit-conversion", 4.6, DEGREES, UNITS, UNITS, UNITS),
        family_of("date-arithmetic", 4.5, SHIFT, GAP, WEEKDAY),
        family_of("sorting", 4.4, ORDER),
        family_of("json-extraction", 4.8, EXTRACTION),
        family_of("list-formatting", 4.5, LAYOUT),
        family_of("string-edits", 4.4, REPLACE, REMOVE, CASE),
        Family("follow-up", _make_follow_up, _check_follow_up, 4.9),
        Family("system-style", _make_style, _check_style, 4.7),
        family_of("counting", 4.3, WORD_COUNT, SPELLING_COUNT, ITEM_COUNT),
        family_of("table-lookup", 4.7, LOOKUP, EXTREME, SUM),
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

"""Short notes turned into JSON, with null for what a note does not say."""

import json
from collections.abc import Sequence
from random import Random

from finelab.embedded.families.common import CITIES, COLORS, DAYS, Kind, Words, family_of, join, read, split

PEOPLE = split(
    "Mina Okafor, Łukasz Nowak, José Álvarez, Zoë Laurent, Søren Holm, Aylin Yıldız, Ravi Menon, "
    "Grace Mbeki, Linh Tran, Emil Björk, Noor Haddad, Hiro Tanaka, Ana Kovač, Samuel Reed"
)
CLOCK = [f"{hour}:{minute}" for hour in range(7, 22) for minute in ("00", "15", "30", "45")]
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
VALUES: dict[str, Sequence[object]] = {
    "name": PEOPLE,
    "age": range(18, 80),
    "city": CITIES,
    "customer": PEOPLE,
    "item": split("desk lamps, notebooks, office chairs, blue pens, coffee mugs, folders"),
    "quantity": range(2, 60),
    "event": split("choir rehearsal, book club, team lunch, chess evening, parent meeting"),
    "day": DAYS,
    "time": CLOCK,
    "traveler": PEOPLE,
    "origin": CITIES[::2],
    "destination": CITIES[1::2],
    "departure": CLOCK,
    "product": split("backpack, umbrella, bicycle helmet, desk, raincoat, suitcase"),
    "color": COLORS,
    "price": range(9, 190),
}


def _fill_json(rng: Random) -> dict[str, object]:
    keys = rng.choice(tuple(NOTES))
    note = rng.choice(NOTES[keys])
    values = {key: rng.choice(VALUES[key]) if f"{{{key}}}" in note else None for key in keys}
    answer = json.dumps(values, ensure_ascii=False)
    return {"keys": join(keys), "note": note.format(**values), "json": answer}


def _json_holds(words: Words) -> bool:
    keys = tuple(split(words["keys"]))
    found = read(words["note"], *NOTES[keys])
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
    result="json",
    fill=_fill_json,
    holds=_json_holds,
)
FAMILY = family_of("json-extraction", 4.8, EXTRACTION)

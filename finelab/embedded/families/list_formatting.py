"""Lists written in another style."""

import re
from random import Random

from finelab.embedded.families.common import LISTS, Kind, Words, family_of

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
    """The items read back from a text; none when it is not in the style."""
    if style == COMMAS:
        return text.split(", ")
    if style == UPPERCASE:
        return text.lower().splitlines() if text.isupper() else []
    lines = text.splitlines()
    marks = ["-"] * len(lines) if style == BULLETS else [f"{n}." for n in range(1, len(lines) + 1)]
    found, items = zip(*(line.split(" ", 1) for line in lines), strict=True)
    return list(items) if list(found) == marks else []


def _fill_layout(rng: Random) -> dict[str, object]:
    topic, style = rng.choice(tuple(LISTS)), rng.choice((NUMBERED, BULLETS, COMMAS, UPPERCASE))
    items = rng.sample(LISTS[topic], rng.randrange(3, 7))
    return {
        "topic": topic,
        "style": style,
        "items": rng.choice(("; ", " / ", "\n")).join(items),
        "list": layout(style, items),
        "count": len(items),
    }


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
    result="list",
    fill=_fill_layout,
    holds=_layout_holds,
)
FAMILY = family_of("list-formatting", 4.5, LAYOUT)

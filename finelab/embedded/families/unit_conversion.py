"""Lengths, weights, volumes, times, file sizes and temperatures in another unit."""

from random import Random

from finelab.embedded.families.common import Kind, Words, family_of, read

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


def rounded(value: float, places: int) -> str:
    """The value with at most that many decimal places."""
    return f"{value:.{places}f}".rstrip("0").rstrip(".")


def near(value: float, places: int, unit: str) -> str:
    """A quantity, called "about" where it had to be rounded."""
    text = rounded(value, places)
    return f"{text} {unit}" if abs(float(text) - value) < 1e-9 else f"about {text} {unit}"


def is_near(text: str, value: float, places: int, unit: str) -> bool:
    """Whether the text is the quantity to that many places, and says "about" only when rounded."""
    told = read(text, "about {number} {unit}", "{number} {unit}")
    error = abs(float(told["number"]) - value)
    honest = text.startswith("about ") == (error > 1e-9)
    return told["unit"] == unit and honest and error <= 0.5 * 10**-places + 1e-9


def _fill_units(rng: Random) -> dict[str, object]:
    small, large, one, factor, few, many = rng.choice(CONVERSIONS)
    down = rng.random() < 0.5
    unit, target = (large, small) if down else (small, large)
    value = rng.choice(many if down else few)
    return {
        "value": value,
        "unit": unit,
        "target": target,
        "result": near(value * factor if down else value / factor, 1, target),
        "one": one,
        "size": near(factor, 3, small),
        "verb": "multiply" if down else "divide",
        "by": rounded(factor, 3),
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


def _fill_degrees(rng: Random) -> dict[str, object]:
    if rng.random() < 0.5:
        value, unit, target = rng.randrange(-20, 101), "Celsius", "Fahrenheit"
        result, how = near(value * 1.8 + 32, 1, "°F"), "Multiply by 1.8, then add 32"
    else:
        value, unit, target = rng.randrange(14, 213), "Fahrenheit", "Celsius"
        result, how = near((value - 32) / 1.8, 1, "°C"), "Subtract 32, then divide by 1.8"
    return {"value": value, "unit": unit, "target": target, "result": result, "how": how}


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
    result="result",
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
    result="result",
    fill=_fill_units,
    holds=_units_hold,
)
# Units three times: they have many pairs, and degrees only one.
FAMILY = family_of("unit-conversion", 4.6, DEGREES, UNITS, UNITS, UNITS)

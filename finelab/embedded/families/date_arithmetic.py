"""Dates some days away, days between two dates, and days of the week."""

import re
from datetime import date, timedelta
from random import Random

from finelab.embedded.families.common import DAYS, Kind, Words, amount, family_of, split

MONTHS = split(
    "January, February, March, April, May, June, July, August, September, October, November, December"
)


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


def _fill_shift(rng: Random) -> dict[str, object]:
    start, days, direction = _some_day(rng), rng.randrange(8, 120), rng.choice(("after", "before"))
    end = start + timedelta(days=days if direction == "after" else -days)
    return {
        "start": spell(start),
        "days": days,
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


def _fill_gap(rng: Random) -> dict[str, object]:
    start, days = _some_day(rng), rng.randrange(8, 200)
    end = start + timedelta(days=days)
    return {"start": spell(start), "end": spell(end), "days": days, "weeks": weeks(days)}


def _gap_holds(words: Words) -> bool:
    days = int(words["days"])
    gap = spelled(words["end"]).toordinal() - spelled(words["start"]).toordinal()
    return gap == days and in_weeks(words["weeks"], days)


def _fill_weekday(rng: Random) -> dict[str, object]:
    day = _some_day(rng)
    year = date(day.year, 1, 1)
    days = (day - year).days
    return {
        "start": spell(day),
        "weekday": weekday(day),
        "days": days,
        "weeks": weeks(days),
        "first": weekday(year),
        "year": spell(year),
    }


def _weekday_holds(words: Words) -> bool:
    day, year, days = spelled(words["start"]), spelled(words["year"]), int(words["days"])
    return (
        is_weekday(words["weekday"], day)
        and year == date(day.year, 1, 1)
        and is_weekday(words["first"], year)
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
    result="end",
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
    result="days",
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
    result="weekday",
    fill=_fill_weekday,
    holds=_weekday_holds,
)
FAMILY = family_of("date-arithmetic", 4.5, SHIFT, GAP, WEEKDAY)

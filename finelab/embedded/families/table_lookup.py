"""Small tables: one cell, the row with the highest or lowest value, and the sum of a column."""

from collections.abc import Sequence
from random import Random

from finelab.embedded.families.common import CITIES, NAMES, Kind, Words, family_of, split

Table = dict[str, dict[str, int]]
PRICED = {"price": range(12, 190), "stock": range(2, 60)}
# What a row is, the names of the rows, and the values of the columns.
TABLES: dict[str, tuple[Sequence[str], dict[str, range]]] = {
    "item": (split("Lamp, Chair, Desk, Shelf, Rug, Mirror"), PRICED),
    "plant": (split("Fern, Cactus, Ivy, Aloe, Orchid"), PRICED),
    "student": (NAMES, {"score": range(40, 101), "age": range(11, 19)}),
    "city": (CITIES, {"temperature": range(4, 38), "humidity": range(30, 95)}),
    "trail": (
        split("Lake Loop, Ridge Path, Oak Walk, River Track, Hill Climb"),
        {"elevation": range(120, 900, 10), "rating": range(1, 11)},
    ),
}
# The columns whose sum means something.
SUMMABLE = {"item": ["price", "stock"], "plant": ["price", "stock"], "student": ["score"]}


def draw_table(rng: Random, key: str) -> tuple[Table, str]:
    """A table about such rows, as data and as text."""
    names, columns = TABLES[key]
    rows = rng.sample(names, rng.randrange(3, 5))
    filled = {name: rng.sample(values, len(rows)) for name, values in columns.items()}
    table = {row: {name: filled[name][i] for name in columns} for i, row in enumerate(rows)}
    lines = [[key, *columns], ["---"] * 3]
    lines += [[row, *map(str, cells.values())] for row, cells in table.items()]
    return table, "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_table(text: str) -> Table:
    """The table in a text."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    (_, *columns), _, *rows = lines
    return {row: dict(zip(columns, map(int, cells), strict=True)) for row, *cells in rows}


def _fill_lookup(rng: Random) -> dict[str, object]:
    table, text = draw_table(rng, rng.choice(tuple(TABLES)))
    row = rng.choice(tuple(table))
    column = rng.choice(tuple(table[row]))
    return {"table": text, "row": row, "column": column, "cell": table[row][column]}


def _lookup_holds(words: Words) -> bool:
    return read_table(words["table"])[words["row"]][words["column"]] == int(words["cell"])


def _fill_extreme(rng: Random) -> dict[str, object]:
    key = rng.choice(tuple(TABLES))
    table, text = draw_table(rng, key)
    column, extreme = rng.choice(tuple(TABLES[key][1])), rng.choice(("highest", "lowest"))
    ranked = sorted(table, key=lambda row: table[row][column], reverse=extreme == "highest")
    return {
        "table": text,
        "key": key,
        "column": column,
        "extreme": extreme,
        "row": ranked[0],
        "best": table[ranked[0]][column],
        "second": table[ranked[1]][column],
    }


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


def _fill_sum(rng: Random) -> dict[str, object]:
    key = rng.choice(tuple(SUMMABLE))
    table, text = draw_table(rng, key)
    column = rng.choice(SUMMABLE[key])
    values = [cells[column] for cells in table.values()]
    terms = " + ".join(map(str, values))
    return {"table": text, "column": column, "total": sum(values), "terms": terms}


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
    result="cell",
    fill=_fill_lookup,
    holds=_lookup_holds,
)
EXTREME = Kind(
    questions=(
        "{table}\n\nWhich {key} has the {extreme} {column}?",
        "Look at this table.\n\n{table}\n\nFind the {key} with the {extreme} {column}.",
    ),
    answer="{row}. The {extreme} {column} is {best}, and the next is {second}.",
    result="row",
    fill=_fill_extreme,
    holds=_extreme_holds,
)
SUM = Kind(
    questions=(
        "{table}\n\nWhat do the numbers under {column} add up to?",
        "{table}\n\nPlease add up the {column} column.",
    ),
    answer="{total}. That is {terms}, the numbers under {column}.",
    result="total",
    fill=_fill_sum,
    holds=_sum_holds,
)
FAMILY = family_of("table-lookup", 4.7, LOOKUP, EXTREME, SUM)

"""Write the embedded data set: checked rows of every template family, and the handwritten ones.

`python -m finelab.embedded.make_conversations` writes `conversations.jsonl` beside this file;
with `--check` it only compares, and exits with 1 when the file is not what it would write.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from random import Random

from finelab.embedded.families import FAMILIES, Conversation, Row, check_answer, make_conversation
from finelab.files import write_text

SEED = 3407
ROWS_PER_FAMILY = 37
HANDWRITTEN = Path(__file__).parent / "handwritten.jsonl"
CONVERSATIONS = Path(__file__).parent / "conversations.jsonl"


def first_prompt(row: Row) -> str:
    """What the user says first."""
    turns: Conversation = row["conversations"]
    return next(turn["value"] for turn in turns if turn["from"] == "human")


def draw(name: str, prompts: set[str]) -> list[Row]:
    """Checked rows of a family; their prompts are new, and are added to `prompts`."""
    # One generator for each family, so that a change to one leaves the rows of the others.
    rng = Random(f"{SEED} {name}")
    rows: list[Row] = []
    while len(rows) < ROWS_PER_FAMILY:
        row = make_conversation(name, rng)
        if not check_answer(row):
            raise ValueError(f"the family {name} made an answer that its check rejects: {row}")
        if first_prompt(row) not in prompts:
            prompts.add(first_prompt(row))
            rows.append(row)
    return rows


def build() -> list[Row]:
    """Every row of the data set, in its order."""
    rows = [json.loads(line) for line in HANDWRITTEN.read_text(encoding="utf-8").splitlines()]
    prompts = {first_prompt(row) for row in rows}
    for name in FAMILIES:
        rows += draw(name, prompts)
    Random(SEED).shuffle(rows)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Write the file, or check it; the exit status."""
    parser = argparse.ArgumentParser(description="Write the embedded data set.")
    parser.add_argument("--check", action="store_true", help="compare only; 1 when it differs")
    check = parser.parse_args(arguments).check

    rows = build()
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not check:
        write_text(CONVERSATIONS, text)
    elif not CONVERSATIONS.exists() or CONVERSATIONS.read_bytes() != text.encode():
        print(f"{CONVERSATIONS.name} is not what the families make; run this without --check.")
        return 1
    counts = Counter(row["source"] for row in rows)
    print(f"{CONVERSATIONS.name}: {len(rows)} rows, {'as made' if check else 'written'}:")
    print(", ".join(f"{source} {count}" for source, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

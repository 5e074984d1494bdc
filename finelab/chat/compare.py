"""Base and tuned on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from finelab.chat.model import ChatModel
from finelab.data import conversation
from finelab.data.conversation import Message


@dataclass(frozen=True)
class Answers:
    """What was asked, what the data set answers, and what base and tuned say."""

    question: str
    reference: str
    base: str
    tuned: str


def first_of_each_source(rows: Any, limit: int) -> list[list[Message]]:
    """The first conversation of each source in the rows that was not cut, at most `limit` of them."""
    found: dict[str, list[Message]] = {}
    for row in rows:
        if not row.get("truncated"):
            found.setdefault(row["source"], conversation(row).messages)
    return list(found.values())[:limit]


def side_by_side(
    chat: ChatModel, conversations: Sequence[list[Message]], temperature: float = 0
) -> list[Answers]:
    """Both models' answers to each conversation's last question; greedy unless told otherwise."""
    from tqdm import tqdm

    return [
        Answers(
            question=messages[-2]["content"],
            reference=messages[-1]["content"],
            base=chat.answer(messages[:-1], tuned=False, temperature=temperature),
            tuned=chat.answer(messages[:-1], tuned=True, temperature=temperature),
        )
        for messages in tqdm(conversations, "answers", delay=2)
    ]


def show_answers(answers: Sequence[Answers]) -> None:
    """Print the answers below each other and, in a notebook, show them in columns as escaped text."""
    for each in answers:
        print(f"Q {each.question}\n  base   {each.base}\n  tuned  {each.tuned}\n")
    columns = ("question", "reference", "base", "tuned")
    head = "".join(f"<th style='text-align:left'>{name}</th>" for name in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td style='text-align:left;vertical-align:top;white-space:pre-wrap'>"
            f"{escape(getattr(each, name))}</td>"
            for name in columns
        )
        + "</tr>"
        for each in answers
    )
    from IPython.display import HTML, display

    display(HTML(f"<table><tr>{head}</tr>{body}</table>"))

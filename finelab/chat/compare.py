"""Base and tuned on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finelab.chat.model import ChatModel
from finelab.chat.prompt import plain_rows
from finelab.chat.text import printable
from finelab.data.conversation import Message
from finelab.show import answers_html


@dataclass(frozen=True)
class Answers:
    """What was asked, what the data set answers, and what base and tuned say."""

    question: str
    reference: str
    base: str
    tuned: str


def first_of_each_source(rows: Any, limit: int) -> list[list[Message]]:
    """A conversation of each source, without tools and not cut, at most `limit` of them."""
    return [messages for _, messages in plain_rows(rows, per_source=1)][:limit]


def side_by_side(chat: ChatModel, conversations: Sequence[list[Message]]) -> list[Answers]:
    """Both models' greedy answers to each conversation's last question."""
    from tqdm import tqdm

    return [
        Answers(
            question=messages[-2]["content"],
            reference=messages[-1]["content"],
            base=chat.answer(messages[:-1], tuned=False, temperature=0),
            tuned=chat.answer(messages[:-1], tuned=True, temperature=0),
        )
        for messages in tqdm(conversations, "answers", delay=2)
    ]


def show_answers(answers: Sequence[Answers]) -> None:
    """Print the answers below each other and, in a notebook, show them in columns as escaped text."""
    for each in answers:
        print(printable(f"Q {each.question}\n  base   {each.base}\n  tuned  {each.tuned}\n"))
    from IPython.display import HTML, display

    display(HTML(answers_html([asdict(each) for each in answers])))

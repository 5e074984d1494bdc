"""Base's and tuned's answers to the same held-out prompts: what is right, what ends, what repeats."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finelab.chat.prompt import plain_rows, render_prompt
from finelab.data.conversation import Message
from finelab.embedded.families import check_answer, result_of
from finelab.evaluate.compare import Comparison, compare_shares
from finelab.evaluate.generate import Answer, generate
from finelab.files import write_json
from finelab.recipe import Chat
from finelab.run import Run

TURNS = {"system": "system", "user": "human", "assistant": "gpt"}
DECODINGS = ("base", "tuned", "base_sampled", "tuned_sampled")


@dataclass(frozen=True)
class Prompt:
    """A held-out conversation up to its last answer, and that answer as the data set has it.

    `result` are the words that alone answer a question of one of the embedded families, else None.
    """

    source: str
    messages: list[Message]
    reference: str
    result: str | None

    def is_exact(self, text: str) -> bool:
        """Whether the text is a right answer in the family's own form."""
        return check_answer(_as_row(self.source, self.messages, text))

    def states_result(self, text: str) -> bool:
        """Whether the text has the result anywhere in it, in any form, perhaps by chance."""
        words = r"\s+".join(map(re.escape, (self.result or "").split()))
        return bool(re.search(rf"(?<![\w.]){words}(?!\w|[.,]\d)", text, re.IGNORECASE))


def prompts(rows: Iterable[Mapping[str, Any]], per_source: int) -> list[Prompt]:
    """The first rows of each source as prompts, without those that were cut or in which tools are called."""
    found = []
    for row, (*asked, last) in plain_rows(rows, per_source):
        result = result_of(_as_row(row["source"], asked, last["content"]))
        found.append(Prompt(row["source"], asked, last["content"], result))
    return found


def answer(
    model: Any, tokenizer: Any, asked: Sequence[Prompt], chat: Chat, date_string: str
) -> dict[str, list[Answer]]:
    """The answers of a PEFT model with its adapter off and on, greedy, and sampled as the recipe says.

    The sampled ones are drawn from the same seed.
    """
    texts = [render_prompt(tokenizer, each.messages, date_string) for each in asked]
    sampling = {"temperature": chat.temperature, "min_p": chat.min_p}

    def both(suffix: str, **settings: Any) -> dict[str, list[Answer]]:
        with model.disable_adapter():
            base = generate(model, tokenizer, texts, chat.max_new_tokens, progress="base", **settings)
        tuned = generate(model, tokenizer, texts, chat.max_new_tokens, progress="tuned", **settings)
        return {f"base{suffix}": base, f"tuned{suffix}": tuned}

    return both("") | both("_sampled", **sampling)


def answers_evidence(asked: Sequence[Prompt], answers: Mapping[str, list[Answer]]) -> dict[str, Any]:
    """The evidence of the greedy answers: both models' shares, and the wrong ones compared."""
    found: dict[str, Any] = {"rows": len(asked)}
    for name in ("base", "tuned") if asked else ():
        given = answers[name]
        found[name] = {
            "ended_share": round(fmean(each.ended for each in given), 4),
            "repeated_4gram_share": round(fmean(each.repeated_share for each in given), 4),
            "mean_tokens": round(fmean(len(each.tokens) for each in given), 1),
        }
    checkable = [index for index, each in enumerate(asked) if each.result is not None]
    if checkable:
        for name, comparison in right_answers(asked, answers, checkable).items():
            found[name] = comparison.evidence()
        found["by_family"] = _by_family(asked, answers, checkable)
    return found


def right_answers(
    asked: Sequence[Prompt], answers: Mapping[str, list[Answer]], checkable: Sequence[int]
) -> dict[str, Comparison]:
    """The shares of answers that are not exact, and that do not state the result: lower is better."""
    tests = {"not_exact": Prompt.is_exact, "result_not_stated": Prompt.states_result}
    found = {}
    for name, test in tests.items():
        base, tuned = (_wrong(test, asked, answers[model], checkable) for model in ("base", "tuned"))
        found[name] = compare_shares(base, tuned, unit="of the answers")
    return found


def keep_answers(run: Run, asked: Sequence[Prompt], answers: Mapping[str, list[Answer]]) -> None:
    """Write the answers to the run's `answers.json`, for `judge` and for reading."""
    rows = [
        {"source": each.source, "messages": each.messages, "reference": each.reference}
        | {name: answers[name][index].text for name in DECODINGS}
        for index, each in enumerate(asked)
    ]
    write_json(run.folder / "answers.json", rows)


def _wrong(
    test: Callable[[Prompt, str], bool],
    asked: Sequence[Prompt],
    given: Sequence[Answer],
    checkable: Sequence[int],
) -> NDArray[np.bool_]:
    """For each answer that can be checked whether it fails the test."""
    return np.array([not test(asked[index], given[index].text) for index in checkable], dtype=bool)


def _by_family(
    asked: Sequence[Prompt], answers: Mapping[str, list[Answer]], checkable: Sequence[int]
) -> dict[str, dict[str, int]]:
    """For each family the number of prompts, and how many answers of each model are exact."""
    counts: dict[str, dict[str, int]] = {}
    for index in checkable:
        family = counts.setdefault(asked[index].source, {"rows": 0, "base": 0, "tuned": 0})
        family["rows"] += 1
        for model in ("base", "tuned"):
            family[model] += asked[index].is_exact(answers[model][index].text)
    return dict(sorted(counts.items()))


def _as_row(source: str, messages: Sequence[Message], text: str) -> dict[str, Any]:
    """The conversation in the embedded data set's schema."""
    said = [*messages, {"role": "assistant", "content": text}]
    turns = [{"from": TURNS.get(each["role"], "?"), "value": each["content"]} for each in said]
    return {"source": source, "conversations": turns}

"""Answers in left-padded batches, and what can be counted in them without knowing what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finelab.chat.engine import end_tokens
from finelab.chat.sampling import for_generate

BATCH = 32  # prompts answered at once
TOKENS = 8192  # prompts' and answers' together: keys and values take 0.9 GB of a card for Llama 3.2 3B


@dataclass(frozen=True)
class Answer:
    """An answer's text, its tokens without the end token, and whether the model ended it by itself."""

    text: str
    tokens: tuple[int, ...]
    ended: bool

    @property
    def repeated_share(self) -> float:
        """The share of its 4-grams that were there before; 0 for an answer of fewer than 4 tokens."""
        grams = [self.tokens[i : i + 4] for i in range(len(self.tokens) - 3)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    temperature: float = 0.0,
    min_p: float | None = None,
    seed: int = 3407,
    progress: str = "answers",
) -> list[Answer]:
    """The model's answer to each rendered prompt; greedy at temperature 0, else sampled from `seed`.

    Prompts of like length are batched together. A sampled answer depends on its batch: the same prompts and
    seed give the same answers, a prompt among others may not. PyTorch's random state is left as it was.
    """
    import torch
    from tqdm import tqdm

    sampling = for_generate(temperature, min_p)
    lengths = [len(tokenizer(each, add_special_tokens=False)["input_ids"]) for each in prompts]
    answers: dict[int, Answer] = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in tqdm(batches(lengths, max_new_tokens), progress, unit="batch", delay=2):
            texts = [prompts[index] for index in batch]
            found = _batch(model, tokenizer, texts, max_new_tokens=max_new_tokens, **sampling)
            answers.update(zip(batch, found, strict=True))
    return [answers[index] for index in range(len(prompts))]


def batches(lengths: Sequence[int], max_new_tokens: int) -> list[list[int]]:
    """The numbers of the prompts answered together, the shortest first.

    `lengths` are the prompts' tokens. A batch has up to BATCH rows, and TOKENS tokens unless one has more.
    """
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        rows = min(BATCH, TOKENS // (lengths[index] + max_new_tokens))
        if found and len(found[-1]) < rows:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def _batch(model: Any, tokenizer: Any, prompts: list[str], **settings: Any) -> list[Answer]:
    inputs = tokenizer(
        prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
    ).to(model.device)
    output = model.generate(**inputs, pad_token_id=tokenizer.pad_token_id, **settings)
    ends = end_tokens(model, tokenizer)
    answers = output[:, inputs["input_ids"].shape[1] :].tolist()
    return [_answer(tokenizer, tokens, ends) for tokens in answers]


def _answer(tokenizer: Any, tokens: list[int], ends: frozenset[int]) -> Answer:
    """What stands before the first end token; padding can only follow one."""
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    said = tuple(tokens[:end])
    return Answer(tokenizer.decode(said, skip_special_tokens=True).strip(), said, end is not None)

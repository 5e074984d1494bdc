"""One answer's next token: what a request may ask of it, and the draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

GREEDY = 1e-5  # a temperature below this one draws the likeliest token, as in vLLM
LARGEST = 1e30  # so large that a score divided by the least temperature still is a float32


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, under the names of vLLM's SamplingParams; `temperature` 0 takes the likeliest.

    `logprobs`: how many of the likeliest tokens are reported beside the drawn one; None reports nothing.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False


def for_generate(temperature: float, min_p: float | None) -> dict[str, Any]:
    """Options of transformers' `generate` for the draw of a `Sampling` with these two.

    Left out, `top_k` is 50, and whatever the base's generation_config.json says of the others holds.
    """
    plain = {"repetition_penalty": 1.0}
    if temperature < GREEDY:
        return {"do_sample": False, **plain}
    return {"do_sample": True, "temperature": temperature, "min_p": min_p, "top_k": 0, "top_p": 1.0, **plain}


@dataclass(frozen=True)
class Token:
    """A drawn token, its log-probability in nats under the model itself, and the likeliest ones'."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws one answer's tokens, with a random generator of its own."""

    def __init__(self, sampling: Sampling, prompt: list[int], eos: Collection[int], device: Any) -> None:
        import torch

        self.sampling = sampling
        self.eos = sorted(eos)
        self.seen = torch.tensor([prompt], device=device)
        self.drawn: Counter[int] = Counter()
        self.biased = torch.tensor(list(sampling.logit_bias), dtype=torch.long, device=device)
        self.biases = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float, device=device)
        self.warpers = _warpers(sampling)
        self.generator = torch.Generator(device)
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed % 2**63)

    def draw(self, logits: Any) -> Token:
        """The next token, from the model's logits (vocabulary,)."""
        import torch

        scores = self._adjusted(logits.float().clone())
        if self.sampling.temperature < GREEDY:
            chosen = int(scores.argmax())
        else:
            shares = self.warpers(self.seen, scores[None]).softmax(dim=-1)
            chosen = int(torch.multinomial(shares, 1, generator=self.generator))
        self.drawn[chosen] += 1
        if self.sampling.repetition_penalty != 1:
            self.seen = torch.cat([self.seen, self.seen.new_tensor([[chosen]])], dim=1)
        return self._token(chosen, logits)

    def _adjusted(self, scores: Any) -> Any:
        """Logits with the penalties of OpenAI's API and the biases; no end token before `min_tokens`."""
        from transformers import RepetitionPenaltyLogitsProcessor

        asked = self.sampling
        if asked.repetition_penalty != 1:
            penalise = RepetitionPenaltyLogitsProcessor(asked.repetition_penalty)
            scores = penalise(self.seen, scores[None])[0]
        if self.drawn and (asked.presence_penalty or asked.frequency_penalty):
            ids = list(self.drawn)
            counts = scores.new_tensor([self.drawn[each] for each in ids])
            scores[ids] -= asked.presence_penalty + asked.frequency_penalty * counts
        scores[self.biased] += self.biases
        scores = scores.clamp(-LARGEST, LARGEST)  # an extreme penalty would make them infinite
        if asked.ignore_eos or self.drawn.total() < asked.min_tokens:
            scores[self.eos] = -float("inf")
        return scores

    def _token(self, chosen: int, logits: Any) -> Token:
        if self.sampling.logprobs is None:
            return Token(chosen)
        logprobs = logits.float().log_softmax(dim=-1)
        values, ids = logprobs.topk(self.sampling.logprobs)
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Token(chosen, float(logprobs[chosen]), top)


def _warpers(sampling: Sampling) -> Any:
    """transformers' own warpers, in the order in which `generate` applies them."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    found = LogitsProcessorList()
    if sampling.temperature >= GREEDY:
        found.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k > 0:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        found.append(MinPLogitsWarper(sampling.min_p))
    return found

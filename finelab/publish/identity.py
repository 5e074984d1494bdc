"""Links of the identity chain: how far one model's answers are from another's.

Measured on the embedded default (583 positions of 16 held-out rows, computed in float32), mean KL in
nats from the adapter on its base: merged in float32 2e-9, merged and rounded to bfloat16 1e-2, the
base itself 0.13. The rounding is a property of the file, not an error. It costs most where an answer begins:
over the first tokens of 64 rows 0.049 and a top-1 of 84 %, where the base is 0.55 away and has 52 %. A base
in 4 bit moves 0.33, more than the fine-tune: notebook 04 loads it in 16 bit, also where the adapter was
trained in 4 bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from finelab.data import IGNORE
from finelab.errors import LabError
from finelab.publish.weights import Weights

MAX_KL = 2e-2  # mean nats that a right copy may be away: q8_0 moves 2e-3
MIN_TOP1 = 0.9  # measured in q8_0: 0.97
MIN_EFFECT = 3.0  # the fine-tune must move the answers by this many times the merge's rounding
# A right bfloat16 merge has 8 or more in 5,000 draws of 32 rows, also where an answer is one token; without a
# third of the layers it has 5, without half of them 3. That one layer is missing, only the weights tell.
ROUNDING = 7.0
POSITIONS, MOST_PROBES = 500, 32  # of answers, and of rows, that are compared
ROW_POSITIONS = 96  # of one row
_CAUSES = {
    True: "the adapter was hardly trained (train longer or with a larger learning_rate), or its "
    "weights were not loaded.",
    False: "another tokenizer or template, a tensor missing from the merge, or rope parameters lost.",
}
Said = tuple[list[Any], list[list[int]]]  # a model's answer_logits and greedy_answers


@dataclass(frozen=True)
class Link:
    """One link: gaps over the answers' positions, and whether they are within the tolerance."""

    from_: str
    to: str
    max_abs_logit_diff: float
    mean_kl: float
    top1_agreement_share: float
    greedy_match_share: float
    positions: int
    passed: bool

    def evidence(self) -> dict[str, Any]:
        """The evidence's keys for this link."""
        values = asdict(self)
        return {"from": values.pop("from_"), **values}

    def __str__(self) -> str:
        return (
            f"{self.from_} -> {self.to}: mean KL {self.mean_kl:.2e}, max logit gap "
            f"{self.max_abs_logit_diff:.3f}, top-1 {self.top1_agreement_share:.1%}, greedy "
            f"{self.greedy_match_share:.0%}, {self.positions} positions: "
            f"{'passed' if self.passed else 'FAILED'}"
        )


def for_proof(model: Any) -> Any:
    """The model as its answers are compared.

    On a CPU it computes in float32, so that the gap is the merge's and not the arithmetic's; a GPU's
    memory does not hold that, so there it stays as it was loaded.
    """
    return model.float() if model.device.type == "cpu" else model


def probes(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first rows that were not cut, until their answers have POSITIONS tokens; MOST_PROBES at most.

    LabError when every row was cut: its conversation and its tokens are not the same.
    """
    found: list[dict[str, Any]] = []
    positions = 0
    for row in rows:
        if positions >= POSITIONS or len(found) == MOST_PROBES:
            break
        if not row["truncated"]:
            found.append(row)
            positions += min(sum(label != IGNORE for label in row["labels"]), ROW_POSITIONS)
    if not found:
        raise LabError(
            "no held-out row is whole, and the merge is proven on whole ones: all were cut at "
            "model.max_seq_length; raise it in the run's recipe.toml and begin again with --from data."
        )
    return found


def answer_logits(model: Any, rows: Sequence[dict[str, Any]], positions: int = ROW_POSITIONS) -> list[Any]:
    """For each row the logits (float32, on the CPU) that predict its first labelled tokens."""
    import torch

    model.eval()
    found = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row["input_ids"]], device=model.device)
            scored = [i - 1 for i, label in enumerate(row["labels"]) if label != IGNORE and i > 0]
            logits = model(input_ids=ids).logits[0, scored[:positions]]
            found.append(logits.float().cpu())
    return found


def greedy_answers(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 16
) -> list[list[int]]:
    """The greedy continuation of each rendered prompt, as ids.

    On CUDA without a cache: Unsloth's patched Llama decodes with one only where Unsloth itself loaded the
    model, and the proof reads some with transformers alone.
    """
    answers = []
    for prompt in prompts:
        inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,  # as served, whatever the base's generation_config.json says
            use_cache=model.device.type != "cuda",
            pad_token_id=tokenizer.pad_token_id,
        )
        answers.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    return answers


def chain(base: Said, tuned: Said, merged: Said) -> list[Link]:
    """The links base -> adapter -> merged by what the three said.

    The merge must be as near to the adapter as rounding allows, the base clearly further away: a
    merge that equals its base failed. What rounding costs depends on the rows, so a merge also passes whose
    KL is less than 1 / ROUNDING of the fine-tune's. Its weights have a proof of their own.
    """
    tune = link("base", "adapter", base, tuned)
    merge = link("adapter", "merged", tuned, merged)
    apart = tune.mean_kl > max(MIN_EFFECT * merge.mean_kl, 1e-6)
    rounded = tune.mean_kl > ROUNDING * merge.mean_kl
    return [replace(tune, passed=apart), replace(merge, passed=merge.passed or rounded)]


def link(from_: str, to: str, reference: Said, other: Said) -> Link:
    """How far `other` is from `reference`; it passes when no more than rounding lies between them."""
    import torch

    first, second = torch.cat(reference[0]), torch.cat(other[0])
    log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
    kl = max(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), 0.0)
    top1 = float((first.argmax(-1) == second.argmax(-1)).float().mean())
    return Link(
        from_=from_,
        to=to,
        max_abs_logit_diff=float((first - second).abs().max()),
        mean_kl=kl,
        top1_agreement_share=top1,
        greedy_match_share=_matching_share(reference[1], other[1]),
        positions=len(first),
        passed=kl <= MAX_KL and top1 >= MIN_TOP1,
    )


def require_identity(weights: Weights, links: Sequence[Link]) -> None:
    """The gate before a push: LabError with the likely causes when a proof failed."""
    if not weights.passed:
        raise LabError(
            f"{weights}. Likely causes: the merge ran without the adapter, on another base, or with "
            "another lora_alpha or r. Nothing was pushed."
        )
    for each in links:
        if not each.passed:
            raise LabError(f"{each}. Likely causes: {_CAUSES[each.from_ == 'base']} Nothing was pushed.")


def _matching_share(first: list[list[int]], second: list[list[int]]) -> float:
    """The share of greedy tokens before the first difference."""
    matching = total = 0
    for a, b in zip(first, second, strict=True):
        same = [x == y for x, y in zip(a, b, strict=False)]
        matching += same.index(False) if False in same else len(same)
        total += max(len(a), len(b))
    return matching / total if total else 1.0

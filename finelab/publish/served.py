"""What the merged model says, kept so that a server's answers can be held against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finelab.files import write_json
from finelab.run import Run

LIKELIEST = 20  # as many as vLLM gives by default


def keep_served_check(
    run: Run, model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[list[int]]
) -> None:
    """Write the merged model's greedy answers to `served-check.json`, which the deployment reads.

    Beside each token stand the log probabilities (nats) of the likeliest ones by their ids.
    """
    asked = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    kept = [
        {
            "prompt_token_ids": prompt,
            "token_ids": answer,
            "top_logprobs": _likeliest(model, prompt, answer),
        }
        for prompt, answer in zip(asked, answers, strict=True)
    ]
    write_json(run.folder / "served-check.json", {"answers": kept})


def _likeliest(model: Any, prompt: list[int], answer: list[int]) -> list[dict[str, float]]:
    import torch

    ids = torch.tensor([prompt + answer], device=model.device)
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    found = []
    for chosen, row in zip(answer, log_probs, strict=True):
        tokens = {chosen, *row.topk(LIKELIEST).indices.tolist()}
        found.append({str(token): round(row[token].item(), 6) for token in sorted(tokens)})
    return found

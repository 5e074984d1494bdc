"""served-check.json: what the deployment holds a server against."""

import json
import sys
from pathlib import Path

import pytest
import torch

from finelab.publish import greedy_answers, keep_served_check
from tests import tiny

DEPLOYMENT = Path(__file__).parents[2] / "deployment"
PROMPTS = ["the cat sat", "one two"]


@pytest.fixture
def kept(run):
    model, tokenizer = tiny.base_model(vocab_size=260), tiny.tokenizer()
    answers = greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=5)
    keep_served_check(run, model, tokenizer, PROMPTS, answers)
    file = run.folder / "served-check.json"
    return model, tokenizer, answers, json.loads(file.read_text(encoding="utf-8"))["answers"]


def test_each_answer_stands_behind_its_prompt(kept):
    _, tokenizer, answers, rows = kept
    assert [row["token_ids"] for row in rows] == answers
    for prompt, row in zip(PROMPTS, rows, strict=True):
        assert row["prompt_token_ids"] == tokenizer(prompt, add_special_tokens=False)["input_ids"]


def test_the_log_probabilities_are_those_that_each_token_was_chosen_by(kept):
    model, _, _, rows = kept
    for row in rows:
        for place, (token, likeliest) in enumerate(zip(row["token_ids"], row["top_logprobs"], strict=True)):
            ids = torch.tensor([row["prompt_token_ids"] + row["token_ids"][:place]])
            with torch.no_grad():
                alone = model(input_ids=ids).logits[0, -1].log_softmax(-1)
            assert len(likeliest) == 20
            assert max(likeliest, key=likeliest.get) == str(token)
            for name, value in likeliest.items():
                assert value == pytest.approx(alone[int(name)].item(), abs=1e-4)


def test_the_deployment_finds_a_server_that_says_the_same_the_same(kept, monkeypatch):
    monkeypatch.syspath_prepend(str(DEPLOYMENT))
    from served_identity import compare

    rows = kept[3]
    link = compare(rows, [row["top_logprobs"] for row in rows])
    sys.modules.pop("served_identity")
    assert link["passed"] and link["mean_kl"] == 0 and link["greedy_match_share"] == 1

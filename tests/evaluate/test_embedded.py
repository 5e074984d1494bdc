"""On the real small model: an adapter that does nothing, one that destroys, and answers in batches."""

import pytest
import torch

from finelab.chat.prompt import render_prompt
from finelab.evaluate import base_and_tuned, forgetting, generate, neutral_rows, row_totals
from tests.tiny import with_adapter

pytestmark = pytest.mark.slow
DATE = "26 Jul 2024"
QUESTIONS = ("Name a colour.", "What is the capital of France? Answer in one word.", "Hello!")


@pytest.fixture(scope="module")
def base(embedded_folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(embedded_folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def neutral(tokenizer):
    rows = neutral_rows(tokenizer, DATE)
    return {name: column[-10:] for name, column in rows.items()}  # 8 of unlike length give no verdict


def test_a_padded_batch_gives_what_each_prompt_gives_alone(base, tokenizer):
    prompts = [render_prompt(tokenizer, [{"role": "user", "content": text}], DATE) for text in QUESTIONS]
    together = generate(base, tokenizer, prompts, 12)
    alone = [generate(base, tokenizer, [prompt], 12)[0] for prompt in prompts]
    assert together == alone
    assert any(each.ended for each in together)
    assert "Paris" in together[1].text


def test_an_untrained_adapter_forgets_nothing_and_a_destroyed_one_is_worse(base, neutral):
    model = with_adapter(base, moved=False, target_modules=["q_proj", "v_proj"])
    before, after = map(row_totals, base_and_tuned(model, neutral))
    same = forgetting(neutral["source"], before, after)["instructions"]
    assert (same.difference, same.verdict) == (0.0, "no measurable change")
    assert 2 < same.base < 5
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    before, after = map(row_totals, base_and_tuned(model, neutral))
    assert forgetting(neutral["source"], before, after)["instructions"].verdict == "worse"

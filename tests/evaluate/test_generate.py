import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finelab.evaluate import Answer, generate
from finelab.evaluate.generate import BATCH, TOKENS, batches
from tests.tiny import base_model, tokenizer

PROMPTS = ["the", "a the b the c", "xyz" * 7, "q"]


@pytest.fixture(scope="module")
def model():
    model = base_model(vocab_size=260)  # the tokenizer has 260 tokens
    model.generation_config.eos_token_id = tokenizer().eos_token_id
    return model


def texts(answers):
    return [each.tokens for each in answers]


@given(st.lists(st.integers(1, 9000), max_size=80), st.integers(1, 512))
def test_every_prompt_is_in_one_batch_that_fits(lengths, max_new_tokens):
    found = batches(lengths, max_new_tokens)
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    for batch in found:
        longest = max(lengths[index] for index in batch) + max_new_tokens
        assert len(batch) == 1 or (len(batch) <= BATCH and len(batch) * longest <= TOKENS)


def test_a_padded_batch_gives_what_each_prompt_gives_alone(model):
    together = generate(model, tokenizer(), PROMPTS, 12)
    alone = [generate(model, tokenizer(), [prompt], 12)[0] for prompt in PROMPTS]
    assert texts(together) == texts(alone)


def test_the_same_seed_gives_the_same_samples_and_leaves_the_random_state_alone(model):
    torch.manual_seed(5)
    first = generate(model, tokenizer(), PROMPTS, 12, temperature=1.5, seed=1)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == drawn
    assert texts(first) == texts(generate(model, tokenizer(), PROMPTS, 12, temperature=1.5, seed=1))
    assert texts(first) != texts(generate(model, tokenizer(), PROMPTS, 12, temperature=1.5, seed=2))


def test_an_answer_ends_at_its_end_token_and_says_so(model, monkeypatch):
    """What generate returns behind a prompt: an answer that ended, padding, and one that was cut off."""
    end, encoding = tokenizer().eos_token_id, tokenizer()
    the, a = encoding("the").input_ids[0], encoding("a").input_ids[0]

    def said(input_ids, **_):
        answers = torch.tensor([[the, a, end, end], [a, a, a, a]])
        return torch.cat([input_ids, answers], dim=1)

    monkeypatch.setattr(model, "generate", said)
    first, second = generate(model, encoding, ["the", "the"], 4)
    assert (first.text, first.ended, first.tokens) == ("thea", True, (the, a))
    assert (second.text, second.ended, len(second.tokens)) == ("aaaa", False, 4)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [((1, 2, 3), 0.0), ((1, 2, 3, 4, 5), 0.0), ((1, 2, 3, 4) * 2, 1 / 5), ((7,) * 10, 6 / 7)],
)
def test_the_share_of_4_grams_that_were_there_before(tokens, share):
    assert Answer("", tokens, True).repeated_share == pytest.approx(share)

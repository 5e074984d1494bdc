"""The draw of a token, against transformers' own warpers and the definitions of OpenAI's penalties."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from finelab.chat.sampling import Sampler, Sampling

LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, -3.0])
EOS = (5,)


def drawn(count, prompt=(0,), logits=LOGITS, **asked):
    sampler = Sampler(Sampling(**asked), list(prompt), EOS, "cpu")
    return [sampler.draw(logits).id for _ in range(count)]


def shares(ids):
    return torch.bincount(torch.tensor(ids), minlength=6) / len(ids)


@pytest.mark.parametrize(
    ("asked", "warpers"),
    [
        ({"temperature": 0.5}, [TemperatureLogitsWarper(0.5)]),
        ({"top_k": 2}, [TopKLogitsWarper(2)]),
        ({"top_p": 0.6}, [TopPLogitsWarper(0.6)]),
        ({"min_p": 0.4}, [MinPLogitsWarper(0.4)]),
        (
            {"temperature": 1.5, "top_k": 4, "top_p": 0.9, "min_p": 0.2},
            [TemperatureLogitsWarper(1.5), TopKLogitsWarper(4), TopPLogitsWarper(0.9), MinPLogitsWarper(0.2)],
        ),
    ],
)
def test_tokens_come_as_often_as_generate_would_draw_them(asked, warpers):
    expected = LogitsProcessorList(warpers)(torch.zeros(1, 1), LOGITS[None].clone()).softmax(-1)[0]
    found = shares(drawn(4000, seed=1, **asked))
    assert (found - expected).abs().max() < 0.03
    assert (found[expected == 0] == 0).all()


def test_temperature_zero_takes_the_likeliest():
    assert drawn(3, temperature=0) == [0, 0, 0]


def test_a_seed_fixes_the_answer_and_no_seed_does_not():
    assert drawn(30, seed=7) == drawn(30, seed=7)
    assert drawn(30, seed=7) != drawn(30, seed=8)
    assert drawn(30) != drawn(30)
    assert drawn(30, seed=-1) == drawn(30, seed=-1)


def test_penalties_count_what_the_answer_has_said_already():
    assert drawn(4, temperature=0, presence_penalty=0.8) == [0, 1, 0, 0]
    assert drawn(5, temperature=0, frequency_penalty=0.6) == [0, 1, 0, 2, 1]


def test_a_repetition_penalty_counts_the_prompt_too():
    assert drawn(1, prompt=[0], temperature=0, repetition_penalty=2.0) == [1]
    assert drawn(2, prompt=[4], temperature=0, repetition_penalty=2.0) == [0, 1]


def test_a_bias_can_force_and_forbid_a_token():
    assert drawn(2, temperature=0, logit_bias={4: 100}) == [4, 4]
    assert drawn(2, temperature=0, logit_bias={0: -100}) == [1, 1]
    assert drawn(2, temperature=0, logit_bias={0: -100, 1: -2.0, 3: 1.5}) == [3, 3]


def test_no_end_before_min_tokens_and_none_at_all_with_ignore_eos():
    ends = LOGITS.flip(0)  # the end token is the likeliest
    assert drawn(3, logits=ends, temperature=0, min_tokens=2) == [4, 4, 5]
    assert drawn(3, logits=ends, temperature=0, ignore_eos=True) == [4, 4, 4]


def test_reported_probabilities_are_the_models_own_whatever_the_temperature():
    sampler = Sampler(Sampling(temperature=0, logprobs=2, logit_bias={3: 100}), [0], EOS, "cpu")
    token = sampler.draw(LOGITS)
    expected = LOGITS.log_softmax(-1)
    assert token.id == 3
    assert token.logprob == pytest.approx(float(expected[3]))
    assert [id_ for id_, _ in token.top] == [0, 1]
    assert [value for _, value in token.top] == pytest.approx(expected[:2].tolist())

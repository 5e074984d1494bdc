from pathlib import Path

import pytest
import torch

from finelab import LabError
from finelab.data import IGNORE
from finelab.publish import Weights, answer_logits, chain, greedy_answers, probes, require_identity
from finelab.publish.identity import MAX_KL, MIN_EFFECT, MIN_TOP1, MOST_PROBES
from tests.house.test_notebooks import cells
from tests.tiny import base_model, with_adapter

ROOT = Path(__file__).parents[2]

ROWS = [
    {"input_ids": list(range(start, start + 20)), "labels": [IGNORE] * 8 + list(range(start + 8, start + 20))}
    for start in (3, 30, 60)
]
PROVEN = Weights(adapted=14, moved=14, untouched=6, faults=())


class IdsAsText:
    """A tokenizer whose text is the ids; the model is random, so words would mean nothing."""

    pad_token_id = 0

    def __call__(self, text, add_special_tokens, return_tensors):
        from transformers import BatchEncoding

        ids = torch.tensor([[int(part) for part in text.split()]])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def said(model):
    prompts = [" ".join(map(str, row["input_ids"][:8])) for row in ROWS]
    return answer_logits(model, ROWS), greedy_answers(model, IdsAsText(), prompts, max_new_tokens=6)


@pytest.fixture
def base():
    return said(base_model())


@pytest.fixture
def tuned():
    return said(with_adapter(base_model()))


@pytest.fixture
def merged():
    return said(with_adapter(base_model()).merge_and_unload())


def test_logits_are_those_that_predict_the_answers():
    model = base_model()
    logits = answer_logits(model, ROWS, positions=5)
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([ROWS[0]["input_ids"]])).logits[0]
    assert torch.equal(logits[0], whole[7:12])


def test_a_right_merge_passes(base, tuned, merged):
    links = chain(base, tuned, merged)
    assert [link.passed for link in links] == [True, True]
    assert links[1].mean_kl < 1e-6
    assert links[1].greedy_match_share == 1
    require_identity(PROVEN, links)


def test_the_base_instead_of_the_merge_fails(base, tuned):
    links = chain(base, tuned, base)
    assert not links[0].passed
    assert not links[1].passed
    with pytest.raises(LabError, match="Nothing was pushed"):
        require_identity(PROVEN, links)


def test_an_adapter_that_changes_nothing_fails_at_the_first_link(base):
    links = chain(base, base, base)
    assert [link.passed for link in links] == [False, True]
    with pytest.raises(LabError, match="the adapter was hardly trained"):
        require_identity(PROVEN, links)


def test_a_half_merge_fails(base, tuned):
    model = with_adapter(base_model())
    for name, parameter in model.named_parameters():
        if "layers.1" in name and "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    links = chain(base, tuned, said(model.merge_and_unload()))
    assert not links[1].passed


def test_rounding_that_is_small_beside_the_fine_tune_is_no_other_model():
    """bfloat16 costs most at an answer's first token, and some data have little else."""
    draw = torch.Generator().manual_seed(0)
    tuned = torch.randn(400, 50, generator=draw) * 3
    base = tuned + torch.randn(400, 50, generator=draw) * 2
    near, far = (tuned + torch.randn(400, 50, generator=draw) * noise for noise in (0.4, 0.9))
    links = chain(([base], []), ([tuned], []), ([near], []))
    assert links[1].mean_kl > MAX_KL
    require_identity(PROVEN, links)
    with pytest.raises(LabError, match="adapter -> merged"):
        require_identity(PROVEN, chain(([base], []), ([tuned], []), ([far], [])))


def test_rows_are_compared_until_their_answers_are_long_enough():
    rows = [{"labels": [IGNORE] * 5 + [7] * 10, "truncated": number % 2 == 0} for number in range(400)]
    assert probes(rows) == [rows[1]] * MOST_PROBES
    long = [{"labels": [7] * 300, "truncated": False}] * 9
    assert len(probes(long)) == 6  # of each at most 96 are compared
    with pytest.raises(LabError, match=r"no held-out row is whole.*max_seq_length"):
        probes([{**rows[0], "truncated": True}])


def test_unproven_weights_stop_the_push_even_if_behaviour_agrees(base, tuned, merged):
    weights = Weights(adapted=13, moved=13, untouched=6, faults=("x is missing",))
    with pytest.raises(LabError, match=r"x is missing.*Likely causes"):
        require_identity(weights, chain(base, tuned, merged))


def test_the_evidence_has_the_promised_keys(base, tuned, merged):
    kept = chain(base, tuned, merged)[1].evidence()
    assert list(kept) == [
        "from",
        "to",
        "max_abs_logit_diff",
        "mean_kl",
        "top1_agreement_share",
        "greedy_match_share",
        "positions",
        "passed",
    ]


def test_notebook_4_says_the_thresholds_as_they_are():
    said = " ".join("\n".join(cells(ROOT / "notebooks" / "04_publish.ipynb", "markdown")).split())
    assert f"mean KL of at most {MAX_KL} and a top-1 of at least {MIN_TOP1:.0%}".replace("%", " %") in said
    assert f"more than {MIN_EFFECT:.0f} times" in said


class OnCard:
    """A model and its prompt on a card that is not here; it keeps what `generate` was asked."""

    device = torch.device("cuda")
    pad_token_id = 0

    def __call__(self, text, **_):
        ids = torch.tensor([[1, 2]])
        return type("Inputs", (dict,), {"to": lambda inputs, _: inputs})(input_ids=ids)

    def generate(self, input_ids, **asked):
        self.asked = asked
        return torch.cat([input_ids, torch.tensor([[3]])], 1)


def test_on_a_card_no_cache_is_used_which_only_unsloths_own_models_have():
    """Unsloth's decoding reads `max_seq_length` of the model, which transformers alone does not set."""
    model = OnCard()
    assert greedy_answers(model, model, ["a"]) == [[3]]
    assert model.asked["use_cache"] is False

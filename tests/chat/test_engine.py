"""Many answers at once out of one model: each is the one that the model gives alone."""

import queue

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finelab.chat.engine import Answer, Engine, QueueFull
from finelab.chat.sampling import Sampling
from tests import tiny

GREEDY = Sampling(temperature=0, ignore_eos=True)
ADAPTERS = {"first": "default", "second": "other"}  # the names that PEFT has for them
MODELS = ("base", *ADAPTERS)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    """A tiny Llama with two adapters that differ; in float64, where two tokens never tie by rounding."""
    base = tiny.base_model(vocab_size=len(tokenizer), max_position_embeddings=4096)
    base.generation_config.eos_token_id = tokenizer.eos_token_id
    found = tiny.with_adapter(base)
    found.add_adapter("other", found.peft_config["default"])
    torch.manual_seed(5)
    for name, parameter in found.named_parameters():
        if "lora_B.other" in name:
            torch.nn.init.normal_(parameter, std=0.6)
    return found.double().eval()


@pytest.fixture
def engine(model, tokenizer):
    with Engine(model, tokenizer, max_concurrency=3, max_queue=4, adapters=ADAPTERS) as running:
        yield running


class Asked:
    """An answer and the pieces that came of it."""

    def __init__(self, prompt, model="base", sampling=GREEDY, max_tokens=6, **options):
        self.pieces = queue.Queue()
        self.answer = Answer(model, prompt, sampling, max_tokens, emit=self.pieces.put, **options)

    def result(self):
        """(token ids, text, why it ended)."""
        ids, text = [], ""
        while True:
            piece = self.pieces.get(timeout=60)
            ids += [token.id for token in piece.tokens]
            text += piece.text
            if piece.finish or piece.error:
                return ids, text, piece.finish or piece.error


def alone(model, prompt, name, count):
    """What transformers' generate says with this adapter, or with none."""
    ids = torch.tensor([prompt])
    lengths = {"max_new_tokens": count, "min_new_tokens": count}
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0} | lengths
    if name == "base":
        with model.disable_adapter():
            return model.generate(input_ids=ids, **options)[0, len(prompt) :].tolist()
    model.set_adapter(ADAPTERS[name])
    return model.generate(input_ids=ids, **options)[0, len(prompt) :].tolist()


prompts = st.lists(st.integers(0, 255), min_size=1, max_size=12)
requests = st.tuples(
    st.sampled_from([[], [5] * 7, list(range(9))]), prompts, st.sampled_from(MODELS), st.integers(1, 9)
)


@settings(max_examples=60)
@given(asked=st.lists(requests, min_size=1, max_size=7), piece=st.integers(1, 6))
def test_answers_made_together_are_those_made_alone(model, tokenizer, asked, piece):
    with Engine(model, tokenizer, max_concurrency=4, max_queue=4, adapters=ADAPTERS) as running:
        running.piece = piece
        made = [Asked(begin + rest, name, max_tokens=count) for begin, rest, name, count in asked]
        running.submit([each.answer for each in made])
        found = [each.result() for each in made]
    for (begin, rest, name, count), (ids, _, finish) in zip(asked, found, strict=True):
        assert ids == alone(model, begin + rest, name, count)
        assert finish == "length"


def test_a_second_turn_reads_only_what_is_new(engine, model):
    first = Asked([1, 2, 3, 4], "first", max_tokens=5)
    engine.submit([first.answer])
    ids, _, _ = first.result()
    second = Asked([1, 2, 3, 4, *ids, 9, 8], "first")
    engine.submit([second.answer])
    assert second.result()[0] == alone(model, [1, 2, 3, 4, *ids, 9, 8], "first", 6)
    assert second.answer.cached == 8  # the last drawn token was never read


def test_nothing_is_reused_of_another_model(engine):
    for name in MODELS:
        asked = Asked([1, 2, 3, 4, 5], name)
        engine.submit([asked.answer])
        asked.result()
        assert asked.answer.cached == 0


def test_nothing_is_reused_of_another_key(engine):
    for key, reused in ((b"mine", 0), (b"hers", 0), (b"mine", 4)):
        asked = Asked([1, 2, 3, 4, 5], key=key)
        engine.submit([asked.answer])
        asked.result()
        assert asked.answer.cached == reused


def test_an_end_token_ends_the_answer_and_is_no_text(model, tokenizer):
    forced = Sampling(temperature=0, logit_bias={tokenizer.eos_token_id: 1000})
    with Engine(model, tokenizer) as running:
        asked = Asked([1, 2], sampling=forced)
        running.submit([asked.answer])
        assert asked.result() == ([], "", "stop")
        assert asked.answer.generated == 1


def test_a_stop_string_ends_the_answer(engine, tokenizer):
    asked = Asked([1, 2], max_tokens=12)
    engine.submit([asked.answer])
    _, text, _ = asked.result()
    stopped = Asked([1, 2], max_tokens=12, stop=[text[3]])
    engine.submit([stopped.answer])
    assert stopped.result()[1:] == (text[: text.index(text[3])], "stop")


def test_the_queue_takes_all_of_a_request_or_nothing(engine):
    for_ever = [Asked([1], max_tokens=100_000) for _ in range(5)]
    engine.submit([each.answer for each in for_ever])
    with pytest.raises(QueueFull):
        engine.submit([Asked([1]).answer for _ in range(3)])
    two = [Asked([1]) for _ in range(2)]
    engine.submit([each.answer for each in two])
    engine.cancel([each.answer for each in for_ever])
    assert [each.result()[2] for each in two] == ["length", "length"]


def test_a_cancelled_answer_leaves_its_place_to_the_next(model, tokenizer):
    with Engine(model, tokenizer, max_concurrency=1) as running:
        endless, waiting, next_ = Asked([1], max_tokens=100_000), Asked([2]), Asked([3])
        running.submit([each.answer for each in (endless, waiting, next_)])
        endless.pieces.get(timeout=60)
        running.cancel([endless.answer, waiting.answer])
        assert next_.result()[2] == "length"
        assert waiting.pieces.empty()
        assert running.running == running.waiting == 0


def test_a_failure_ends_the_answers_it_hit_and_no_later_one(model, tokenizer):
    with Engine(model, tokenizer) as running:

        def fail(*_):
            hook.remove()
            raise torch.OutOfMemoryError("no memory left")

        hook = model.register_forward_pre_hook(fail)
        hit, later = Asked([1, 2]), Asked([1, 2])
        running.submit([hit.answer])
        assert "OutOfMemoryError" in hit.result()[2]
        running.submit([later.answer])
        assert later.result()[0] == alone(model, [1, 2], "base", 6)
        assert running.alive


def test_an_answer_that_cannot_begin_fails_too(engine):
    refused = Asked([1, 2], sampling=Sampling(logit_bias={2**70: 1.0}))  # no id that a tensor holds
    later = Asked([1, 2])
    engine.submit([refused.answer, later.answer])
    assert refused.result() == ([], "", "the model failed with ValueError")
    assert later.result()[2] == "length"
    assert engine.running == engine.waiting == 0


def test_an_engine_that_has_ended_says_so(model, tokenizer):
    with Engine(model, tokenizer) as running:
        assert running.alive
    assert not running.alive

"""Base and adapters answer side by side, each as if it were alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.slow
QUESTIONS = ("Tell me about the moon.", "What is a llama?")


@pytest.fixture(scope="module")
def adapters(models):
    if len(models) < 3:
        pytest.skip("needs a server with two adapters")
    return models[1:3]


@pytest.fixture(scope="module")
def alone(chat, base, adapters):
    """Each model's answers, asked one after the other; the same question goes to all models in turn."""
    return {
        (model, question): chat(question, model=model, max_tokens=10).choices[0].message.content
        for question in QUESTIONS
        for model in (base, *adapters)
    }


def test_the_models_differ(alone):
    for question in QUESTIONS:
        texts = {text for (_, asked), text in alone.items() if asked == question}
        assert len(texts) == 3, "two models say the same"


def test_answers_at_once_are_those_of_each_alone(chat, alone):
    pairs = [*alone, *reversed(alone)]
    with ThreadPoolExecutor(6) as pool:
        texts = list(
            pool.map(
                lambda pair: chat(pair[1], model=pair[0], max_tokens=10).choices[0].message.content, pairs
            )
        )
    assert dict(zip(pairs, texts, strict=True)) == alone
    assert texts[: len(alone)] == texts[: len(alone) - 1 : -1]


def test_streams_at_once_are_those_of_each_alone(chat, alone):
    streams = {pair: chat(pair[1], model=pair[0], max_tokens=10, stream=True) for pair in list(alone)[:3]}
    texts = dict.fromkeys(streams, "")
    while streams:
        for pair, stream in list(streams.items()):
            chunk = next(stream, None)
            if chunk is None:
                del streams[pair]
            else:
                assert chunk.model == pair[0]
                texts[pair] += chunk.choices[0].delta.content or ""
    assert texts == {pair: alone[pair] for pair in texts}


def test_what_one_model_computed_is_not_anothers(chat, base, adapters, alone):
    """The same prompt right after another model's: its keys and values must not be taken over."""
    for model in (adapters[0], base, adapters[1], base):
        answer = chat(QUESTIONS[1], model=model, max_tokens=10)
        assert answer.choices[0].message.content == alone[model, QUESTIONS[1]]


def test_a_completion_asks_an_adapter_too(complete, base, adapters):
    texts = {complete("The moon is", model=model).choices[0].text for model in (base, *adapters)}
    assert len(texts) == 3

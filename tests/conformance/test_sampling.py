"""How tokens are drawn: greedy, seeds, cut-offs, penalties, biases."""

import pytest

pytestmark = pytest.mark.slow
HOT = {"temperature": 1.2, "max_tokens": 10}
LOOP = "la la la la la la la la la la la la"


@pytest.fixture(scope="module")
def answer(chat):
    def ask(**options):
        return chat(**options).choices[0].message.content

    return ask


@pytest.fixture(scope="module")
def greedy(answer):
    return answer()


def test_temperature_zero_says_the_same_twice(answer, greedy):
    assert answer() == greedy


def test_temperature_zero_ignores_the_seed(answer, greedy):
    assert answer(seed=99) == greedy


def test_a_seed_says_the_same_twice(answer):
    assert answer(seed=7, **HOT) == answer(seed=7, **HOT)


def test_seeds_differ(answer):
    assert len({answer(seed=seed, **HOT) for seed in (1, 2, 3)}) > 1


def test_without_a_seed_answers_differ(answer):
    assert len({answer(**HOT) for _ in range(3)}) > 1


def test_choices_of_one_seed_differ_and_come_again(chat):
    def ask():
        return [choice.message.content for choice in chat(n=3, seed=4, **HOT).choices]

    first = ask()
    assert len(set(first)) > 1
    assert ask() == first


def test_choices_without_temperature_are_alike(chat, greedy):
    assert [choice.message.content for choice in chat(n=2).choices] == [greedy] * 2


def test_a_seed_of_a_single_answer_is_that_of_the_first_choice(chat, answer):
    assert chat(n=2, seed=4, **HOT).choices[0].message.content == answer(seed=4, **HOT)


def test_a_negative_seed_is_a_seed(answer):
    assert answer(seed=-7, **HOT) == answer(seed=-7, **HOT)


@pytest.mark.parametrize(
    "cut",
    [{"extra_body": {"top_k": 1}}, {"top_p": 1e-9}, {"extra_body": {"min_p": 1.0}}],
    ids=["top_k 1", "top_p near 0", "min_p 1"],
)
def test_a_sharp_cut_is_greedy(answer, greedy, cut):
    assert answer(temperature=1.5, seed=3, **cut) == greedy


@pytest.mark.parametrize("off", [{"top_k": -1}, {"top_k": 0}, {"min_p": 0}], ids=str)
def test_a_cut_can_be_off(answer, off):
    """As one that cuts nothing, and unlike the recipe's."""
    asked = {"temperature": 1.5, "seed": 3, "max_tokens": 10}
    wide = {"min_p": 1e-12, "top_k": 10**6}
    assert answer(extra_body=wide | off, **asked) == answer(extra_body=wide, **asked) != answer(**asked)


def test_a_cut_keeps_the_likely(chat):
    """A far too hot answer under min_p holds only tokens near the likeliest one."""
    asked = {"temperature": 2, "seed": 1, "logprobs": True, "top_logprobs": 1}
    for token in chat(extra_body={"min_p": 0.5}, **asked).choices[0].logprobs.content:
        assert token.logprob >= 2 * -0.7 + token.top_logprobs[0].logprob  # ln 0.5, at temperature 2


def test_a_bias_forces_a_token(complete, http, base):
    tokens = http.post("/tokenize", json={"model": base, "prompt": " llama"}).json()["tokens"]
    choice = complete(max_tokens=3, logit_bias={str(tokens[0]): 100}).choices[0]
    single = complete(max_tokens=1, logit_bias={str(tokens[0]): 100}).choices[0].text
    assert choice.text == single * 3 != complete(max_tokens=3).choices[0].text


def test_a_bias_forbids_a_token(complete, http, base):
    first = complete(max_tokens=1).choices[0].text
    id_ = http.post("/tokenize", json={"model": base, "prompt": first}).json()["tokens"][0]
    assert complete(max_tokens=1, logit_bias={str(id_): -100}).choices[0].text != first


def distinct(complete, text, **options):
    """How many different tokens go on with a text."""
    return len(set(complete(text, max_tokens=12, logprobs=0, **options).choices[0].logprobs.tokens))


@pytest.mark.parametrize(
    "penalty",
    [{"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"extra_body": {"repetition_penalty": 1.8}}],
    ids=lambda each: next(iter(each.get("extra_body", each))),
)
def test_a_penalty_breaks_a_loop(complete, penalty):
    assert distinct(complete, LOOP, **penalty) > distinct(complete, LOOP)


def test_a_negative_penalty_makes_a_loop(complete):
    varied = "One, two, three, four,"
    assert distinct(complete, varied, frequency_penalty=-2.0) < distinct(complete, varied)


def test_penalties_of_nothing_change_nothing(answer, greedy):
    none = {"presence_penalty": 0, "frequency_penalty": 0, "extra_body": {"repetition_penalty": 1.0}}
    assert answer(logit_bias={}, **none) == greedy


def test_the_defaults_sample(chat):
    """Without a temperature the recipe's is used, which is not 0."""
    asked = {"temperature": None, "max_tokens": 12}
    assert len({chat(seed=seed, **asked).choices[0].message.content for seed in range(3)}) > 1


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e-45},
        {"temperature": 1e-30},
        {"temperature": 2, "top_p": 1e-300},
        {"temperature": 1e-45, "min_p": 1e-300, "top_k": 2**62},
        {"repetition_penalty": 1e-45},
        {"repetition_penalty": 1e-300, "temperature": 1},
        {"seed": 2**80},
        {"seed": -(2**80)},
        {"logit_bias": {str(id_): -100 for id_ in range(260)}},
        {"logit_bias": {str(id_): 100 for id_ in range(260)}, "temperature": 1e-40},
        {"min_tokens": 2**70, "max_tokens": 2},
    ],
    ids=str,
)
def test_an_extreme_value_is_answered_or_refused(http, base, extreme):
    body = {"model": base, "prompt": "Hi", "max_tokens": 2, "temperature": 1}
    response = http.post("/v1/completions", json=body | extreme)
    assert response.status_code in (200, 400), response.text

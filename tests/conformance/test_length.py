"""How long an answer gets, what is counted, and what is too long."""

import pytest

END = "<|im_end|>"


@pytest.fixture(scope="module")
def end(http, base):
    """A bias for the model's end token: the last one of a templated turn."""
    asked = {"model": base, "messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": False}
    body = http.post("/tokenize", json=asked).json()
    return {
        str(id_): 100 for id_, text in zip(body["tokens"], body["token_strs"], strict=True) if text == END
    }


@pytest.mark.parametrize("count", [1, 2, 7])
def test_max_tokens_is_exact(chat, count):
    answer = chat(max_tokens=count)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == count


def test_max_completion_tokens_is_exact(chat):
    assert chat(max_tokens=None, max_completion_tokens=3).usage.completion_tokens == 3


def test_usage_adds_up(chat):
    usage = chat().usage
    assert usage.prompt_tokens > 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_usage_of_choices_counts_the_prompt_once(chat):
    one, three = chat(max_tokens=4).usage, chat(max_tokens=4, n=3).usage
    assert (three.prompt_tokens, three.completion_tokens) == (one.prompt_tokens, 12)
    assert three.total_tokens == three.prompt_tokens + three.completion_tokens


def test_choices_are_numbered(chat):
    assert [choice.index for choice in chat(n=3, max_tokens=1).choices] == [0, 1, 2]


def test_a_longer_question_has_more_tokens(chat):
    assert (
        chat("Hi " * 40, max_tokens=1).usage.prompt_tokens > chat("Hi", max_tokens=1).usage.prompt_tokens + 30
    )


def test_the_end_token_ends_the_answer_and_is_no_text(chat, end):
    choice = chat(logit_bias=end).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("", "stop")


def test_ignore_eos_goes_on_to_max_tokens(chat, end):
    answer = chat(logit_bias=end, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 6
    assert answer.choices[0].finish_reason == "length"


def test_min_tokens_puts_the_end_off(chat, end):
    answer = chat(logit_bias=end, extra_body={"min_tokens": 3})
    assert 3 <= answer.usage.completion_tokens <= 4  # with the end token, or without
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content


@pytest.mark.slow
def test_an_answer_that_ends_by_itself(chat, end):
    """The model stops where it means to when nothing forces it."""
    answer = chat("Reply with the single word: yes", max_tokens=60)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 60
    assert END not in answer.choices[0].message.content


def test_without_max_tokens_a_chat_fills_the_context(small):
    messages = [{"role": "user", "content": "a" * 3900}]
    body = {"model": "base", "messages": messages, "ignore_eos": True, "temperature": 0}
    with small.http() as http:
        answer = http.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 4096


@pytest.mark.slow
def test_without_max_tokens_a_completion_is_sixteen_long(complete):
    answer = complete(max_tokens=None, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_more_than_the_context_is_refused(refused, path):
    text = "word " * 40_000
    field, value = ("messages", [{"role": "user", "content": text}]) if "chat" in path else ("prompt", text)
    error = refused(path=path, **{field: value})
    assert (error["code"], error["param"]) == ("context_length_exceeded", field)


def test_a_prompt_that_fills_the_context_leaves_no_room(small):
    with small.http() as http:
        response = http.post("/v1/completions", json={"model": "base", "prompt": "a" * 4096})
        assert response.json()["error"]["code"] == "context_length_exceeded"
        last = {"model": "base", "prompt": "a" * 4095, "max_tokens": 1}
        assert http.post("/v1/completions", json=last).json()["usage"]["completion_tokens"] == 1


def test_more_tokens_than_the_context_has_left_are_refused(refused):
    assert refused(max_tokens=10_000_000)["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("field", "most", "too_much"),
    [
        ("stop", ["a", "b", "c", "d"], ["a", "b", "c", "d", "e"]),
        ("n", 8, 9),
        ("top_logprobs", 20, 21),
        ("temperature", 2, 2.01),
        ("presence_penalty", -2, -2.01),
        ("frequency_penalty", 2, 2.01),
        ("logit_bias", {"5": 100}, {"5": 101}),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_the_documented_limits_hold(refused, http, base, field, most, too_much):
    body = {"model": base, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "logprobs": True}
    assert http.post("/v1/chat/completions", json=body | {field: most}).status_code == 200
    assert refused(logprobs=True, **{field: too_much})["param"].split(".")[0] == field

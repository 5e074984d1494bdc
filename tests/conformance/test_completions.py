"""/v1/completions: text goes on, without a template."""

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokens(http, base):
    def ids(text):
        return http.post("/tokenize", json={"model": base, "prompt": text}).json()["tokens"]

    return ids


@pytest.fixture(scope="module")
def single(complete):
    return complete().choices[0].text


def test_a_completion_goes_on_with_the_text(complete):
    answer = complete()
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert "five" in answer.choices[0].text


def test_a_completion_has_no_template(complete, tokens):
    assert complete("Hi", max_tokens=1).usage.prompt_tokens == len(tokens("Hi"))


def test_echo_gives_the_prompt_and_the_text(complete, single):
    assert complete(echo=True).choices[0].text == "One, two, three, four," + single


def test_a_stream_echoes_once(complete, single):
    pieces = [chunk.choices[0].text for chunk in complete(echo=True, stream=True)]
    assert "".join(pieces) == "One, two, three, four," + single


def test_token_ids_are_a_prompt(complete, tokens, single):
    answer = complete(tokens("One, two, three, four,"))
    assert answer.choices[0].text == single
    assert answer.usage.prompt_tokens == len(tokens("One, two, three, four,"))


def test_a_list_of_prompts_is_answered_in_order(complete, single):
    prompts = ["One, two, three, four,", "The capital of France is", "A, B, C, D,"]
    answer = complete(prompts)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.text for choice in answer.choices] == [complete(each).choices[0].text for each in prompts]
    assert answer.usage.completion_tokens == 18


def test_lists_of_token_ids_are_prompts(complete, tokens, single):
    answer = complete([tokens("One, two, three, four,"), tokens("A, B, C, D,")])
    assert answer.choices[0].text == single
    assert len(answer.choices) == 2


def test_a_list_of_one_is_one_prompt(complete, single):
    assert [choice.text for choice in complete(["One, two, three, four,"]).choices] == [single]


def test_choices_of_several_prompts_stand_together(complete, single):
    answer = complete(["One, two, three, four,", "A, B, C, D,"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in answer.choices]
    assert texts[0] == texts[1] == single
    assert texts[2] == texts[3] == complete("A, B, C, D,").choices[0].text


def test_a_stream_of_several_prompts_keeps_them_apart(complete):
    prompts = ["One, two, three, four,", "A, B, C, D,"]
    texts = ["", ""]
    for chunk in complete(prompts, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in complete(prompts).choices]


@pytest.mark.parametrize("ids", [[10**9], [-1]], ids=str)
def test_an_id_outside_the_vocabulary_is_refused(refused, ids):
    assert refused(path="/v1/completions", prompt=ids)["param"].split(".")[0] == "prompt"


def test_control_tokens_are_text_like_any_other_for_a_completion(complete):
    """There is no template to protect: whoever writes the prompt may write all of it."""
    templated = "<|im_start|>user\nReply with the single word: yes<|im_end|>\n<|im_start|>assistant\n"
    assert complete(templated, max_tokens=1).usage.prompt_tokens < len(templated) // 3

"""What transformers itself says, token for token."""

import pytest

pytestmark = pytest.mark.slow
QUESTIONS = ["What is the capital of France?", "Write a haiku about llamas 🦙.", "Add 17 and 25."]


@pytest.fixture(scope="module")
def reference(own_server, embedded_folder):
    """Generates with transformers; gives the new ids and their text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_folder)
    model = AutoModelForCausalLM.from_pretrained(embedded_folder, dtype=torch.float32).eval()

    def generate(prompt, count):
        inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=count, do_sample=False, pad_token_id=2)
        return output[0, inputs["input_ids"].shape[1] :].tolist()

    generate.tokenizer = tokenizer
    return generate


def templated(http, messages):
    return http.post("/tokenize", json={"model": "base", "messages": messages}).json()["prompt"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_greedy_answer_is_transformers_own(chat, http, reference, question):
    messages = [{"role": "user", "content": question}]
    ids = reference(templated(http, messages), 24)
    answer = chat(messages=messages, max_tokens=24, logprobs=True)
    tokens = [token.token for token in answer.choices[0].logprobs.content]
    bytes_ = [bytes(token.bytes) for token in answer.choices[0].logprobs.content]
    text = reference.tokenizer.decode(ids, skip_special_tokens=True)
    assert answer.choices[0].message.content == text
    assert len(tokens) >= len([id_ for id_ in ids if id_ != reference.tokenizer.eos_token_id])
    assert b"".join(bytes_).decode("utf-8", "replace") == text


def test_the_prompt_is_the_templates(http, reference):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    expected = reference.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert templated(http, messages) == expected


def test_a_second_turn_reuses_the_first_and_says_the_same(chat, http, reference):
    first = chat("Name a river in Egypt, please.", max_tokens=16)
    messages = [
        {"role": "user", "content": "Name a river in Egypt, please."},
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "Where does it end?"},
    ]
    second = chat(messages=messages, max_tokens=16)
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens // 2
    ids = reference(templated(http, messages), 16)
    assert second.choices[0].message.content == reference.tokenizer.decode(ids, skip_special_tokens=True)


def test_another_question_reuses_no_more_than_it_shares(chat):
    """The template's beginning may be shared; the question is not."""
    chat("Zebras are striped, aren't they?", max_tokens=1)
    answer = chat("Volcanoes are hot, aren't they?", max_tokens=1)
    assert answer.usage.prompt_tokens_details.cached_tokens < answer.usage.prompt_tokens - 6

"""Log-probabilities: one per token, none above 0, the likeliest first."""

import pytest


@pytest.fixture(scope="module")
def choice(chat):
    return chat(logprobs=True, top_logprobs=3).choices[0]


def test_the_tokens_joined_are_the_text(choice):
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    assert len(choice.logprobs.content) == 6


def test_the_bytes_joined_are_the_text(choice):
    every = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
    assert every.decode("utf-8") == choice.message.content


def test_the_bytes_of_split_characters_are_the_text(chat):
    choice = chat("Write this three times: 🌙🦙", logprobs=True, max_tokens=14).choices[0]
    every = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
    assert every.decode("utf-8", "replace") == choice.message.content


def test_no_probability_is_above_one(choice):
    for token in choice.logprobs.content:
        assert token.logprob <= 0
        assert all(each.logprob <= 0 for each in token.top_logprobs)


def test_the_likeliest_come_first(choice):
    for token in choice.logprobs.content:
        values = [each.logprob for each in token.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)


def test_a_greedy_token_is_the_likeliest(choice):
    for token in choice.logprobs.content:
        assert token.top_logprobs[0].token == token.token
        assert token.top_logprobs[0].logprob == token.logprob


def test_no_likeliest_ones_unless_asked_for(chat):
    for token in chat(logprobs=True, max_tokens=2).choices[0].logprobs.content:
        assert token.top_logprobs == []


def test_no_logprobs_unless_asked_for(chat):
    assert chat(max_tokens=1).choices[0].logprobs is None


def test_a_stream_has_the_same_ones(chat, choice):
    chunks = list(chat(stream=True, logprobs=True, top_logprobs=3))
    tokens = [token for chunk in chunks if (found := chunk.choices[0].logprobs) for token in found.content]
    assert [token.token for token in tokens] == [token.token for token in choice.logprobs.content]
    for streamed, whole in zip(tokens, choice.logprobs.content, strict=True):
        assert streamed.logprob == pytest.approx(whole.logprob, abs=1e-3)


def test_top_logprobs_need_logprobs(refused):
    assert refused(top_logprobs=2)["param"] == "top_logprobs"


def test_a_completions_logprobs(complete):
    choice = complete(logprobs=2).choices[0]
    found = choice.logprobs
    assert "".join(found.tokens) == choice.text
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 6
    assert all(value <= 0 for value in found.token_logprobs)
    for token, likeliest in zip(found.tokens, found.top_logprobs, strict=True):
        assert token in likeliest
        assert 2 <= len(likeliest) <= 3


def test_a_completions_offsets_are_where_the_tokens_stand(complete):
    choice = complete(logprobs=0).choices[0]
    starts = [offset - choice.logprobs.text_offset[0] for offset in choice.logprobs.text_offset]
    for start, token in zip(starts, choice.logprobs.tokens, strict=True):
        assert choice.text[start:].startswith(token)


def test_logprobs_are_the_models_own(chat):
    """Temperature and cut-offs change the draw, not the reported probability."""
    plain = chat(logprobs=True, max_tokens=1).choices[0].logprobs.content[0]
    hot = (
        chat(logprobs=True, max_tokens=1, temperature=2, extra_body={"top_k": 1})
        .choices[0]
        .logprobs.content[0]
    )
    assert hot.token == plain.token
    assert hot.logprob == pytest.approx(plain.logprob, abs=1e-3)

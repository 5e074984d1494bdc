"""The shape of a stream, and that it says what the whole answer says."""

import json

import pytest

from tests.conformance.conftest import error_of
from tests.conformance.server import load_of

EMOJI = "🌙🦙🎉🌙🦙🎉🌙🦙🎉🌙🦙🎉🌙"


def text_of(chunks, choice=0):
    return "".join(
        each.delta.content or "" for chunk in chunks for each in chunk.choices if each.index == choice
    )


def events_of(response):
    return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]


@pytest.fixture(scope="module")
def chunks(chat):
    return list(chat(stream=True))


def test_the_first_chunk_alone_names_the_role(chunks):
    first, *later = [chunk.choices[0].delta for chunk in chunks]
    assert (first.role, first.content) == ("assistant", "")
    assert all(delta.role is None for delta in later)


def test_all_chunks_are_of_one_answer(chunks, base):
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.model for chunk in chunks} == {base}
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert chunks[0].id.startswith("chatcmpl-")


def test_two_streams_have_two_ids(chunks, chat):
    with chat(stream=True) as stream:
        assert next(stream).id != chunks[0].id


def test_only_the_last_chunk_has_a_reason(chunks):
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]


def test_a_stream_ends_with_an_empty_delta(chunks):
    assert not chunks[-1].choices[0].delta.content


def test_the_text_comes_in_pieces(chunks):
    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) >= 4


def test_the_answer_comes_while_it_is_made(chat, address):
    with chat(stream=True, max_tokens=200) as stream:
        assert next(chunk for chunk in stream if chunk.choices[0].delta.content)
        assert load_of(address) == (1, 0)


def test_a_stream_is_server_sent_events(http, base):
    body = {"model": base, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "stream": True}
    response = http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].split(";")[0] == "text/event-stream"
    assert "no-" in response.headers["cache-control"]
    assert response.text.endswith("data: [DONE]\n\n")
    events = events_of(response)
    assert events.count("[DONE]") == 1
    assert all(json.loads(event)["object"] == "chat.completion.chunk" for event in events[:-1])


def test_a_stream_of_a_completion_ends_the_same_way(http, base):
    response = http.post(
        "/v1/completions", json={"model": base, "prompt": "Hi", "max_tokens": 2, "stream": True}
    )
    *events, done = events_of(response)
    assert done == "[DONE]"
    assert {json.loads(event)["object"] for event in events} == {"text_completion"}


def test_the_pieces_joined_are_the_whole_answer(chat, chunks):
    assert text_of(chunks) == chat().choices[0].message.content


def test_a_completions_pieces_joined_are_the_whole_text(complete):
    pieces = "".join(chunk.choices[0].text for chunk in complete(stream=True))
    assert pieces == complete().choices[0].text != ""


@pytest.mark.slow
def test_each_choice_has_a_stream_of_its_own(chat):
    asked = {"n": 2, "temperature": 1, "seed": 5, "extra_body": {"ignore_eos": True}}
    chunks = list(chat(stream=True, **asked))
    whole = [choice.message.content for choice in chat(**asked).choices]
    assert [text_of(chunks, 0), text_of(chunks, 1)] == whole
    for index in (0, 1):
        own = [each for chunk in chunks for each in chunk.choices if each.index == index]
        assert own[0].delta.role == "assistant"
        assert [each.finish_reason for each in own if each.finish_reason] == ["length"]
        assert own[-1].finish_reason == "length"


def test_usage_comes_last_when_it_is_asked_for(chat):
    *chunks, last = chat(stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    usage = chat().usage
    counts = (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens)
    assert counts == (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


def test_a_completions_usage_comes_last_too(complete):
    *_, last = complete(stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.completion_tokens == 6


@pytest.mark.parametrize(
    "asked",
    [{}, {"stream_options": {"include_usage": False}}, {"stream_options": {"include_usage": None}}],
    ids=["left out", "false", "null"],
)
def test_usage_does_not_come_unasked(chat, asked):
    assert all(chunk.usage is None and chunk.choices for chunk in chat(stream=True, max_tokens=2, **asked))


def test_a_bad_request_for_a_stream_is_an_error_not_a_stream(refused):
    assert refused(stream=True, temperature=9)["param"] == "temperature"


def test_a_stream_that_is_null_is_a_whole_answer(http, base):
    body = {"model": base, "prompt": "Hi", "max_tokens": 1, "stream": None}
    response = http.post("/v1/completions", json=body)
    assert (response.status_code, response.json().get("object")) == (200, "text_completion")


def test_stream_options_need_a_stream(refused):
    assert refused(stream_options={"include_usage": True})["param"] == "stream_options"


def test_an_unknown_model_is_no_stream(http):
    body = {"model": "nobody", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 404
    error_of(response)


def test_a_character_of_several_tokens_comes_whole(complete):
    texts = [chunk.choices[0].text for chunk in complete(EMOJI, stream=True, max_tokens=10)]
    whole = complete(EMOJI, max_tokens=10).choices[0].text
    assert "".join(texts) == whole
    assert any(ord(letter) > 0xFFFF for letter in whole), "the model did not go on with emoji"
    assert all("\ufffd" not in text for text in texts[:-2])  # the last character may be cut by max_tokens


def test_bytes_that_are_no_character_come_as_in_the_whole_text(small):
    """A random model over bytes draws broken UTF-8 most of the time."""
    body = {"model": "base", "prompt": "a", "max_tokens": 32, "temperature": 2}
    with small.http() as http:
        for seed in range(8):
            asked = body | {"seed": seed}
            whole = http.post("/v1/completions", json=asked).json()["choices"][0]["text"]
            events = events_of(http.post("/v1/completions", json=asked | {"stream": True}))[:-1]
            assert "".join(json.loads(each)["choices"][0]["text"] for each in events) == whole
            whole.encode("utf-8")


@pytest.mark.slow
def test_a_hot_answer_is_the_same_in_pieces(chat):
    for seed in (1, 2):
        asked = {"temperature": 1.8, "seed": seed, "max_tokens": 16}
        assert text_of(chat(stream=True, **asked)) == chat(**asked).choices[0].message.content


def test_the_clients_own_accumulator_reads_the_stream(client, base):
    messages = [{"role": "user", "content": "Count from one to twenty in words."}]
    asked = {"model": base, "messages": messages, "temperature": 0, "max_tokens": 8}
    with client.chat.completions.stream(**asked) as stream:
        stream.until_done()
        read = stream.current_completion_snapshot.choices[0].message.content
    assert read == client.chat.completions.create(**asked).choices[0].message.content

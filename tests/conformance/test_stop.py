"""Stop strings: found across tokens, never shown, not even in part."""

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def text(complete):
    text = complete(max_tokens=16).choices[0].text
    assert len(text) > 30
    return text


@pytest.fixture(scope="module")
def stopped(complete):
    def ask(stop):
        return complete(max_tokens=16, stop=stop).choices[0]

    return ask


@pytest.mark.parametrize("start", range(3, 13, 3))
def test_a_stop_string_ends_the_text_wherever_tokens_end(stopped, text, start):
    """At some of these places it begins in one token and ends in another."""
    stop = text[start : start + 6]
    choice = stopped(stop)
    assert (choice.text, choice.finish_reason) == (text.split(stop)[0], "stop")


def test_the_first_of_several_stop_strings_ends_the_text(stopped, text):
    assert stopped([text[15:21], text[5:11], "never"]).text == text[: text.index(text[5:11])]


def test_one_letter_is_a_stop_string(stopped, text):
    assert stopped(text[9]).text == text.split(text[9])[0]


def test_a_stop_string_at_the_beginning_leaves_nothing(stopped, text):
    choice = stopped(text[:4])
    assert (choice.text, choice.finish_reason) == ("", "stop")


def test_a_stop_string_that_never_comes_changes_nothing(stopped, text):
    choice = stopped("this is not there")
    assert (choice.text, choice.finish_reason) == (text, "length")


def test_text_that_began_like_a_stop_string_is_not_lost(stopped, text):
    choice = stopped([text[4:9] + "#", text[-3:] + "#"])
    assert (choice.text, choice.finish_reason) == (text, "length")


def test_a_stop_string_in_the_prompt_does_not_count(complete, text):
    assert (
        complete(max_tokens=4, stop="One,").choices[0].text
        == text[: len(complete(max_tokens=4).choices[0].text)]
    )


def test_a_stop_string_of_several_bytes_a_letter(complete):
    prompt = "🌙🦙🎉🌙🦙🎉🌙🦙🎉🌙🦙🎉"
    whole = complete(prompt, max_tokens=12).choices[0].text
    letter = next(each for each in whole if ord(each) > 0xFFFF)
    choice = complete(prompt, max_tokens=12, stop=letter).choices[0]
    assert (choice.text, choice.finish_reason) == (whole.split(letter)[0], "stop")


@pytest.mark.parametrize("start", [3, 6, 10])
def test_a_stream_shows_nothing_of_a_stop_string(complete, text, start):
    stop = text[start : start + 8]
    chunks = list(complete(max_tokens=16, stop=stop, stream=True))
    shown = ""
    for chunk in chunks:
        shown += chunk.choices[0].text
        assert text.split(stop)[0].startswith(shown)
    assert shown == text.split(stop)[0]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_stop_string_ends_a_chat(chat):
    text = chat(max_tokens=12).choices[0].message.content
    choice = chat(max_tokens=12, stop=text[7:12]).choices[0]
    assert (choice.message.content, choice.finish_reason) == (text.split(text[7:12])[0], "stop")


def test_a_stop_string_ends_each_choice_by_itself(complete):
    asked = {"n": 2, "temperature": 1.0, "seed": 11, "max_tokens": 12}
    first, second = (choice.text for choice in complete(**asked).choices)
    stop = first[4:9]
    choices = complete(stop=stop, **asked).choices
    assert [choice.text for choice in choices] == [first.split(stop)[0], second.split(stop)[0]]

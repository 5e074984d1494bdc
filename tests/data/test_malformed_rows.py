"""Rows as they should not be: each is repaired or dropped, always counted, never an exception."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelab.data.read import Row
from finelab.data.standardize import standardize
from tests.data.test_standardize import AS_TEXT, CALL, CONTROL, QA, calling, run, sharegpt, short

USER, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}


def nested(depth):
    value = "x"
    for _ in range(depth):
        value = [value]
    return value


def answered(content):
    """A question whose answer has this content."""
    return {"conversations": [USER, {"from": "gpt", "value": content}]}


def asked(content):
    """An answer whose question has this content."""
    return {"conversations": [{"from": "human", "value": content}, GPT]}


def called(arguments):
    return {"messages": [USER, calling({"name": "f", "arguments": arguments})]}


def no_column(*names):
    return f"no conversation column among: {', '.join(map(repr, names))}"


NOT_TEXT = "content is not text"
NO_ANSWER = "no answer to a question"
LIST = "row is a list, not an object; name a file that is one list .json"
UNFILLED = "no column is filled"
PYTHON = "holds turns written by Python, not JSON; save as .jsonl or .parquet"
NOT_ARGUMENTS = "tool call arguments are not a JSON object"

DROPPED = {
    # no row
    "null": (None, "row is not an object"),
    "a number": (7, "row is not an object"),
    "NaN": (float("nan"), "row is not an object"),
    "true": (True, "row is not an object"),
    "a string": ("hello", "row is not an object"),
    "a string of JSON": (json.dumps({"messages": [USER, GPT]}), "row is not an object"),
    "nested lists": ([[["a"]]], LIST),
    "a bare list of turns": ([USER, GPT], LIST),
    "an empty object": ({}, UNFILLED),
    "a text column": ({"text": "<|im_start|>user\nq<|im_end|>"}, no_column("text")),
    "a misspelt column": ({"Conversation s": [USER, GPT]}, no_column("conversation s")),
    "a column that is not printable": ({"\ud800": "q"}, "no conversation column among: '\\ud800'"),
    "more columns than are named": (
        {f"{n}" * 50: "q" for n in range(9)},
        no_column(*(f"{n}" * 40 for n in range(8))) + ", ...",
    ),
    # no turns
    "turns null": ({"conversations": None}, UNFILLED),
    "turns blank": ({"messages": ""}, UNFILLED),
    "turns an empty list": ({"conversations": []}, UNFILLED),
    "turns NaN": ({"conversations": float("nan"), "text": "q"}, no_column("text")),
    "turns an empty list, as text": ({"conversations": "[]"}, "empty conversation"),
    "turns a number": ({"conversations": 7}, "conversation is not a list"),
    "turns false": ({"messages": False}, "conversation is not a list"),
    "turns an object": ({"conversations": {"from": ["human"], "value": ["q"]}}, "conversation is not a list"),
    "turns an object, as text": ({"conversations": '{"from": "human"}'}, "conversation is not a list"),
    "turns plain text": ({"conversations": "hello"}, "conversation is not JSON"),
    "turns text that breaks off": ({"conversations": '[{"from": "human"'}, "conversation is not JSON"),
    "turns as Python writes them": ({"conversations": str([USER, GPT])}, f"conversations {PYTHON}"),
    "turns text of a thousand brackets": ({"messages": "[" * 100_000}, "conversation is not JSON"),
    "a turn that is null": ({"conversations": [USER, None]}, "turn is not an object"),
    "a turn that is text": ({"conversations": ["q", "a"]}, "turn is not an object"),
    "a turn that is a pair": ({"conversations": [["human", "q"], ["gpt", "a"]]}, "turn is not an object"),
    "turns in a list in a list": ({"conversations": [[USER, GPT]]}, "turn is not an object"),
    # roles
    "a role missing": ({"conversations": [{"value": "q"}, GPT]}, "turn without from or role"),
    "a turn that is empty": ({"conversations": [USER, {}]}, "turn without from or role"),
    "a role null": ({"conversations": [{"from": None, "value": "q"}, GPT]}, "turn without from or role"),
    "a role unknown": (sharegpt(("human", "q"), ("narrator", "a")), "role 'narrator' is not known"),
    "a role blank": (sharegpt(("", "q"), ("gpt", "a")), "role '' is not known"),
    "a role very long": (sharegpt(("x" * 500, "q"), ("gpt", "a")), f"role '{'x' * 40}' is not known"),
    "a role not printable": (sharegpt(("\ud800", "q"), ("gpt", "a")), "role '\\ud800' is not known"),
    "a role a number": (sharegpt((3, "q"), ("gpt", "a")), "role is not text"),
    "a role a list": (sharegpt((["human"], "q"), ("gpt", "a")), "role is not text"),
    "a role nested deeply": (sharegpt((nested(50_000), "q"), ("gpt", "a")), "role is not text"),
    # contents
    "a content missing": ({"conversations": [USER, {"from": "gpt"}]}, NOT_TEXT),
    "a content null": (answered(None), NOT_TEXT),
    "a content a number": (answered(7), NOT_TEXT),
    "a content true": (asked(True), NOT_TEXT),
    "a content an object": (asked({"text": "q"}), NOT_TEXT),
    "a content nested deeply": (
        asked(nested(50_000)),
        "content has a part that is not text (without a type)",
    ),
    "an image": (
        asked([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "q"}]),
        "content has a part that is not text ('image_url')",
    ),
    "an image without anything": (
        asked([{"type": "image"}]),
        "content has a part that is not text ('image')",
    ),
    "audio": (
        asked([{"type": "input_audio", "input_audio": {"data": "x"}}]),
        "content has a part that is not text ('input_audio')",
    ),
    "video": (asked([{"type": "video", "video": "x.mp4"}]), "content has a part that is not text ('video')"),
    "a part without a type": (asked([{"text": "q"}]), "content has a part that is not text (without a type)"),
    "a part with a very long type": (
        asked([{"type": "x" * 500}]),
        f"content has a part that is not text ('{'x' * 40}')",
    ),
    "a part whose type is a list": (
        asked([{"type": ["text"], "text": "q"}]),
        "content has a part that is not text (without a type)",
    ),
    "a part without text": (asked([{"type": "text"}]), "content has a part that is not text ('text')"),
    "a part that is null": (asked([None]), "content has a part that is not text (without a type)"),
    "parts in parts": (asked([["q"]]), "content has a part that is not text (without a type)"),
    # what is not text, or not to be learned
    "a picture in a column": (
        {"image": "1.jpg", **asked("<image>\nWhat is this?")},
        "the column image is filled, and only text can be learned",
    ),
    "sounds in a column": (
        {"audios": [{"path": "1.wav"}], **asked("q")},
        "the column audios is filled, and only text can be learned",
    ),
    "an answer of weight 0": (
        {"messages": [USER, GPT | {"weight": 0}, USER, GPT | {"weight": 1}]},
        "an answer has weight 0, which says not to train on it",
    ),
    "a call of weight 0": (
        {"messages": [USER, calling(CALL) | {"weight": 0.0}]},
        "an answer has weight 0, which says not to train on it",
    ),
    # who speaks when
    "only a system turn": (sharegpt(("system", "s")), NO_ANSWER),
    "only a question": (sharegpt(("human", "q")), NO_ANSWER),
    "only an answer": (sharegpt(("gpt", "a")), NO_ANSWER),
    "only a tool result": (sharegpt(("tool", "r")), NO_ANSWER),
    "answer before question": (sharegpt(("gpt", "a"), ("human", "q")), NO_ANSWER),
    "all turns empty": (sharegpt(("system", ""), ("human", ""), ("gpt", "")), NO_ANSWER),
    "an empty answer": (sharegpt(("human", "q"), ("gpt", "")), NO_ANSWER),
    "an answer of white space": (answered(" \n\t\u00a0\u3000"), NO_ANSWER),
    "an answer of unprintable characters": (answered("\x00\x07\x1b"), NO_ANSWER),
    "an answer of lone surrogates": (answered("\ud83d\udfff"), NO_ANSWER),
    "an answer of zero-width characters": (answered("\u200b\u200d \ufeff"), NO_ANSWER),
    "a system turn in the middle": (
        sharegpt(("human", "q"), ("system", "s"), ("gpt", "a")),
        "system turn in the middle",
    ),
    "a system turn last": (
        sharegpt(("human", "q"), ("gpt", "a"), ("system", "s")),
        "system turn in the middle",
    ),
    "a system turn behind a leading answer": (
        sharegpt(("gpt", "hello"), ("system", "s"), ("human", "q"), ("gpt", "a")),
        "system turn in the middle",
    ),
    # questions and answers in columns
    "a prompt alone": ({"prompt": "q"}, "prompt without an answer"),
    "a prompt with choices": ({"prompt": "q", "chosen": "a", "rejected": "b"}, "prompt without an answer"),
    "a completion null": ({"prompt": "q", "completion": None}, "prompt without an answer"),
    "a completion alone": ({"completion": "a"}, no_column("completion")),
    "a completion without turns": ({"prompt": "q", "completion": []}, "prompt without an answer"),
    "a completion that is an object": ({"prompt": "q", "completion": GPT}, NOT_TEXT),
    "an Alpaca output null": (
        {"instruction": "q", "input": "", "output": None},
        "instruction without an answer",
    ),
    "an Alpaca output blank": ({"instruction": "q", "output": ""}, "instruction without an answer"),
    "an Alpaca output of white space": ({"instruction": "q", "output": " "}, NO_ANSWER),
    "an Alpaca input that is a number": ({"instruction": "q", "input": 3, "output": "a"}, NOT_TEXT),
    "an Alpaca row without a question": (
        {"instruction": None, "input": "", "output": "a"},
        no_column("output"),
    ),
    "a history that is text": ({"instruction": "q", "output": "a", "history": "x"}, "history is not JSON"),
    "a history of triples": (
        {"instruction": "q", "output": "a", "history": [["q", "a", "b"]]},
        "history is not a list of pairs",
    ),
    "a history of numbers": ({"instruction": "q", "output": "a", "history": [[1, 2]]}, NOT_TEXT),
    "a Dolly response that is a number": (
        {"instruction": "q", "context": "", "response": 7},
        "response is a number, not text",
    ),
    "an answer that is an index": (
        {"question": "q", "choices": ["a", "b"], "answer": 1},
        "answer is a number, not text",
    ),
    "a prompt that is a number": ({"prompt": 0, "completion": "a"}, "prompt is a number, not text"),
    "a prompt of turns as Python writes them": (
        {"prompt": str([USER]), "completion": json.dumps([GPT])},
        f"prompt {PYTHON}",
    ),
    "a completion of turns as numpy writes them": (
        {"prompt": "q", "completion": "[{'content': 'a', 'role': 'assistant'}\n {'content': 'b'}]\n"},
        f"completion {PYTHON}",
    ),
    # tools
    "arguments that are not JSON": (called("x=1"), NOT_ARGUMENTS),
    "arguments that break off": (called('{"x": 1'), NOT_ARGUMENTS),
    "arguments that are blank": (called(""), NOT_ARGUMENTS),
    "arguments that are a list": (called([1]), NOT_ARGUMENTS),
    "arguments that are a list, as text": (called("[1]"), NOT_ARGUMENTS),
    "arguments encoded twice": (called('"{}"'), NOT_ARGUMENTS),
    "arguments null": (called(None), NOT_ARGUMENTS),
    "arguments with NaN": (
        called({"x": float("nan")}),
        "tool call or definition with a value that is not JSON",
    ),
    "arguments nested deeply": (called({"x": nested(200)}), "nested too deeply"),
    "arguments nested very deeply": (called({"x": nested(50_000)}), "nested too deeply"),
    "a call without a name": ({"messages": [USER, calling({"arguments": {}})]}, "tool call without a name"),
    "a call with a number for a name": (
        {"messages": [USER, calling({"name": 7, "arguments": {}})]},
        "tool call without a name",
    ),
    "a call with an unprintable name": (
        {"messages": [USER, calling({"name": "\x00", "arguments": {}})]},
        "tool call without a name",
    ),
    "a call that is text": ({"messages": [USER, calling("f()")]}, "tool call is not JSON"),
    "a call that is a number": ({"messages": [USER, calling(7)]}, "tool call is not an object"),
    "calls that are a number": ({"messages": [USER, GPT | {"tool_calls": 7}]}, "tool call is not an object"),
    "a function_call turn without JSON": (
        sharegpt(("human", "q"), ("function_call", "f(1)")),
        "tool call is not JSON",
    ),
    "a function_call turn null": (
        sharegpt(("human", "q"), ("function_call", None)),
        "tool call is not an object",
    ),
    "a call beside a content that is a number": (
        {"messages": [USER, calling(CALL, content=7)]},
        NOT_TEXT,
    ),
    "a result first": (
        sharegpt(("tool", "r"), ("human", "q"), ("gpt", "a")),
        "tool result without a tool call",
    ),
    "a result behind a question": (
        sharegpt(("human", "q"), ("tool", "r"), ("gpt", "a")),
        "tool result without a tool call",
    ),
    "a result behind an answer": (
        sharegpt(("human", "q"), ("gpt", "a"), ("tool", "r"), ("gpt", "b")),
        "tool result without a tool call",
    ),
    "a result null": ({"messages": [USER, calling(CALL), {"role": "tool", "content": None}]}, NOT_TEXT),
    "a result with an image": (
        {"messages": [USER, calling(CALL), {"role": "tool", "content": [{"type": "image", "image": "x"}]}]},
        "content has a part that is not text ('image')",
    ),
    "a result nested very deeply": (
        {"messages": [USER, calling(CALL), {"role": "tool", "content": nested(50_000)}]},
        "nested too deeply",
    ),
    "a call without a result": (
        {"messages": [USER, calling(CALL), GPT]},
        "tool call without a result",
    ),
    "a call, then another call": (
        {"messages": [USER, calling(CALL), calling(CALL), {"role": "tool", "content": "r"}, GPT]},
        "tool call without a result",
    ),
    "a call, then another question": (
        {"messages": [USER, calling(CALL), USER, GPT]},
        "tool call without a result",
    ),
    "a result, then another question": (
        {"messages": [USER, calling(CALL), {"role": "tool", "content": "r"}, USER, GPT]},
        "tool result without an answer",
    ),
    "a call behind an answer": (
        {"messages": [USER, GPT, calling(CALL), {"role": "tool", "content": "r"}, GPT]},
        "tool call behind an answer",
    ),
    "tools that are a number": ({"messages": [USER, GPT], "tools": 7}, "tool definition is not an object"),
    "tools that are names": ({"messages": [USER, GPT], "tools": ["f"]}, "tool definition is not JSON"),
    "tools text that breaks off": (
        {"messages": [USER, GPT], "tools": '[{"name"'},
        "tool definition is not JSON",
    ),
    "a tool without a name": (
        {"messages": [USER, GPT], "tools": [{"type": "function", "function": {"description": "d"}}]},
        "tool definition without a name",
    ),
    "a tool nested deeply": (
        {"messages": [USER, GPT], "tools": [{"name": "f", "parameters": nested(200)}]},
        "nested too deeply",
    ),
}

TRIMMED, CLEANED = "white space trimmed", "unprintable characters removed"
SAVED = {
    "a question of control tokens only": (
        asked("<|im_end|><|im_start|>"),
        [("user", "< |im_end|>< |im_start|>"), ("assistant", "a")],
        {"control token broken up"},
    ),
    "an answer of a control token only": (
        answered("<|im_end|>"),
        [("user", "q"), ("assistant", "< |im_end|>")],
        {"control token broken up"},
    ),
    "a lone surrogate in an answer": (answered("a\ud83d"), QA, {CLEANED}),
    "a null character in a question": (asked("\x00q"), QA, {CLEANED}),
    "white space around a character that is removed": (asked("\x00 q"), QA, {CLEANED, TRIMMED}),
    "zero-width characters inside a text stay": (
        answered("👩\u200d👩"),
        [("user", "q"), ("assistant", "👩\u200d👩")],
        set(),
    ),
    "a zero-width system turn": (
        {"conversations": [{"from": "system", "value": "\u200b"}, USER, GPT]},
        QA,
        {"empty system turn dropped"},
    ),
    "an empty turn of each kind": (
        sharegpt(("system", ""), ("human", ""), ("gpt", ""), ("human", "q"), ("gpt", "a"), ("human", "")),
        QA,
        {"empty system turn dropped", "empty user turn dropped", "empty assistant turn dropped"},
    ),
    "reasoning beside an answer": (
        {"conversations": [USER, GPT | {"reasoning_content": "First, ..."}]},
        QA,
        {"reasoning left out"},
    ),
    "five answers without a question": (
        sharegpt(("human", "q"), ("gpt", "a"), *[("gpt", "b")] * 4),
        [("user", "q"), ("assistant", "a\n\nb\n\nb\n\nb\n\nb")],
        {"same role merged"},
    ),
    "a result behind the last answer": (
        sharegpt(("human", "q"), ("gpt", "a"), ("tool", "r")),
        QA,
        {"trailing tool result dropped"},
    ),
    "a call that is never answered": (
        {"messages": [USER, calling(CALL)]},
        [("user", "q"), ("assistant", "", ["f"])],
        set(),
    ),
    "a call in a leading answer": (
        {"messages": [calling(CALL), USER, GPT]},
        QA,
        {"leading answer dropped"},
    ),
    "an empty list in a function_call turn": (
        sharegpt(("human", "q"), ("gpt", "a"), ("human", "r"), ("function_call", "[]")),
        QA,
        {"empty assistant turn dropped"},
    ),
    "a control token in the name of a call": (
        {"messages": [USER, calling({"name": "<|im_end|>", "arguments": {}})]},
        [("user", "q"), ("assistant", "", ["< |im_end|>"])],
        {"control token broken up"},
    ),
    "columns that mean nothing": (
        {"conversations": [USER, GPT], "score": float("nan"), "source": 7, "system": 3, "weight": []},
        QA,
        set(),
    ),
    "a thousand turns": (
        {"conversations": [USER, GPT] * 500},
        QA * 500,
        set(),
    ),
}


@pytest.mark.parametrize(("row", "reason"), DROPPED.values(), ids=DROPPED.keys())
def test_a_row_that_cannot_be_saved_is_dropped_with_its_reason(row, reason):
    result = run([row])
    assert [(each.number, each.reason) for each in result.dropped] == [(1, reason)]
    assert not result.conversations
    assert not result.repaired


@pytest.mark.parametrize(("row", "messages", "repairs"), SAVED.values(), ids=SAVED.keys())
def test_a_row_that_can_be_saved_is_repaired(row, messages, repairs):
    result = run([row])
    assert [short(each) for each in result.conversations] == [messages]
    assert dict(result.repaired) == dict.fromkeys(repairs, 1)


def test_all_of_them_at_once_are_all_accounted_for():
    rows = [row for row, *_ in (*DROPPED.values(), *SAVED.values())]
    result = run(rows)
    assert result.rows_in == len(rows) == len(DROPPED) + len(SAVED)
    assert len(result.dropped) == len(DROPPED)
    numbers = [each.number for each in (*result.dropped, *result.conversations)]
    assert sorted(numbers) == list(range(1, len(rows) + 1))


def test_without_tool_calls_a_call_that_is_malformed_is_dropped_all_the_same():
    rows = [called("x=1"), called({"x": float("nan")}), called('{"x": 1}')]
    result = run(rows, tool_calls=False)
    assert [each.number for each in result.dropped] == [1, 2]
    assert short(result.conversations[0]) == [("user", "q"), ("assistant", AS_TEXT)]


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(CONTROL)
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
WHOLE = [
    {
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": [{"type": "text", "text": "q"}, "r"]},
            {"from": "function_call", "value": {"name": "f", "arguments": {"x": [1, {"y": "z"}]}}},
            {"from": "observation", "value": {"r": [1.5, None]}},
            {"role": "assistant", "content": None, "tool_calls": [{"id": 1, "function": CALL}]},
            {"role": "tool", "content": [{"type": "text", "text": "r"}]},
            {"role": "assistant", "content": "a"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": {"enum": [1]}}}}],
        "system": "t",
        "score": 0.5,
        "source": "s",
    },
    {"prompt": [{"role": "user", "content": "q"}], "completion": "a", "tools": '[{"name": "f"}]'},
    {"instruction": "q", "input": "r", "output": "a", "history": [["q", "a"]], "system": "s"},
]


@st.composite
def spoiled(draw):
    """A whole row with one or two of its values, wherever they stand, exchanged for anything."""
    row = copy.deepcopy(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(1, 2))):
        inside = row
        while True:
            keys = sorted(inside) if isinstance(inside, dict) else range(len(inside))
            key = draw(st.sampled_from(keys))
            if not inside[key] or not isinstance(inside[key], dict | list) or draw(st.integers(0, 3)) == 0:
                break
            inside = inside[key]
        inside[key] = draw(anything)
    return row


def test_the_rows_to_be_spoiled_are_whole():
    result = run(WHOLE)
    assert len(result.conversations) == len(WHOLE)
    assert set(result.repaired) == {"same role merged"}  # the system column with the system turn


@given(st.lists(anything | spoiled(), max_size=4), st.booleans())
def test_no_row_whatever_is_in_it_is_an_exception(rows, tool_calls):
    result = standardize([Row(n, each) for n, each in enumerate(rows, start=1)], CONTROL, tool_calls)
    assert result.rows_in == len(rows)
    numbers = [each.number for each in (*result.dropped, *result.conversations)]
    assert sorted(numbers) == list(range(1, len(rows) + 1))
    json.dumps([vars(each) for each in result.conversations], allow_nan=False).encode()

"""Every form in which people keep conversations, and what becomes of it."""

import json

import pytest

from finelab.chat.requests import ChatMessage
from finelab.data.dialects import ROLES, to_messages

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
S = {"role": "system", "content": "s"}
QA = [Q, A]


def calling(*calls, content=""):
    functions = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
    return {"role": "assistant", "content": content, "tool_calls": functions}


def tool(content):
    return {"role": "tool", "content": content}


def defined(name, **more):
    return {"type": "function", "function": {"name": name, **more}}


def openai_call(arguments, **more):
    return {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}, **more}


def csv(turns):
    return json.dumps(turns)


FROM = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
CALLED = [Q, calling(("f", {"x": 1}))]

TURNS = {
    "ShareGPT": ({"conversations": FROM}, QA),
    "ShareGPT in a column messages": ({"messages": FROM}, QA),
    "a column conversation": ({"conversation": QA}, QA),
    "messages": ({"messages": QA}, QA),
    "role and content in a column conversations": ({"conversations": QA}, QA),
    "both kinds of turn in a row": ({"messages": [FROM[0], A]}, QA),
    "both kinds of key in a turn": (
        {"messages": [{"from": "human", "content": "q"}, {"role": "gpt", "value": "a"}]},
        QA,
    ),
    "null beside the key that is used, as Arrow fills it": (
        {
            "conversations": [
                {"from": None, "value": None, "role": "user", "content": "q"},
                {"from": "gpt", "value": "a", "role": None, "content": None, "tool_calls": None},
            ]
        },
        QA,
    ),
    "more keys in a turn": ({"messages": [Q | {"weight": 0, "name": "Ann"}, A | {"id": 7, "weight": 1}]}, QA),
    "reasoning beside an answer": (
        {"messages": [Q, A | {"reasoning_content": "r"}, Q, A | {"reasoning_content": None}]},
        [Q, A | {"reasoning": "r"}, *QA],
    ),
    "columns of pictures that are empty": ({"messages": QA, "image": None, "images": [], "audio": ""}, QA),
    "more columns": ({"messages": QA, "id": "x", "weight": 0.5, "prompt": "unused"}, QA),
    "a null column before the one that is used": ({"conversations": None, "messages": QA}, QA),
    "a blank column before it, as csv has it": ({"conversations": "", "messages": csv(QA)}, QA),
    "JSON text": ({"conversations": csv(FROM)}, QA),
    "JSON text of messages": ({"messages": csv(QA)}, QA),
    "system": ({"messages": [S, *QA]}, [S, *QA]),
    "a system column": ({"system": "s", "conversations": FROM}, [S, *QA]),
    "a system_prompt column": ({"system_prompt": "s", "messages": QA}, [S, *QA]),
    "a system column that repeats the system turn": ({"system": "s", "messages": [S, *QA]}, [S, *QA]),
    "a system column that says what the question says": (
        {"system": "q", "messages": QA},
        [{"role": "system", "content": "q"}, *QA],
    ),
    "a blank system column": ({"system": " ", "messages": QA}, QA),
    "a blank system column beside one that is filled": (
        {"system": "", "system_prompt": "s", "messages": QA},
        [S, *QA],
    ),
    "an empty list before the column that is used": ({"conversations": [], "messages": QA}, QA),
    "NaN in what a row lacks, as pandas has it": (
        {"conversations": float("nan"), "messages": QA, "tools": float("nan"), "images": float("nan")},
        QA,
    ),
    "a column in capitals": ({" Messages": QA}, QA),
    "a column written twice": ({"messages": QA, "Messages": 2}, QA),
    "a system column that is no text": ({"system": True, "messages": QA}, QA),
    "text parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in "pq"]}, A]},
        [{"role": "user", "content": "pq"}, A],
    ),
    "plain strings among the parts": (
        {"messages": [{"role": "user", "content": ["p", {"type": "text", "text": "q"}]}, A]},
        [{"role": "user", "content": "pq"}, A],
    ),
    "no parts": ({"messages": [Q, A | {"content": []}]}, [Q, A | {"content": ""}]),
    "text that looks like JSON stays text": (
        {"messages": [Q, A | {"content": "[1]"}]},
        [Q, A | {"content": "[1]"}],
    ),
}

PAIRS = {
    "prompt and completion": ({"prompt": "q", "completion": "a"}, QA),
    "prompt and completion as turns": ({"prompt": [Q], "completion": [A]}, QA),
    "a prompt of many turns and a text": ({"prompt": [S, Q], "completion": "a"}, [S, *QA]),
    "prompt and completion as turns in JSON text": ({"prompt": f" {csv([Q])}\n", "completion": csv([A])}, QA),
    "prompt and completion as ShareGPT in JSON text": ({"prompt": csv(FROM[:1]), "completion": "a"}, QA),
    "JSON text of other things": (
        {"prompt": "q", "completion": '[{"from": "Kyiv", "to": "Lviv"}]'},
        [Q, {"role": "assistant", "content": '[{"from": "Kyiv", "to": "Lviv"}]'}],
    ),
    "text that only begins as turns": (
        {"prompt": '[{"role": "user", "content": "x"}] and?', "completion": "[] or [{}"},
        [
            {"role": "user", "content": '[{"role": "user", "content": "x"}] and?'},
            {"role": "assistant", "content": "[] or [{}"},
        ],
    ),
    "input and output": ({"input": "q", "output": "a"}, QA),
    "columns in capitals": ({"Prompt": "q", "Response ": "a"}, QA),
    "Alpaca with NaN for an input": ({"instruction": "q", "input": float("nan"), "output": "a"}, QA),
    "prompt and response": ({"prompt": "q", "response": "a"}, QA),
    "question and answer": ({"question": "q", "answer": "a"}, QA),
    "OpenOrca": ({"id": "x", "system_prompt": "s", "question": "q", "response": "a"}, [S, *QA]),
    "Alpaca": ({"instruction": "q", "input": "", "output": "a"}, QA),
    "Alpaca without an input": ({"instruction": "q", "output": "a"}, QA),
    "Alpaca with an input": (
        {"instruction": "p", "input": "q", "output": "a", "text": "p q a"},
        [{"role": "user", "content": "p\n\nq"}, A],
    ),
    "Alpaca with nothing but an input": ({"instruction": "", "input": "q", "output": "a"}, QA),
    "Alpaca with a system column": ({"system": "s", "instruction": "q", "output": "a"}, [S, *QA]),
    "Alpaca with a history": (
        {"instruction": "q", "output": "a", "system": "s", "history": [["q1", "a1"], ["q2", "a2"]]},
        [
            S,
            *(
                {"role": r, "content": c}
                for r, c in zip(["user", "assistant"] * 2, ["q1", "a1", "q2", "a2"], strict=True)
            ),
            *QA,
        ],
    ),
    "Alpaca with a history as JSON text": (
        {"instruction": "q", "output": "a", "history": '[["q", "a"]]'},
        [*QA, *QA],
    ),
    "Dolly": ({"instruction": "q", "context": "", "response": "a", "category": "open_qa"}, QA),
    "Dolly with a context": (
        {"instruction": "p", "context": "q", "response": "a", "category": "closed_qa"},
        [{"role": "user", "content": "p\n\nq"}, A],
    ),
    "null columns of another dialect": (
        {"conversations": None, "prompt": None, "completion": None, "instruction": "q", "output": "a"},
        QA,
    ),
}

TOOL_TURNS = {
    "OpenAI's call with arguments as text": (
        A | {"content": None, "tool_calls": [openai_call('{"x": 1}')]},
        CALLED[1],
    ),
    "OpenAI's call with arguments as an object": (
        A | {"content": None, "tool_calls": [openai_call({"x": 1})]},
        CALLED[1],
    ),
    "a bare call": ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}, CALLED[1]),
    "a bare call with the null envelope of another, as Arrow fills it": (
        {"role": "assistant", "tool_calls": [{"function": None, "name": "f", "arguments": {"x": 1}}]},
        CALLED[1],
    ),
    "a bare call with Llama's parameters": (
        {"role": "assistant", "tool_calls": [{"name": "f", "parameters": {"x": 1}}]},
        CALLED[1],
    ),
    "a call with white space around its name": (
        {"role": "assistant", "tool_calls": [{"name": " f\n", "arguments": '{"x": 1}'}]},
        CALLED[1],
    ),
    "calls as JSON text": (
        {"role": "assistant", "content": "", "tool_calls": csv([openai_call('{"x": 1}')])},
        CALLED[1],
    ),
    "text beside a call": (
        {"role": "assistant", "content": "See.", "tool_calls": [openai_call("{}")]},
        calling(("f", {}), content="See."),
    ),
    "two calls": (
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [openai_call("{}"), openai_call('{"x": [1, {}]}')],
        },
        calling(("f", {}), ("f", {"x": [1, {}]})),
    ),
    "no calls": (A | {"tool_calls": []}, A),
    "null calls": (A | {"tool_calls": None, "function_call": None}, A),
    "the old function_call key": (
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        CALLED[1],
    ),
    "calls of a user are ignored": (Q | {"tool_calls": [openai_call("{}")]}, Q),
    "a function_call turn": (
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        CALLED[1],
    ),
    "a function_call turn, arguments as text": (
        {"from": "function_call", "value": '{"name": "f", "arguments": "{\\"x\\": 1}"}'},
        CALLED[1],
    ),
    "a function_call turn with a list": (
        {
            "from": "function_call",
            "value": '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": "{}"}]',
        },
        calling(("f", {}), ("g", {})),
    ),
    "a function_call turn with an object": (
        {"from": "function_call", "value": {"name": "f", "arguments": {"x": 1}}},
        CALLED[1],
    ),
    "arguments that hold JSON text keep it": (
        {"role": "assistant", "tool_calls": [openai_call('{"x": "{\\"y\\": 1}"}')]},
        calling(("f", {"x": '{"y": 1}'})),
    ),
    "Glaive's call inside an answer stays text": (
        {"from": "gpt", "value": '<functioncall> {"name": "f", "arguments": \'{"x": 1}\'}'},
        {"role": "assistant", "content": '<functioncall> {"name": "f", "arguments": \'{"x": 1}\'}'},
    ),
    "a result as text": ({"role": "tool", "tool_call_id": "call_1", "content": "sunny"}, tool("sunny")),
    "a result as an object": ({"from": "observation", "value": {"t": "20 °C"}}, tool('{"t": "20 °C"}')),
    "a result as a list": ({"role": "tool", "content": ["a", "b"]}, tool('["a", "b"]')),
    "a result as an empty list": ({"role": "tool", "content": []}, tool("[]")),
    "a result as a list of typed objects": (
        {"role": "tool", "content": [{"type": "cafe", "text": "x"}]},
        tool('[{"type": "cafe", "text": "x"}]'),
    ),
    "a result as text parts": (
        {"role": "tool", "content": [{"type": "text", "text": t} for t in "xy"]},
        tool("xy"),
    ),
    "a result as a number": ({"role": "tool", "content": 7}, tool("7")),
}

PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer"}}}
TOOLS = {
    "OpenAI's definition": ([defined("f", parameters=PARAMETERS)], [defined("f", parameters=PARAMETERS)]),
    "a bare definition": ([{"name": "f", "parameters": PARAMETERS}], [defined("f", parameters=PARAMETERS)]),
    "JSON text": (csv([{"name": "f"}, defined("g", strict=True)]), [defined("f"), defined("g", strict=True)]),
    "a list of JSON texts": (['{"name": "f"}', '{"name": "g"}'], [defined("f"), defined("g")]),
    "a single definition": ({"name": "f", "description": "d"}, [defined("f", description="d")]),
    "none": (None, None),
    "an empty list": ([], None),
    "an empty list as text": ("[]", None),
    "blank": ("", None),
}


@pytest.mark.parametrize(("row", "messages"), (TURNS | PAIRS).values(), ids=(TURNS | PAIRS).keys())
def test_a_conversation_in_any_form_is_the_same_messages(row, messages):
    assert to_messages(row) == (messages, None)


@pytest.mark.parametrize(("alias", "role"), ROLES.items(), ids=ROLES)
@pytest.mark.parametrize("key", ["from", "role"])
def test_a_role_is_known_by_every_name(key, alias, role):
    content = '{"name": "f", "arguments": "{}"}' if role == "function_call" else "text"
    expected = calling(("f", {})) if role == "function_call" else {"role": role, "content": "text"}
    for spelled in (alias, alias.upper(), f" {alias.title()}\n", alias.replace("_", "-")):
        assert to_messages({"messages": [{key: spelled, "content": content}]}) == ([expected], None)


@pytest.mark.parametrize(("turn", "expected"), TOOL_TURNS.values(), ids=TOOL_TURNS.keys())
def test_calls_and_results_in_any_form_are_the_same_turn(turn, expected):
    assert to_messages({"messages": [turn]}) == ([expected], None)


@pytest.mark.parametrize(("tools", "expected"), TOOLS.values(), ids=TOOLS.keys())
@pytest.mark.parametrize(
    "row", [{"messages": QA}, {"instruction": "q", "output": "a"}], ids=["messages", "Alpaca"]
)
def test_tool_definitions_in_any_form_are_what_a_template_takes(row, tools, expected):
    assert to_messages(row | {"tools": tools}) == (QA, expected)


def test_the_old_column_of_functions_is_read_where_there_are_no_tools():
    row = {"messages": QA, "functions": [{"name": "f", "parameters": PARAMETERS}]}
    assert (
        to_messages(row) == to_messages(row | {"tools": "[]"}) == (QA, [defined("f", parameters=PARAMETERS)])
    )
    assert to_messages(row | {"tools": [{"name": "g"}]}) == (QA, [defined("g")])


def test_parts_are_joined_as_the_server_joins_them():
    content = [{"type": "text", "text": text} for text in ("Hello ", "world")]
    served = ChatMessage(role="user", content=content).plain(0)
    assert to_messages({"messages": [{"role": "user", "content": content}, A]})[0][0] == served


def test_a_row_is_not_changed():
    row = {
        "messages": [Q, {"role": "assistant", "tool_calls": [openai_call('{"x": 1}')]}],
        "tools": [{"name": "f"}],
    }
    before = json.dumps(row)
    to_messages(row)
    assert json.dumps(row) == before

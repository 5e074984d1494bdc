import json
from random import Random

import pytest

from finelab.embedded.families import FAMILIES, make_conversation, result_of
from finelab.embedded.make_conversations import HANDWRITTEN
from finelab.evaluate import Answer, answer, answers_evidence, keep_answers, prompts
from finelab.recipe import Chat
from tests.tiny import base_model, tokenizer, with_adapter

ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def split_row(row):
    """A row of the data set as a split has it."""
    messages = [
        {"role": ROLES[turn["from"]], "content": turn["value"], "tool_calls": None}
        for turn in row["conversations"]
    ]
    kept = {"id": "", "source": row["source"], "score": None, "row": 1, "tools": None}
    return kept | {"messages": messages}


def samples(name, count=20):
    rng = Random(f"answers {name}")
    return [make_conversation(name, rng) for _ in range(count)]


def say(*values):
    return [Answer(value, (1, 2, 3, 4), True) for value in values]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_reference_is_exact_and_states_its_result(name):
    for asked in prompts(map(split_row, samples(name)), 20):
        assert asked.is_exact(asked.reference)
        assert asked.states_result(asked.reference)
        assert not asked.is_exact("I do not know.")
        assert not asked.states_result("I do not know.")
        assert not asked.is_exact(asked.reference + " Really?")


def test_rows_that_no_family_made_have_no_result():
    handwritten = json.loads(HANDWRITTEN.read_text(encoding="utf-8").splitlines()[0])
    assert result_of(handwritten) is None
    assert result_of(handwritten | {"source": "sorting"}) is None  # a user's own source of that name


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("It is 31 dollars.", True),
        ("31  DOLLARS", True),
        ("131 dollars", False),
        ("2.31 dollars", False),
        ("31 dollarsome", False),
        ("31", False),
    ],
)
def test_a_result_is_found_as_words_of_its_own(text, states):
    question = "I spent 20 dollars on lunch and 11 dollars on a book. How much is that together?"
    turns = [("human", question), ("gpt", "31 dollars. That is 20 + 11.")]
    row = {"source": "follow-up", "conversations": [{"from": who, "value": said} for who, said in turns]}
    assert prompts([split_row(row)], 1)[0].states_result(text) is states


def test_each_source_gives_its_first_rows_and_no_tool_calls():
    rows = [split_row(row) for name in ("sorting", "counting") for row in samples(name, 3)]
    calling = split_row(samples("counting", 1)[0])
    calling["messages"][-1]["tool_calls"] = "[]"
    cut = split_row(samples("counting", 1)[0]) | {
        "truncated": True
    }  # its question may not fit into the model
    found = prompts([calling, cut, *rows], 2)
    assert [each.source for each in found] == ["sorting", "sorting", "counting", "counting"]
    assert found[0].messages == [{"role": "user", "content": rows[0]["messages"][0]["content"]}]
    assert found[0].reference == rows[0]["messages"][-1]["content"]


def test_exact_and_stated_answers_are_counted_and_compared():
    asked = prompts(map(split_row, samples("counting", 12)), 12)
    right = [each.reference for each in asked]
    found = answers_evidence(asked, {"base": say(*["No."] * 12), "tuned": say(*right)})
    assert found["by_family"] == {"counting": {"rows": 12, "base": 0, "tuned": 12}}
    assert found["not_exact"]["verdict"] == found["result_not_stated"]["verdict"] == "improved"
    assert (found["not_exact"]["base"], found["not_exact"]["tuned"]) == (1.0, 0.0)
    assert found["tuned"] == {"ended_share": 1.0, "repeated_4gram_share": 0.0, "mean_tokens": 4.0}


def test_without_a_checkable_row_nothing_is_called_right():
    handwritten = json.loads(HANDWRITTEN.read_text(encoding="utf-8").splitlines()[0])
    asked = prompts([split_row(handwritten)], 1)
    found = answers_evidence(asked, {"base": say("a"), "tuned": say("b")})
    assert set(found) == {"rows", "base", "tuned"}


def test_both_models_answer_greedily_and_sampled_and_it_is_kept(run):
    model = with_adapter(base_model(vocab_size=260))
    asked = prompts(map(split_row, samples("sorting", 3)), 3)
    given = answer(model, tokenizer(), asked, Chat(8, 0.7, 0.1), "26 Jul 2024")
    assert given["base"] != given["tuned"]
    keep_answers(run, asked, given)
    kept = json.loads((run.folder / "answers.json").read_text(encoding="utf-8"))
    assert [row["source"] for row in kept] == ["sorting"] * 3
    assert kept[0]["messages"] == asked[0].messages
    assert kept[1]["tuned_sampled"] == given["tuned_sampled"][1].text
    keys = {"source", "messages", "reference", "base", "tuned", "base_sampled", "tuned_sampled"}
    assert all(set(row) == keys for row in kept)


def test_a_data_set_of_tool_calls_only_has_no_prompt_and_no_answers():
    calling = split_row(samples("counting", 1)[0])
    calling["messages"][-1]["tool_calls"] = "[]"
    assert prompts([calling], 2) == []
    assert answers_evidence([], {"base": [], "tuned": []}) == {"rows": 0}

"""The real Llama 3 tokenizer with Llama 3.2's official template: the recipes that run on a GPU."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelab.data.read import Row
from finelab.data.standardize import control_tokens, standardize
from finelab.data.tokens import IGNORE, ChatTokenizer
from tests import needs
from tests.data import test_encoder, test_template, test_tokens
from tests.data.test_tokens import DATE, HARD_ROWS, NO_LIMIT, as_row, canonical, check_rows

NAMES = {  # Llama 3.2's names; every other id from 128000 on is reserved
    128000: "<|begin_of_text|>",
    128001: "<|end_of_text|>",
    128004: "<|finetune_right_pad_id|>",
    128006: "<|start_header_id|>",
    128007: "<|end_header_id|>",
    128008: "<|eom_id|>",
    128009: "<|eot_id|>",
    128010: "<|python_tag|>",
}
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def llama():
    spec = importlib.util.find_spec("llama_models")
    if spec is None:
        pytest.skip(needs.lacking("llama-models"))
    ranks = Path(spec.submodule_search_locations[0], "llama3/tokenizer.model")
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    reserved = iter(range(256))
    special = [
        NAMES.get(token) or f"<|reserved_special_token_{next(reserved)}|>"
        for token in range(128_000, 128_256)
    ]
    converter = TikTokenConverter(str(ranks), pattern=PATTERN, extra_special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
    )
    tokenizer.chat_template = test_template.TEMPLATES["llama3_2"]
    return tokenizer


@pytest.fixture(scope="module")
def chats(llama):
    return ChatTokenizer(llama, DATE, NO_LIMIT, "cut_turn")


@pytest.fixture(scope="module")
def header(llama):
    return [128006, *llama.encode("assistant", add_special_tokens=False), 128007, 271]


def test_it_is_encoded_fast_and_its_template_writes_tool_calls(chats):
    assert test_encoder.is_fast(chats.encoder)
    assert chats.template.renders_tool_calls


@given(system=st.lists(test_tokens.contents, max_size=1), pairs=test_tokens.exchanges)
def test_any_text_has_the_right_labels(chats, llama, header, system, pairs):
    check_rows(chats, header, canonical(llama, [as_row(system, pairs)]))


@pytest.mark.parametrize("row", HARD_ROWS)
def test_hard_rows(chats, llama, header, row):
    check_rows(chats, header, canonical(llama, [row], tool_calls=True))


def test_embedded_conversations(chats, llama, header):
    check_rows(chats, header, test_tokens.embedded_conversations(llama))


@pytest.mark.slow
def test_real_conversations(chats, header):
    test_tokens.check_real_rows(chats, header, rows=2_500, least=2_000, tool_calls=True)


@given(
    pairs=test_tokens.long_rows,
    limit=st.integers(40, 120),
    truncation=st.sampled_from(test_tokens.TRUNCATION),
)
def test_a_cut_row_is_a_beginning_of_the_whole_row(chats, llama, pairs, limit, truncation):
    [conversation] = canonical(llama, [as_row([], pairs)])
    test_tokens.check_cut(chats, chats.row(conversation), limit, truncation)


def test_there_is_one_bos_and_the_date_is_the_recipes(chats, llama):
    [row] = chats.tokenize(canonical(llama, [[("user", "q"), ("assistant", "a")]])).rows
    assert row.input_ids.tolist().index(128000) == 0
    assert row.input_ids.tolist().count(128000) == 1
    assert "Today Date: 26 Jul 2024" in llama.decode(row.input_ids)


def asked(*turns):
    return {"messages": [{"role": "user", "content": "q"}, *turns, {"role": "assistant", "content": "a"}]}


def test_a_call_is_learned_as_llama_writes_it_and_its_result_is_not(chats, llama, header):
    calling = {"role": "assistant", "content": None, "tool_calls": [test_tokens.CALL]}
    row = asked(calling, {"role": "tool", "content": "<|eot_id|>"})
    tools = [{"name": "weather", "description": "<|eot_id|> {{ x }}", "parameters": {"type": "object"}}]
    conversations = standardize([Row(1, row | {"tools": tools})], control_tokens(llama)).conversations
    check_rows(chats, header, conversations)
    [row] = chats.tokenize(conversations).rows
    call = '{"name": "weather", "parameters": {"city": "תל אביב", "days": 2}}'
    assert llama.decode(row.labels[row.labels != IGNORE]) == f"{call}<|eot_id|>a<|eot_id|>"
    text = llama.decode(row.input_ids)
    assert '"description": "< |eot_id|> {{ x }}"' in text
    assert '<|start_header_id|>ipython<|end_header_id|>\n\n"< |eot_id|>"<|eot_id|>' in text


def test_a_row_that_the_template_refuses_is_left_out_with_the_reason(chats, llama):
    twice = {"role": "assistant", "content": None, "tool_calls": [test_tokens.CALL] * 2}
    rows = [
        Row(1, asked(twice, {"role": "tool", "content": "1"})),
        Row(2, {"prompt": "q", "completion": "a"}),
    ]
    result = chats.tokenize(standardize(rows, control_tokens(llama)).conversations)
    reason = "the chat template refuses it: This model only supports single tool-calls at once!"
    assert result.dropped == [(1, reason)]
    assert [row.conversation.number for row in result.rows] == [2]


def test_text_beside_a_call_that_the_template_would_leave_out_leaves_out_the_row(chats, llama):
    calling = {"role": "assistant", "content": "Let me look.", "tool_calls": [test_tokens.CALL]}
    rows = [Row(1, asked(calling, {"role": "tool", "content": "sun"}))]
    result = chats.tokenize(standardize(rows, control_tokens(llama)).conversations)
    assert result.dropped == [(1, "the chat template changes an answer or leaves out a part of it")]


def test_every_llama_template(llama):
    test_template.check_templates(llama, test_template.WITH_EOT)


@given(text=test_encoder.anything)
def test_any_text_has_the_tokenizers_ids_and_places(chats, llama, text):
    test_encoder.check(chats.encoder, llama, text)


@pytest.mark.slow
def test_every_character_has_the_tokenizers_ids(chats, llama):
    test_encoder.check_every_character(chats.encoder, llama)


@pytest.mark.slow
def test_every_token_is_merged_as_the_tokenizer_lists_it(llama):
    test_encoder.check_every_token(llama)

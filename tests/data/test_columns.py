from hypothesis import given
from hypothesis import strategies as st

from finelab.data.columns import conversation, to_batch
from finelab.data.conversation import Conversation, content_id

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2.5, None, "é"]}}}
texts = st.text(st.characters(codec="utf-8"))
messages = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts}
    ),
    st.just({"role": "assistant", "content": "", "tool_calls": [CALL]}),
)


@given(st.lists(st.lists(messages, min_size=1, max_size=4), max_size=4), st.booleans())
def test_a_conversation_comes_back_from_its_columns(rows, with_tools):
    tools = [{"type": "function", "function": {"name": "add"}}] if with_tools else None
    written = [
        Conversation(content_id(each, tools), each, "s", None if i % 2 else 0.5, i + 1, tools)
        for i, each in enumerate(rows)
    ]
    batch = to_batch(written, "a.jsonl")
    assert [conversation(row) for row in batch.to_pylist()] == written
    assert batch["file"].to_pylist() == ["a.jsonl"] * len(rows)

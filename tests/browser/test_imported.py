"""Files of chats that were changed by hand: what would break the page is not taken."""

import json

import pytest

from tests import needs

expect = needs.playwright().expect
pytestmark = pytest.mark.slow

NUMBERS = {"seed": 7, "tokens": 2, "first_s": 0.1, "tokens_per_s": 20.5}
ANSWER = {"model": "tuned", "content": "Hello.", "finish": "stop"} | NUMBERS
RECORD = {"id": "1", "created": 1, "mode": "chat", "system": "", "given": [], "skipped": 0}


def take(page, tmp_path, record):
    file = tmp_path / "chats.json"
    file.write_text(json.dumps([record]))
    page.get_by_role("button", name="Chats", exact=True).click()
    page.get_by_label("File to import").set_input_files(file)


@pytest.mark.parametrize("field", [*NUMBERS, "finish", "skipped", "created"])
def test_a_chat_with_a_wrong_field_is_left_out(chat, tmp_path, field):
    wrong = 7 if field == "finish" else "many"
    answer = ANSWER | ({field: wrong} if field in ANSWER else {})
    record = RECORD | ({field: wrong} if field in RECORD else {})
    take(chat, tmp_path, record | {"turns": [{"prompt": "hello", "answer": answer}]})
    expect(chat.get_by_text("0 of 1 chats were imported.")).to_be_visible()
    expect(chat.get_by_text("No chats yet.")).to_be_visible()


def test_a_right_one_is_opened(chat, tmp_path):
    take(chat, tmp_path, RECORD | {"turns": [{"prompt": "hello", "answer": ANSWER}]})
    expect(chat.get_by_text("1 of 1 chats were imported.")).to_be_visible()
    chat.get_by_role("button", name="hello", exact=False).first.click()
    expect(chat.locator(".facts")).to_have_text(
        "2 tokens · 20.5 tokens/s · first token 0.10 s · complete · seed 7"
    )

"""Compare: two models, the words that differ, which answer is better, and what becomes of votes."""

import json
import re

import pytest

from finelab.data import control_pattern, open_source, standardize
from tests import needs
from tests.browser.scripted import Fail, Say, model
from tests.browser.test_chat import ask

expect = needs.playwright().expect
pytestmark = pytest.mark.slow


@pytest.fixture
def compare(chat, server):
    server.by_model = {"base": Say("the cat sat there"), "tuned": Say("the dog sat there quietly")}
    chat.get_by_role("button", name="Compare", exact=True).click()
    return chat


def column(page, name):
    return page.locator(f'.reply[data-model="{name}"]')


def both_ended(page):
    expect(page.get_by_role("group", name="Which answer is better?").last).to_be_visible()


def test_two_models_answer_the_same_prompt_live_with_one_seed(compare, server):
    held = {"base": Say("one two three", hold_after=2), "tuned": Say("four five six", hold_after=1)}
    server.by_model = held
    ask(compare, "count")
    expect(column(compare, "base").locator(".body")).to_have_text("one two")
    expect(column(compare, "tuned").locator(".body")).to_have_text("four")
    for say in held.values():
        say.more.set()
    both_ended(compare)
    first, second = server.chats()
    assert {first.pop("model"), second.pop("model")} == {"base", "tuned"}
    assert first == second
    assert isinstance(first["seed"], int)


def test_stop_ends_both(compare, server):
    held = {"base": Say("one two", hold_after=1), "tuned": Say("four five", hold_after=1)}
    server.by_model = held
    ask(compare, "count")
    expect(compare.locator(".body")).to_have_text(["one", "four"])
    compare.keyboard.press("Escape")
    assert all(say.left.wait(10) for say in held.values())
    expect(compare.locator(".facts")).to_contain_text(["stopped by you", "stopped by you"])


def test_a_round_stays_until_there_is_another(compare, server):
    ask(compare, "go")
    compare.get_by_role("button", name="tuned", exact=True).click()
    answers = server.by_model
    server.by_model = dict.fromkeys(answers, Fail(500, "internal_error", "out of memory"))
    compare.get_by_role("button", name="Regenerate both").click()
    expect(compare.locator(".state").first).to_contain_text("out of memory")
    expect(compare.locator(".body")).to_have_text(["the cat sat there", "the dog sat there quietly"])
    voted = compare.get_by_role("button", name="tuned", exact=True)
    expect(voted).to_have_attribute("aria-pressed", "true")
    server.by_model = answers
    compare.locator(".state").first.get_by_role("button", name="Try again").click()
    expect(voted).to_have_attribute("aria-pressed", "false")
    expect(compare.locator(".turn")).to_have_count(1)


def test_the_next_round_tells_each_model_its_own_words(compare, server):
    ask(compare, "go")
    both_ended(compare)
    ask(compare, "on")
    expect(compare.get_by_role("group", name="Which answer is better?")).to_have_count(2)
    said = {body["model"]: body["messages"][1]["content"] for body in server.chats()[2:]}
    assert said == {"base": "the cat sat there", "tuned": "the dog sat there quietly"}


def test_words_that_differ_are_marked(compare):
    ask(compare, "go")
    compare.get_by_role("button", name="Show differences").click()
    expect(compare.locator("del")).to_have_text(["cat"])
    expect(compare.locator("ins")).to_have_text(["dog", "quietly"])
    expect(compare.locator(".share")).to_have_text("67 % of the words are in both, in the same order.")
    compare.get_by_role("button", name="Show differences").click()
    expect(compare.locator("del, ins")).to_have_count(0)


def test_the_difference_of_long_and_equal_texts(chat):
    found = chat.evaluate(
        """async () => {
            const { wordDiff } = await import("./diff.js");
            const long = "word ".repeat(5000);
            const shares = [["a b", "a b"], ["", ""], ["a", "b"]].map((pair) => wordDiff(...pair).share);
            return [...shares, wordDiff(long, long)];
        }"""
    )
    assert found == [1, 1, 0, None]


def test_any_two_models_of_the_server(page, server):
    server.models.append(model("r64", "base"))
    page.goto(server.url)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_label("First model").select_option("r64")
    page.get_by_label("Second model").select_option("r64")  # taken: the two change places
    expect(page.get_by_label("First model")).to_have_value("tuned")
    ask(page, "go")
    both_ended(page)
    assert {body["model"] for body in server.chats()} == {"tuned", "r64"}


def test_a_model_that_is_gone_is_not_replaced_by_the_other_one(page, server):
    server.models.append(model("r64", "base"))
    page.goto(server.url)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_label("Second model").select_option("r64")
    page.get_by_label("First model").select_option("tuned")
    server.models.pop()
    page.reload()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_label("First model")).to_have_value("base")
    expect(page.get_by_label("Second model")).to_have_value("tuned")


def test_with_one_model_there_is_nothing_to_compare(page, server):
    del server.models[1]
    page.goto(server.url)
    expect(page.get_by_role("button", name="Compare", exact=True)).to_be_disabled()


def test_a_blind_round_shows_who_is_who_only_after_the_vote(compare, server):
    compare.get_by_label("Blind").check()
    seen = set()
    for number in range(1, 21):
        ask(compare, "go")
        expect(compare.get_by_role("group", name="Which answer is better?")).to_have_count(number)
        turn = compare.locator(".turn").last
        expect(turn.locator(".who")).to_have_text(["Answer A", "Answer B"])
        expect(turn.locator(".facts")).to_have_text(["", ""])
        assert turn.locator("[data-model]").count() == 0
        seen.add(turn.locator(".body").first.inner_text())
        if len(seen) == 2:
            break
        compare.keyboard.press("Escape")
    assert seen == {"the cat sat there", "the dog sat there quietly"}  # the places are drawn anew
    turn.get_by_role("button", name="B", exact=True).click()
    names = turn.locator(".who").all_inner_texts()
    texts = turn.locator(".body").all_inner_texts()
    assert dict(zip(names, texts, strict=True)) == {
        "base": "the cat sat there",
        "tuned": "the dog sat there quietly",
    }
    expect(turn.locator(".tally")).to_contain_text("of 1 blind votes")
    expect(turn.locator(".tally")).to_contain_text("too few votes to tell")


@pytest.mark.parametrize(
    ("votes", "said"),
    [
        ({"first": 0, "second": 0, "even": 0}, ""),
        ({"first": 0, "second": 0, "even": 2}, "2 blind votes without a winner."),
        (
            {"first": 7, "second": 3, "even": 1},
            "tuned won 7 of 10 blind votes, 1 without a winner (95 % interval 40 to 89 %): "
            "too few votes to tell.",
        ),
        (
            {"first": 10, "second": 0, "even": 0},
            "tuned won 10 of 10 blind votes (95 % interval 72 to 100 %): tuned is preferred.",
        ),
        (
            {"first": 0, "second": 10, "even": 0},
            "tuned won 0 of 10 blind votes (95 % interval 0 to 28 %): base is preferred.",
        ),
    ],
)
def test_votes_are_called_enough_only_when_they_are(chat, votes, said):
    words = chat.evaluate(
        "async (votes) => (await import('./tally.js')).inWords(votes, 'tuned', 'base', true)", votes
    )
    assert words == said


def exported(page, name):
    if not page.get_by_role("dialog", name="Chats").is_visible():
        page.get_by_role("button", name="Chats", exact=True).click()
    with page.expect_download() as waiting:
        page.get_by_role("button", name=name).click()
    return waiting.value.path().read_text("utf-8")


def test_votes_become_rows_that_the_lab_trains_on(compare, server):
    ask(compare, "go")
    compare.get_by_role("button", name="tuned", exact=True).click()
    rows = [json.loads(line) for line in exported(compare, "Export votes").splitlines()]
    assert rows == [
        {
            "conversations": [
                {"from": "human", "value": "go"},
                {"from": "gpt", "value": "the cat sat there"},
            ],
            "source": "finelab vote: base",
            "score": 1,
        },
        {
            "conversations": [
                {"from": "human", "value": "go"},
                {"from": "gpt", "value": "the dog sat there quietly"},
            ],
            "source": "finelab vote: tuned",
            "score": 5,
        },
    ]


def test_the_labs_own_reader_takes_exported_rows(compare, server, write_rows):
    ask(compare, "go")
    compare.get_by_role("button", name="Equally good").click()
    rows = [json.loads(line) for line in exported(compare, "Export votes").splitlines()]
    rows += [json.loads(line) for line in exported(compare, "Export chats").splitlines()]
    read = read_by_the_lab(write_rows(rows))
    assert [(each.score, each.messages[-1]["content"]) for each in read] == [
        (3, "the cat sat there"),
        (3, "the dog sat there quietly"),
        (None, "the cat sat there"),
        (None, "the dog sat there quietly"),
    ]


def read_by_the_lab(path):
    return standardize(list(open_source(str(path)).rows()), control_pattern([])).conversations


def test_an_answer_that_was_cut_is_never_exported_as_a_whole_one(compare, server):
    server.by_model["base"] = Say("the cat", finish="length")
    ask(compare, "go")
    compare.get_by_role("button", name="tuned", exact=True).click()
    rows = [json.loads(line) for line in exported(compare, "Export votes").splitlines()]
    assert [row["source"] for row in rows] == ["finelab vote: tuned"]
    expect(
        compare.get_by_text("1 rows. Answers that were cut, stopped or lost are left out.")
    ).to_be_visible()


def test_a_chat_is_exported_with_its_thumbs_as_score(chat, server):
    ask(chat, "hello")
    chat.get_by_role("button", name="Bad answer").click()
    expect(chat.get_by_role("button", name="Bad answer")).to_have_attribute("aria-pressed", "true")
    row = json.loads(exported(chat, "Export chats"))
    assert (row["score"], row["source"]) == (1, "finelab chat: tuned")
    assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"]


def test_the_gallery_has_the_runs_held_out_prompts(chat, server):
    chat.get_by_role("button", name="Prompts").click()
    dialog = chat.get_by_role("dialog", name="Prompts")
    expect(dialog).to_contain_text("the fine-tune never saw them")
    dialog.get_by_text("The data set's answer").first.click()
    expect(dialog.get_by_text("7, 52, 140.")).to_be_visible()
    dialog.get_by_role("button", name="How many grams are 3 ounces?").click()
    expect(chat.get_by_label("Message")).to_have_value("How many grams are 3 ounces?")


def test_a_prompt_with_turns_before_it_brings_them_along(compare, server):
    given = [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": "כובעים"},
        {"role": "assistant", "content": "Hats, sunglasses."},
    ]
    server.gallery = [{"source": "follow-up", "messages": [*given, {"role": "user", "content": "No hats."}]}]
    compare.reload()
    compare.get_by_role("button", name="Compare", exact=True).click()
    compare.get_by_role("button", name="Prompts").click()
    compare.get_by_role("dialog").get_by_role("button", name="No hats.").click()
    expect(compare.get_by_label("Given before")).to_contain_text("Hats, sunglasses.")
    expect(compare.get_by_label("Given before").get_by_text("כובעים")).to_have_css("direction", "rtl")
    compare.get_by_label("Message").press("Enter")
    compare.get_by_role("button", name="tuned", exact=True).click()
    assert [body["messages"] for body in server.chats()] == [
        [*given, {"role": "user", "content": "No hats."}]
    ] * 2
    row = json.loads(exported(compare, "Export votes").splitlines()[0])
    assert [turn["from"] for turn in row["conversations"]] == ["system", "human", "gpt", "human", "gpt"]


def test_without_held_out_prompts_the_page_has_some_and_says_so(page, server):
    server.features.discard("gallery")
    page.goto(server.url)
    page.get_by_role("button", name="Prompts").click()
    expect(page.get_by_role("dialog")).to_contain_text("the page's own")
    expect(page.get_by_role("dialog").get_by_role("button", name=re.compile("LoRA"))).to_be_visible()


def test_who_is_quicker_than_the_server_gets_what_it_has_when_it_answers(page, server):
    held = []
    page.route("**/v1/gallery", lambda route: held.append(route))
    with page.expect_request("**/v1/gallery"):
        page.goto(server.url)
    ask(page, "hello")
    expect(page.get_by_role("button", name="Copy")).to_be_visible()
    expect(page.get_by_role("button", name="What the model saw")).to_have_count(0)
    page.get_by_role("button", name="Prompts").click()
    dialog = page.get_by_role("dialog", name="Prompts")
    expect(dialog).to_contain_text("The server has not answered yet, so these are the page's own.")
    held.pop().continue_()
    expect(dialog).to_contain_text("the fine-tune never saw them")
    dialog.get_by_role("button", name="Close").click()
    expect(page.get_by_role("button", name="What the model saw")).to_be_visible()


def test_the_raw_view_shows_the_templated_prompt_and_its_tokens(chat, server):
    ask(chat, "hello world")
    chat.get_by_role("button", name="What the model saw").click()
    dialog = chat.get_by_role("dialog", name="What the model saw")
    expect(dialog.get_by_label("Prompt", exact=True)).to_have_text(
        "<|im_start|>user\nhello world<|im_end|>\n"
    )
    expect(dialog.locator(".tokens span")).to_have_text(
        ["<|im_start|>", "user", "↵", "hello", "␣world", "<|im_end|>", "↵"]
    )
    expect(dialog.get_by_role("heading", name="7 tokens")).to_be_visible()


def test_without_a_tokenizer_on_the_server_there_is_no_raw_view(page, server):
    server.features.discard("tokenize")
    page.goto(server.url)
    ask(page, "hello")
    expect(page.get_by_role("button", name="Copy")).to_be_visible()
    expect(page.get_by_role("button", name="What the model saw")).to_have_count(0)

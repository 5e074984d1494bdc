"""The states people meet: no server, a wrong key, a sleeping or busy one; and what the browser keeps."""

import json
import re
import threading

import pytest

from finelab.evaluate.compare import IMPROVED, NO_CHANGE, TOO_FEW, WORSE
from tests import needs
from tests.browser.scripted import Fail, Say, serving
from tests.browser.test_chat import ask, ended

expect = needs.playwright().expect
pytestmark = pytest.mark.slow


def state(page):
    return page.locator(".state")


def test_no_server_is_said_and_the_text_stays(page, server):
    server.before_models += [Fail(404, "not_found"), Fail(404, "not_found")]
    page.goto(server.url)
    expect(state(page)).to_contain_text("does not have this model")
    ask(page, "hello")
    expect(page.get_by_label("Message")).to_have_value("hello")


def test_a_server_without_a_model_is_said(page, server):
    models, server.models = server.models, []
    page.goto(server.url)
    expect(state(page)).to_contain_text("The server has no model")
    server.models = models
    state(page).get_by_role("button", name="Try again").click()
    expect(page.get_by_label("Model", exact=True)).to_be_visible()


def test_a_setting_that_cannot_be_is_said_and_any_fraction_can(chat, server):
    chat.get_by_role("button", name="Settings").click()
    field = chat.locator(".field", has=chat.get_by_label("temperature"))
    chat.get_by_label("temperature").fill("3")
    expect(field.get_by_role("status")).to_contain_text("2")
    chat.get_by_label("temperature").fill("0.72")
    expect(field.get_by_role("status")).to_have_text("")
    chat.get_by_role("button", name="Close").click()
    ask(chat, "hello")
    ended(chat)
    assert server.chats()[0]["temperature"] == 0.72


def test_what_is_written_while_the_page_connects_is_sent_too(page, server):
    connected = threading.Event()
    server.before_models += [Fail(404, "not_found"), connected]
    page.goto(server.url)
    expect(state(page)).to_be_visible()
    ask(page, "hello")
    page.get_by_label("Message").fill("hello there")
    connected.set()
    expect(page.locator(".bubble")).to_have_text(["hello there"])
    expect(page.get_by_label("Message")).to_have_value("")


def test_a_static_host_without_a_server_asks_for_one(page, server):
    page.route(
        "**/v1/models", lambda route: route.fulfill(status=200, body="<html>", content_type="text/html")
    )
    page.goto(server.url)
    expect(state(page)).to_contain_text("No server answers")
    expect(state(page)).to_contain_text("python lab.py serve")


def test_another_servers_address_is_used_and_remembered(page, server):
    with serving() as other:
        page.goto(server.url)
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("address").fill(other.url + "/v1/")
        page.get_by_role("button", name="Connect").click()
        expect(page.get_by_text("Connected: base, tuned.")).to_be_visible()
        page.reload()
        ask(page, "hello")
        ended(page)
        assert [len(each.chats()) for each in (server, other)] == [0, 1]
    page.reload()
    expect(state(page)).to_contain_text(f"Nothing that speaks the chat API answers at {other.url}")


def test_an_address_that_is_none_is_refused(chat):
    chat.get_by_role("button", name="Settings").click()
    chat.get_by_label("address").fill("http://")
    chat.get_by_role("button", name="Connect").click()
    expect(chat.get_by_text("http:// is no address")).to_be_visible()


def test_the_key_is_asked_for_kept_in_the_tab_and_never_given_to_another_server(page, server):
    server.key = "secret-key"
    page.goto(server.url)
    expect(state(page)).to_contain_text("The server wants a key")
    state(page).get_by_role("button", name="Enter the key").click()
    page.get_by_label("key", exact=True).fill("wrong")
    page.get_by_role("button", name="Connect").click()
    expect(page.get_by_text("The server wants a key.")).to_be_visible()
    page.get_by_label("key", exact=True).fill("secret-key")
    page.get_by_role("button", name="Connect").click()
    expect(page.get_by_text("Connected: base, tuned.")).to_be_visible()
    assert "secret-key" not in page.evaluate("JSON.stringify({...localStorage})")
    with serving() as other:
        page.get_by_label("address").fill(other.url)
        expect(page.get_by_label("key", exact=True)).to_have_value("")
        page.get_by_role("button", name="Connect").click()
        expect(page.get_by_text("Connected: base, tuned.")).to_be_visible()
        page.get_by_role("button", name="Close").click()
        ask(page, "hello")
        ended(page)
        assert all("Authorization" not in headers for _, _, headers, _ in other.requests)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("address").fill("")
    expect(page.get_by_label("key", exact=True)).to_have_value("secret-key")  # this server's again


def test_a_sleeping_server_is_waited_for_with_the_seconds_counted(page, server):
    awake = threading.Event()
    server.before_models += [Fail(503, "starting", headers={"Retry-After": 1}), Fail(503, "starting"), awake]
    page.goto(server.url)
    expect(page.get_by_role("status")).to_have_text(re.compile(r"^Waking the server, [1-9]\d* s$"))
    assert page.locator("#status > :not([aria-hidden])").text_content() == "Waking the server"
    awake.set()
    expect(page.get_by_label("Model", exact=True)).to_be_visible()
    expect(page.locator("#status")).to_have_text("")


def test_a_sleeping_server_elsewhere_is_waited_for_though_the_browser_hides_its_answer(page, server):
    with serving() as other:
        other.asleep = True
        page.goto(server.url)
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("address").fill(other.url)
        page.get_by_role("button", name="Connect").click()
        words = "The server is waking, or does not allow this page"
        expect(page.locator("#status")).to_have_text(re.compile(rf"^{words}, [1-9]\d* s$"))
        other.asleep = False
        expect(page.get_by_text("Connected: base, tuned.")).to_be_visible()


def test_a_server_that_only_hangs_while_it_wakes_is_waited_for_too(page, server):
    awake = threading.Event()
    server.before_models.append(awake)
    page.goto(server.url)
    expect(page.get_by_role("status")).to_have_text(re.compile(r"^Waking the server, ([2-9]|[1-9]\d+) s$"))
    awake.set()
    expect(page.get_by_label("Model", exact=True)).to_be_visible()


def test_a_busy_server_is_tried_again_when_it_said(chat, server):
    chat.clock.install()
    server.replies += [Fail(429, "queue_full", headers={"Retry-After": 60}), Say("At last.")]
    ask(chat, "hello")
    expect(chat.locator("#status")).to_have_text(re.compile(r"^The server is busy\. Trying again in \d\d s$"))
    assert len(server.chats()) == 1
    chat.clock.fast_forward("01:00")
    expect(chat.locator(".reply .body")).to_have_text("At last.")
    assert len(server.chats()) == 2


def test_waiting_for_a_busy_server_can_be_stopped(chat, server):
    server.replies.append(Fail(429, "queue_full", headers={"Retry-After": 60}))
    ask(chat, "hello")
    expect(chat.locator("#status")).to_contain_text("busy")
    chat.keyboard.press("Escape")
    expect(chat.locator("#status")).to_have_text("")
    expect(chat.get_by_role("button", name="Send", exact=True)).to_be_visible()
    expect(state(chat)).to_have_count(0)
    assert len(server.chats()) == 1


def test_nobody_waits_for_what_was_given_up_before(chat):
    given_up = "import('/patience.js').then(({ sleep }) => sleep(1, AbortSignal.abort('given up')))"
    assert chat.evaluate(f"{given_up}.catch(String)") == "given up"


def test_a_full_context_can_go_on_without_the_oldest_turn(chat, server):
    too_long = Fail(400, "context_length_exceeded", "4100 tokens, the context has 4096.")
    server.replies += [Say("One."), too_long, Say("Two.")]
    ask(chat, "first")
    ended(chat)
    ask(chat, "second")
    expect(state(chat)).to_contain_text("longer than the model's context")
    expect(state(chat)).to_contain_text("4100 tokens, the context has 4096.")
    state(chat).get_by_role("button", name="Leave out the oldest turn").click()
    expect(chat.locator(".reply .body").last).to_have_text("Two.")
    assert server.chats()[-1]["messages"] == [{"role": "user", "content": "second"}]
    expect(chat.locator(".turn").first).to_have_class(re.compile("unsent"))


def test_what_is_left_out_is_remembered_and_ends_with_the_turns_it_was_about(chat, server):
    too_long = Fail(400, "context_length_exceeded", "4100 tokens, the context has 4096.")
    server.replies += [Say("One."), too_long, Say("Two."), Say("Three."), Say("Uno."), Say("Due.")]
    ask(chat, "first")
    ended(chat)
    ask(chat, "second")
    state(chat).get_by_role("button", name="Leave out the oldest turn").click()
    expect(chat.locator(".reply .body").last).to_have_text("Two.")
    ended(chat)  # it is kept from then on
    chat.reload()
    chat.get_by_role("button", name="Chats", exact=True).click()
    chat.get_by_role("button", name="first", exact=False).first.click()
    expect(chat.locator(".turn").first).to_have_class(re.compile("unsent"))
    ask(chat, "third")
    expect(chat.locator(".reply .body").last).to_have_text("Three.")
    assert [each["content"] for each in server.chats()[-1]["messages"]] == ["second", "Two.", "third"]
    expect(chat.get_by_role("button", name="Send", exact=True)).to_be_visible()
    chat.get_by_role("button", name="Edit and send again").first.click()
    ask(chat, "uno")
    expect(chat.locator(".reply .body")).to_have_text(["Uno."])
    ended(chat)
    ask(chat, "due")
    expect(chat.locator(".reply .body")).to_have_text(["Uno.", "Due."])
    assert [each["content"] for each in server.chats()[-1]["messages"]] == ["uno", "Uno.", "due"]


def test_an_empty_answer_is_no_blank(chat, server):
    server.replies.append(Say(""))
    ask(chat, "hello")
    expect(state(chat)).to_contain_text("The model ended its answer at once.")


@pytest.mark.parametrize("how", [{"reset": True}, {"error": "out of memory"}])
def test_what_arrived_before_the_connection_was_lost_stays(chat, server, how):
    breaking = Say("one two", hold_after=2, **how)
    server.replies += [breaking, Say("whole")]
    ask(chat, "hello")
    expect(chat.locator(".reply .body")).to_have_text("one two")
    breaking.more.set()
    expect(state(chat)).to_contain_text("The connection was lost")
    expect(state(chat)).to_contain_text(how.get("error", "What arrived is kept."))
    expect(chat.locator(".reply .body")).to_have_text("one two")
    ended(chat, "connection lost")
    state(chat).get_by_role("button", name="Try again").click()
    expect(chat.locator(".reply .body")).to_have_text("whole")


def test_a_refusal_shows_the_servers_sentence(chat, server):
    server.replies.append(Fail(400, "invalid_value", "temperature is 9; expected 0 to 2."))
    ask(chat, "hello")
    expect(state(chat)).to_contain_text("temperature is 9; expected 0 to 2.")


def test_an_endless_reply_ends(chat, server):
    server.replies.append(Say("x" * 410_000, piece=5000))
    ask(chat, "hello")
    ended(chat, "stopped by this page: too long")


def test_chats_are_there_after_a_reload_and_gone_when_deleted(chat, server):
    server.replies.append(Say("Answer **one**."))
    ask(chat, "remember me")
    ended(chat)
    chat.reload()
    chat.get_by_role("button", name="Chats", exact=True).click()
    chat.get_by_role("button", name="remember me", exact=False).first.click()
    expect(chat.locator(".reply .body strong")).to_have_text("one")
    ended(chat)
    chat.get_by_role("button", name="Chats", exact=True).click()
    chat.get_by_role("button", name="Delete: remember me").click()
    expect(chat.get_by_text("No chats yet.")).to_be_visible()
    assert chat.evaluate("Object.keys(localStorage).filter((name) => name.includes('chat'))") == []


def test_a_chat_that_is_deleted_while_its_answer_streams_stays_deleted(chat, server):
    held = Say("one two", hold_after=1)
    server.replies.append(held)
    ask(chat, "forget me")
    expect(chat.locator(".reply .body")).to_have_text("one")
    chat.get_by_role("button", name="Chats", exact=True).click()
    chat.get_by_role("button", name="Delete: forget me").click()
    expect(chat.locator("#send")).to_be_visible()  # the stream has ended
    chat.reload()
    chat.get_by_role("button", name="Chats", exact=True).click()
    expect(chat.get_by_text("No chats yet.")).to_be_visible()


def export(page):
    """The file of all chats that the page saves; the dialog stays open."""
    page.get_by_role("button", name="Chats", exact=True).click()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Export everything").click()
    return waiting.value.path()


def test_everything_can_be_carried_to_another_browser(chat, server, browser):
    ask(chat, "carry me")
    ended(chat)
    file = export(chat)
    other = browser.new_page()
    other.goto(server.url)
    other.get_by_role("button", name="Chats", exact=True).click()
    other.get_by_label("File to import").set_input_files(file)
    expect(other.get_by_text("1 of 1 chats were imported.")).to_be_visible()
    other.get_by_role("button", name="carry me", exact=False).first.click()
    expect(other.locator(".bubble")).to_have_text("carry me")
    other.close()


def test_an_older_file_of_a_chat_does_not_replace_it(chat, server):
    ask(chat, "first")
    ended(chat)
    older = export(chat)
    chat.get_by_role("button", name="Close").click()
    ask(chat, "second")
    expect(chat.locator(".facts").nth(1)).to_contain_text("complete")
    chat.get_by_role("button", name="Chats", exact=True).click()
    chat.get_by_label("File to import").set_input_files(older)
    expect(chat.get_by_text("1 of 1 chats were imported.")).to_be_visible()
    assert sorted(len(each["turns"]) for each in kept(chat)) == [1, 2]


def kept(page):
    """The chats that the browser keeps."""
    chats = "Object.keys(localStorage).filter((name) => name.startsWith('finelab.chat '))"
    return [json.loads(each) for each in page.evaluate(f"{chats}.map((name) => localStorage[name])")]


def test_an_answer_that_ends_behind_the_list_of_chats_is_opened_and_exported(chat, server):
    held = Say("one two", hold_after=1)
    server.replies.append(held)
    ask(chat, "keep me")
    expect(chat.locator(".reply .body")).to_have_text("one")
    chat.get_by_role("button", name="Chats", exact=True).click()
    held.more.set()
    ended(chat)
    with chat.expect_download() as waiting:
        chat.get_by_role("button", name="Export everything").click()
    [exported] = json.loads(waiting.value.path().read_text("utf-8"))
    assert exported["turns"][0]["answer"]["content"] == "one two"
    chat.get_by_role("button", name="keep me", exact=False).first.click()
    expect(chat.locator(".reply .body")).to_have_text("one two")
    assert kept(chat) == [exported]


@pytest.fixture
def other_tab(chat, context, server):
    """The chat "first", open in a second tab too."""
    ask(chat, "first")
    ended(chat)
    page = context.new_page()
    page.goto(server.url)
    page.get_by_label("Model", exact=True).wait_for()
    page.get_by_role("button", name="Chats", exact=True).click()
    page.get_by_role("button", name="first", exact=False).first.click()
    expect(page.locator(".bubble")).to_have_text(["first"])
    return page


def test_two_tabs_go_on_with_one_chat(chat, other_tab):
    ask(chat, "second")
    expect(other_tab.locator(".facts").nth(1)).to_contain_text("complete")
    ask(other_tab, "third")
    expect(chat.locator(".facts").nth(2)).to_contain_text("complete")
    assert [[turn["prompt"] for turn in each["turns"]] for each in kept(chat)] == [
        ["first", "second", "third"]
    ]
    other_tab.get_by_role("button", name="Chats", exact=True).click()
    other_tab.get_by_role("button", name="Delete: first").click()
    expect(chat.locator(".turn")).to_have_count(0)


def test_two_tabs_that_answer_at_once_part_and_keep_both(chat, other_tab, server):
    held = Say("one two", hold_after=1)
    server.replies.append(held)
    ask(chat, "mine")
    expect(chat.locator(".reply .body").last).to_have_text("one")
    chat.evaluate("() => { window.told = new Promise((told) => addEventListener('storage', told)); }")
    ask(other_tab, "yours")
    ended(other_tab)
    chat.evaluate("() => window.told.then(() => true)")  # before its own answer ends
    held.more.set()
    ended(chat)
    [mine] = [each["turns"] for each in kept(chat) if each["turns"][-1]["prompt"] == "mine"]
    [yours] = [each["turns"] for each in kept(chat) if each["turns"][-1]["prompt"] == "yours"]
    assert [turn["answer"]["content"] for turn in mine] == ["Hello there.", "one two"]
    assert yours[-1]["answer"]["content"] == "Hello there."


@pytest.mark.parametrize("content", ["no json", '{"a": 1}', '[{"id": 1}, {"mode": "chat", "turns": null}]'])
def test_a_file_that_is_none_of_ours_changes_nothing(chat, tmp_path, content):
    file = tmp_path / "wrong.json"
    file.write_text(content)
    chat.get_by_role("button", name="Chats", exact=True).click()
    chat.get_by_label("File to import").set_input_files(file)
    said = "0 of 2 chats were imported." if content.startswith("[") else "wrong.json is not a file of chats"
    expect(chat.get_by_text(said)).to_be_visible()
    expect(chat.get_by_text("No chats yet.")).to_be_visible()


def test_a_full_browser_store_is_said_and_the_chat_goes_on(chat):
    chat.evaluate("localStorage.setItem('big', 'x'.repeat(5 * 1024 * 1024 - 500))")
    ask(chat, "hello " + "x" * 600)
    expect(chat.locator("#status")).to_contain_text("no room left")
    ended(chat)


@pytest.mark.parametrize(
    "poorer",
    [
        "delete Crypto.prototype.randomUUID;"
        " Object.defineProperty(navigator, 'clipboard', {value: undefined})",
        "for (const name of ['localStorage', 'sessionStorage'])"
        " Object.defineProperty(window, name, {get() { throw new DOMException('no', 'SecurityError'); }})",
    ],
    ids=["plain http", "no storage"],
)
def test_a_browser_that_gives_less_still_chats(page, server, poorer):
    page.add_init_script(poorer)
    page.goto(server.url)
    page.get_by_label("Model", exact=True).wait_for()
    ask(page, "hello")
    ended(page)
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Chats", exact=True).click()
    expect(page.get_by_role("dialog", name="Chats")).to_contain_text("hello")


def test_a_page_without_https_offers_no_microphone(page, server):
    page.add_init_script("window.SpeechRecognition = class {};")
    page.goto(server.url.replace("127.0.0.1", "lab.invalid"))
    expect(page.get_by_text("No microphone: the browser gives it to https pages")).to_be_visible()
    expect(page.get_by_role("button", name="Speak", exact=True)).to_have_count(0)


VERDICTS = {
    IMPROVED: ([-0.33, -0.23], -0.28, "Improved", "improved", "0.280 lower"),
    NO_CHANGE: ([-0.02, 0.01], -0.005, "No measurable change", "same", "includes zero"),
    WORSE: ([0.1, 0.3], 0.2, "Worse", "worse", "0.200 higher"),
    TOO_FEW: ([-0.33, -0.23], -0.28, "Too few rows to tell", "same", "differs from the base's by −0.280"),
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_verdict_is_said_as_plainly_whatever_it_is(page, server, verdict):
    interval, difference, title, tone, words = VERDICTS[verdict]
    facts = json.loads(json.dumps(server.models[1]["finelab"]))
    facts["evaluation"] |= {"interval": interval, "difference": difference, "verdict": verdict}
    server.models[1]["finelab"] = facts
    page.goto(server.url)
    expect(page.locator(".headline")).to_have_text(title)
    expect(page.locator(".headline")).to_have_class(f"headline {tone}")
    expect(page.locator(".card")).to_contain_text(words)
    expect(page.locator(".card")).to_contain_text("44 steps, 345 conversations")
    expect(page.get_by_role("img", name="zero means no change")).to_be_visible()


def test_a_run_that_was_not_measured_is_not_called_anything(page, server):
    server.models[1]["finelab"] = {"run": "mine", "base_model": "b"}
    page.goto(server.url)
    expect(page.locator(".headline")).to_have_text("Not measured yet")

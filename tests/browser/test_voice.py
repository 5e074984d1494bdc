"""Speaking, heard as real sound, and listening, with a fake microphone."""

import subprocess

import pytest

from tests import needs
from tests.browser import sound
from tests.browser.conftest import CHROMIUM, FLAGS
from tests.browser.scripted import Say
from tests.browser.test_chat import ask, ended

expect = needs.playwright().expect
pytestmark = pytest.mark.slow

LONG = "This is the first sentence of a long reply. " + "And here comes another sentence to be read. " * 20
NO_RECOGNITION = "window.SpeechRecognition = window.webkitSpeechRecognition = undefined;"
STUB = """
window.SpeechRecognition = class {
    static available = async () => window.local ?? "unavailable";
    constructor() { window.recognition = this; }
    start() {}
    stop() { this.onend(); }
    abort() { this.onerror({error: "aborted"}); }
    hear(...texts) { this.onresult({results: texts.map((transcript) => [{transcript}])}); }
};
"""
NOTE_SENTENCES = """
const speak = window.speechSynthesis.speak.bind(window.speechSynthesis);
window.begun = [];
window.speechSynthesis.speak = (said) => {
    said.addEventListener("start", () => window.begun.push(said.text));
    speak(said);
};
"""


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    if name := sound.missing():
        pytest.skip(needs.lacking_program(name))
    with sound.null_sink(tmp_path_factory.mktemp("sound")) as env:
        yield env


@pytest.fixture(scope="module")
def wav(speech, tmp_path_factory):
    path = tmp_path_factory.mktemp("microphone") / "said.wav"
    subprocess.run(
        ["espeak-ng", "-w", str(path), "what is a llama, and what does it eat all day long"], check=True
    )
    return path


@pytest.fixture(scope="module")
def voice_browser(playwright, speech, wav):
    flags = [
        "--enable-speech-dispatcher",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={wav}",
    ]
    started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=[*FLAGS, *flags], env=speech)
    yield started
    started.close()


@pytest.fixture
def ear(speech):
    listening = sound.Ear(speech)
    yield listening
    listening.process.terminate()
    listening.process.wait()


@pytest.fixture
def talker(voice_browser, server):
    """The page in a browser with voices, reading replies aloud."""
    context = voice_browser.new_context(locale="en-GB", permissions=["microphone"])
    page = context.new_page()
    page.add_init_script(STUB + NOTE_SENTENCES)
    page.goto(server.url)
    page.get_by_label("Model", exact=True).wait_for()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("voice", exact=True).locator("option").nth(2)).to_be_attached(timeout=20_000)
    page.get_by_label("Read replies aloud").check()
    page.get_by_role("button", name="Close").click()
    yield page
    context.close()


def test_the_first_sentence_is_heard_while_the_reply_still_streams(talker, server, ear):
    held = Say("Hello, this is the first sentence. And the second is unfinished", hold_after=8)
    server.replies.append(held)
    ask(talker, "speak")
    assert ear.hears(True, within_s=30)
    assert not held.more.is_set()
    expect(talker.locator(".reply")).to_have_attribute("aria-busy", "true")
    assert ear.hears(False, within_s=30)
    held.more.set()
    ended(talker)
    assert ear.hears(True, within_s=30)  # the second, once it is whole


BEGUN_AFTER = """async (action) => {
    const before = window.begun.length;
    action === "Escape"
        ? document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}))
        : document.querySelector(action).click();
    while (speechSynthesis.speaking || speechSynthesis.pending) await new Promise(requestAnimationFrame);
    return window.begun.slice(before);
}"""


@pytest.mark.parametrize("action", ["Escape", "#microphone", "#stop", "#new-chat"])
def test_no_sentence_begins_after_it(talker, server, ear, action):
    server.replies.append(Say(LONG))
    ask(talker, "speak")
    assert ear.hears(True, within_s=30)
    assert talker.evaluate(BEGUN_AFTER, action) == []
    assert ear.hears(False, within_s=30)


def test_a_new_question_silences_the_old_answer(talker, server, ear):
    server.replies += [Say(LONG), Say("...")]
    ask(talker, "speak")
    assert ear.hears(True, within_s=30)
    ended(talker)
    talker.get_by_label("Message").fill("next")
    assert talker.evaluate(BEGUN_AFTER, "#send") == []
    assert ear.hears(False, within_s=30)


def test_a_reply_is_read_on_demand(talker, server, ear):
    talker.get_by_role("button", name="Settings").click()
    talker.get_by_label("Read replies aloud").uncheck()
    talker.get_by_role("button", name="Close").click()
    server.replies.append(Say("Read me if you like."))
    ask(talker, "quiet")
    ended(talker)
    assert not talker.evaluate("speechSynthesis.speaking")
    talker.get_by_role("button", name="Read aloud").click()
    assert ear.hears(True, within_s=30)


def test_voices_are_few_and_of_the_readers_language_first(talker):
    talker.get_by_role("button", name="Settings").click()
    names = talker.get_by_label("voice", exact=True).locator("option").all_inner_texts()
    assert 2 < len(names) <= 60
    assert names[0].startswith("English (Great Britain)")
    assert not any("+" in name for name in names)


def test_voice_and_rate_are_used_and_remembered(talker, server):
    talker.get_by_role("button", name="Settings").click()
    select = talker.get_by_label("voice", exact=True)
    chosen = select.locator("option").nth(2).get_attribute("value")
    select.select_option(chosen)
    talker.get_by_label("rate").fill("1.5")
    talker.evaluate(
        "() => { speechSynthesis.speak = (said) => (window.said = [said.voice.name, said.rate, said.text]); }"
    )
    talker.get_by_role("button", name="Hear it").click()
    assert talker.evaluate("window.said") == [chosen, 1.5, "This is how I sound."]
    assert talker.evaluate("JSON.parse(localStorage['finelab.settings']).voice") == chosen


def test_what_is_read_of_a_text(chat):
    markdown = (
        "# Llama 3.2\n\nLlama 3.2 is small. It has **3 billion** `parameters`.\n\n- one\n- two $x$\n\n"
        "```\ncode\n```\n\n"
        "| a |\n|---|\n| 1 |\n\n$$\ny\n$$\n\n[link](https://example.org) <b>bold</b> 🙂\n\n---\n"
        + "word "
        * 90
    )
    said = chat.evaluate("async (text) => (await import('./speak.js')).sentences(text)", markdown)
    assert said[:9] == [
        "Llama 3.2",
        "Llama 3.2 is small.",
        "It has 3 billion parameters.",
        "one",
        "two formula",
        "Code block.",
        "Table.",
        "Formula.",
        "link bold 🙂",
    ]
    assert len(said) == 12
    assert max(map(len, said)) <= 200


def heard(page, *texts):
    page.evaluate("(texts) => window.recognition.hear(...texts)", list(texts))


def test_what_is_said_is_written_behind_what_is_there(talker, server):
    talker.get_by_label("Message").fill("So:")
    microphone = talker.get_by_role("button", name="Speak", exact=True)
    microphone.click()
    expect(microphone).to_have_attribute("aria-pressed", "true")
    expect(talker.locator("#status")).to_contain_text(
        "The browser may send the sound to its maker's service."
    )
    heard(talker, "what is")
    expect(talker.get_by_label("Message")).to_have_value("So: what is")
    heard(talker, "what is", " a llama")
    talker.evaluate("window.recognition.onend()")
    expect(microphone).to_have_attribute("aria-pressed", "false")
    expect(talker.get_by_label("Message")).to_have_value("So: what is a llama")
    assert server.chats() == []  # the user sends


def test_what_comes_after_it_was_sent_is_not_written_into_the_empty_box(talker, server):
    talker.get_by_role("button", name="Speak", exact=True).click()
    heard(talker, "what is a llama")
    talker.get_by_label("Message").press("Enter")
    ended(talker)
    heard(talker, "what is a llama")
    expect(talker.get_by_label("Message")).to_have_value("")
    assert len(server.chats()) == 1


def test_on_this_device_where_the_browser_can(talker):
    talker.add_init_script("window.local = 'available'")
    talker.reload()
    microphone = talker.get_by_role("button", name="Speak", exact=True)
    microphone.click()
    assert talker.evaluate("window.recognition.processLocally") is True
    expect(talker.locator("#status")).to_contain_text("on this device")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("not-allowed", "may not use the microphone"),
        ("no-speech", "Nothing was heard"),
        ("odd", "failed: odd"),
    ],
)
def test_an_error_without_an_end_frees_the_microphone(talker, error, words):
    microphone = talker.get_by_role("button", name="Speak", exact=True)
    microphone.click()
    talker.evaluate("(error) => window.recognition.onerror({error})", error)
    expect(microphone).to_have_attribute("aria-pressed", "false")
    expect(talker.locator("#status")).to_contain_text(words)


def test_without_recognition_the_server_hears_the_real_microphone(voice_browser, server):
    server.features.add("transcribe")
    context = voice_browser.new_context(permissions=["microphone"])
    page = context.new_page()
    page.add_init_script(NO_RECOGNITION)
    page.goto(server.url)
    microphone = page.get_by_role("button", name="Speak", exact=True)
    microphone.click()
    expect(page.locator("#status")).to_contain_text("The sound goes to the chat server.")
    page.evaluate(
        """async () => {
            const stream = await navigator.mediaDevices.getUserMedia({audio: true});
            const audio = new AudioContext();
            const meter = audio.createAnalyser();
            audio.createMediaStreamSource(stream).connect(meter);
            const samples = new Float32Array(meter.fftSize);
            do {
                await new Promise(requestAnimationFrame);
                meter.getFloatTimeDomainData(samples);
            } while (Math.max(...samples) < 0.05);
        }"""
    )  # something was said
    microphone.click()
    expect(page.get_by_label("Message")).to_have_value("what is a llama")
    _, _, _, sent = next(each for each in reversed(server.requests) if each[1] == "/v1/audio/transcriptions")
    assert b"\x1a\x45\xdf\xa3" in sent  # a WebM file
    assert b"OpusHead" in sent
    context.close()


KEEP_STREAMS = """
const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
window.streams = [];
navigator.mediaDevices.getUserMedia = async (...wanted) => {
    const stream = await open(...wanted);
    window.streams.push(stream);
    return stream;
};
"""


def test_the_microphone_is_off_while_the_server_works_which_can_be_stopped(voice_browser, server):
    server.features.add("transcribe")
    server.transcribed.clear()
    context = voice_browser.new_context(permissions=["microphone"])
    page = context.new_page()
    page.add_init_script(NO_RECOGNITION + KEEP_STREAMS)
    page.goto(server.url)
    microphone = page.get_by_role("button", name="Speak", exact=True)
    microphone.click()
    page.evaluate("async () => { while (!streams.length) await new Promise(requestAnimationFrame); }")
    microphone.click()
    expect(page.locator("#status")).to_have_text("The server turns the sound into text.")
    assert page.evaluate("window.streams[0].getTracks().map((track) => track.readyState)") == ["ended"]
    page.keyboard.press("Escape")
    expect(microphone).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#status")).to_have_text("")
    expect(page.get_by_label("Message")).to_have_value("")
    context.close()


def test_where_nothing_can_listen_there_is_no_button_and_the_page_says_why(page, server):
    page.add_init_script(NO_RECOGNITION)
    page.goto(server.url)
    expect(page.get_by_text("No microphone: neither this browser nor the server")).to_be_visible()
    expect(page.get_by_role("button", name="Speak", exact=True)).to_have_count(0)


def test_a_browser_that_cannot_speak_still_chats(page, server):
    page.add_init_script("delete window.speechSynthesis; " + NO_RECOGNITION)
    page.goto(server.url)
    page.get_by_label("Model", exact=True).wait_for()
    ask(page, "hello")
    ended(page)
    expect(page.get_by_role("button", name="Read aloud")).to_have_count(0)

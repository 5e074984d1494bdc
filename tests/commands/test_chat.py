"""The terminal chat around a model: switching, forgetting, stopping; the model is a plain echo, or tiny."""

import io

import pytest

from finelab import LabError
from finelab import run as command
from finelab.__main__ import main
from finelab.chat import ChatModel
from finelab.chat import model as loading
from finelab.commands.chat import Talk
from finelab.recipe import Chat
from tests import tiny


class Echo:
    """Answers with how many messages it saw and which model was asked; can be stopped midway."""

    def __init__(self, stops=False, room=99):
        self.stops = stops
        self.room = room
        self.closed = False

    def stream(self, messages, tuned=True):
        if len(messages) > self.room:
            raise LabError("the conversation is too long: begin a new one.")
        try:
            yield f"{'tuned' if tuned else 'base'} saw "
            if self.stops:
                raise KeyboardInterrupt
            yield f"{len(messages)}"
        finally:
            self.closed = True


def test_an_answer_is_printed_and_remembered(capsys):
    talk = Talk(Echo(), system="Be brief.", tuned=True)
    talk.ask("Hello")
    talk.ask("Again")
    assert capsys.readouterr().out == "tuned saw 2\ntuned saw 4\n"
    assert [message["role"] for message in talk.messages] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip


class Escaping:
    """Clears the screen and names the window, as a model may that was trained on a terminal's log."""

    def stream(self, messages, tuned=True):
        yield "one\x1b[2J\r\n"
        yield "\x1b]0;title\x07\ttwo \x9b2J\x7f é🦙"


def test_control_characters_do_not_reach_the_terminal(capsys):
    talk = Talk(Escaping(), system=None, tuned=True)
    talk.ask("Hello")
    assert capsys.readouterr().out == "one[2J\n]0;title\ttwo 2J é🦙\n"
    assert "\x1b" in talk.messages[-1]["content"]  # the model reads what it wrote


def test_the_model_is_switched_within_a_conversation(capsys):
    talk = Talk(Echo(), system=None, tuned=True)
    assert talk.command("/base") == "The base model answers now."
    talk.ask("Hello")
    talk.command("/tuned")
    talk.ask("Hello")
    assert capsys.readouterr().out == "base saw 1\ntuned saw 3\n"


def test_a_new_conversation_keeps_the_system_prompt():
    talk = Talk(Echo(), system="Be brief.", tuned=True)
    talk.ask("Hello")
    talk.command("/new")
    assert talk.messages == [{"role": "system", "content": "Be brief."}]


def test_an_unknown_command_lists_those_there_are():
    assert "/quit" in Talk(Echo(), system=None, tuned=True).command("/help")


def test_a_stopped_answer_ends_the_generation_and_is_kept(capsys):
    model = Echo(stops=True)
    talk = Talk(model, system=None, tuned=True)
    talk.ask("Hello")
    assert model.closed
    assert capsys.readouterr().out == "tuned saw  [stopped]\n"
    assert talk.messages[-1] == {"role": "assistant", "content": "tuned saw"}


@pytest.fixture
def talked(run, monkeypatch, capsys):
    """What `lab.py chat` prints with a model for these lines: (stdout, stderr)."""

    def talk(model, *lines, options=()):
        run.adapter.mkdir(exist_ok=True)
        monkeypatch.setattr(command, "RUNS", run.folder.parent)
        monkeypatch.setattr(loading, "load", lambda _: model)  # Unsloth's loading; what talks is real
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert main(["chat", "--run", "trial", *options]) == 0
        return capsys.readouterr()

    return talk


def test_a_question_on_stdin_is_answered_by_the_model(talked):
    tokenizer = tiny.tokenizer()
    model = tiny.with_adapter(tiny.base_model(vocab_size=len(tokenizer)))
    model = ChatModel(model, tokenizer, Chat(max_new_tokens=8, temperature=0, min_p=0.0), "")
    expected = [model.answer([{"role": "user", "content": "Hello"}], tuned=each) for each in (True, False)]
    assert len(set(expected)) == 2
    for options, answer in zip(([], ["--base"]), expected, strict=True):
        said, *printed = talked(model, "Hello", options=options).out.partition("\n")
        assert said.startswith("Run trial. /base and /tuned switch the model")
        assert "".join(printed).strip() == answer


def test_a_conversation_that_grows_too_long_is_not_lost(talked):
    """The question that was not answered is forgotten, and the program goes on."""
    out, err = talked(Echo(room=1), "One", "Two", "/new", "Three")
    assert out.splitlines()[1:] == ["tuned saw 1", "A new conversation.", "tuned saw 1", ""]
    assert err.count("the conversation is too long: begin a new one. /base and /tuned") == 1

    talk = Talk(Echo(room=0), system=None, tuned=True)
    with pytest.raises(LabError):
        talk.ask("Hello")
    assert talk.messages == []


def test_an_unknown_run_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "RUNS", tmp_path)
    assert main(["chat", "--run", "nothing"]) == 2
    assert "there is no run 'nothing' (there are: none)" in capsys.readouterr().err


def test_a_run_without_an_adapter_says_what_to_do(run, monkeypatch, capsys):
    monkeypatch.setattr(command, "RUNS", run.folder.parent)
    assert main(["chat", "--run", "trial"]) == 2
    assert "run notebook 03_train" in capsys.readouterr().err


def test_the_run_may_be_no_path():
    with pytest.raises(LabError, match="a run has a name, not a path"):
        command.named_run("../elsewhere")

"""Talk to a run's model in the terminal; /base and /tuned switch between before and after."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator
from contextlib import closing, redirect_stdout
from typing import Any

from finelab.errors import LabError
from finelab.run import default_recipe, named_run

HELP = "/base and /tuned switch the model, /new forgets the conversation, /quit leaves."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lab.py chat`."""
    parser.add_argument("--run", metavar="NAME", help="the run whose model answers")
    parser.add_argument("--base", action="store_true", help="start with the base model")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this one question and leave")


def main(args: argparse.Namespace) -> int:
    """Answer one question, or talk until the user leaves."""
    run = named_run(args.run or default_recipe())
    run.require(run.adapter, "03_train")
    from finelab.chat.model import load

    with redirect_stdout(sys.stderr):  # the answer alone goes to stdout
        model = load(run)
    talk = Talk(model, args.system, tuned=not args.base)
    if args.prompt is not None:
        talk.ask(args.prompt)
        return 0
    print(f"Run {run.name}. {HELP}")
    while (line := _read(talk.name)) is not None:
        if line.startswith("/"):
            if line == "/quit":
                break
            print(talk.command(line))
        elif line:
            try:
                talk.ask(line)
            except LabError as error:  # too long, say: the conversation so far is not lost by it
                print(f"{error} {HELP}", file=sys.stderr)
    return 0


class Talk:
    """One conversation with a model that is tuned or not."""

    def __init__(self, model: Any, system: str | None, tuned: bool) -> None:
        self.model = model
        self.tuned = tuned
        self.opening = [{"role": "system", "content": system}] if system else []
        self.messages = list(self.opening)

    @property
    def name(self) -> str:
        """Which model answers."""
        return "tuned" if self.tuned else "base"

    def ask(self, question: str) -> None:
        """Print the answer while it comes; Ctrl-C keeps what has come, LabError forgets the question."""
        from finelab.chat.text import printable

        self.messages.append({"role": "user", "content": question})
        answer = ""
        try:
            with closing(self._stream()) as pieces:
                for piece in pieces:
                    print(printable(piece), end="", flush=True)
                    answer += piece
            print()
        except KeyboardInterrupt:
            print(" [stopped]")
        except LabError:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": answer.strip()})

    def command(self, line: str) -> str:
        """Do what a line such as /base says, and return what was done."""
        if line in ("/base", "/tuned"):
            self.tuned = line == "/tuned"
            return f"The {self.name} model answers now."
        if line == "/new":
            self.messages = list(self.opening)
            return "A new conversation."
        return HELP

    def _stream(self) -> Generator[str, None, None]:
        yield from self.model.stream(self.messages, tuned=self.tuned)


def _read(name: str) -> str | None:
    """A line from the user; None at the end of input and at Ctrl-C."""
    try:
        return input(f"{name}> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None

"""`python -m finelab COMMAND`, which `python lab.py COMMAND` calls in the lab's own environment."""

from __future__ import annotations

import argparse
import io
import sys

from finelab.commands import chat, doctor, notebooks, plan, run, serve, test
from finelab.errors import LabError

COMMANDS = {
    "run": run,
    "test": test,
    "notebooks": notebooks,
    "chat": chat,
    "serve": serve,
    "plan": plan,
    "doctor": doctor,
}


def build_parser() -> argparse.ArgumentParser:
    """The command line: each command's help is the first line of its module."""
    parser = argparse.ArgumentParser(
        prog="lab.py",
        description="Fine-tune a small Llama on the machine you have, and know that it worked.",
        epilog="`lab.py COMMAND --help` says what a command takes.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.set_defaults(main=module.main)
        module.add_arguments(command)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; a LabError is one sentence and exit code 2."""
    parser = build_parser()
    args, rest = parser.parse_known_args(arguments)
    if "rest" in args:  # the command hands what it does not know to another program
        args.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return int(args.main(args))
    except LabError as error:
        print(f"finelab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nfinelab: stopped; run the same command again to go on.", file=sys.stderr)
        return 130


def write_utf8() -> None:
    """Make both streams UTF-8: into a file or a pipe Windows writes cp1252, which has no emoji."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where there is no console
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


if __name__ == "__main__":
    write_utf8()
    sys.exit(main())

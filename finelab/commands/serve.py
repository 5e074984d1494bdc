"""Serve a run's model, base and tuned, as an OpenAI-compatible API with a chat page."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from finelab import machine
from finelab.errors import LabError
from finelab.files import read_text
from finelab.run import RUN_VARIABLE, STDIN_VARIABLE, default_recipe, named_run, open_run

if TYPE_CHECKING:
    import uvicorn

    from finelab.chat.routes import Served

KEYS = "FINELAB_API_KEYS"
SHORTEST_KEY = 16  # characters, for a server that the network can reach
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PAGE = Path(__file__).parents[2] / "deployment" / "page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lab.py serve`."""
    parser.add_argument("--run", metavar="NAME", help="the run whose adapter is served as 'tuned'")
    parser.add_argument(
        "--also", metavar="NAME", action="append", default=[], help="one more run on the same base"
    )
    parser.add_argument("--model", metavar="FOLDER", help="serve this base model instead of a run")
    parser.add_argument(
        "--adapter", metavar="NAME=FOLDER", action="append", default=[], help="an adapter for --model"
    )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="instead of the machine's"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at (default: this machine only)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free one (default: 8000)")
    parser.add_argument("--api-key-file", metavar="FILE", help=f"keys, one on a line; or {KEYS}=KEY,KEY")
    parser.add_argument(
        "--allow-origin",
        type=lambda url: url.rstrip("/"),  # a browser's Origin has none at its end
        metavar="URL",
        action="append",
        default=[],
        help="a page elsewhere that may call this",
    )
    parser.add_argument("--max-concurrency", type=_positive, default=4, help="answers at once (default: 4)")
    parser.add_argument("--max-queue", type=_positive, default=16, help="answers that may wait (default: 16)")
    parser.add_argument("--max-model-len", type=_positive, help="tokens of prompt and answer (default: 4096)")
    parser.add_argument(
        "--shutdown-timeout", type=_positive, default=30, help="seconds for answers under way (default: 30)"
    )


def main(args: argparse.Namespace) -> int:
    """Load, say where it is, and serve until Ctrl-C or SIGTERM; answers under way are finished."""
    keys = read_keys(args.api_key_file)
    if args.host not in LOOPBACK:
        require_safe(keys, args.host)
    with listening(args.host, args.port) as listener:
        import uvicorn

        from finelab.chat.connection import Connection
        from finelab.chat.server import build_app

        with redirect_stdout(sys.stderr):
            served = load(args)
        host = f"[{args.host}]" if ":" in args.host else args.host
        hosts = () if keys else LOOPBACK
        app = build_app(served, keys, args.allow_origin, hosts, PAGE if PAGE.exists() else None)
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        logging.getLogger("finelab.serve").setLevel(logging.INFO)
        print(f"Serving http://{host}:{listener.getsockname()[1]}", flush=True)
        print(f"Models: {', '.join(served.models)}. Ctrl-C ends.", flush=True)
        config = uvicorn.Config(
            app,
            http=Connection,
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=args.shutdown_timeout,
        )
        run(uvicorn.Server(config), listener)
    return 0


def run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until a signal; the answers under way are finished, unless a second signal comes.

    With `FINELAB_END_WITH_STDIN=1` in the environment the end of standard input does what a first signal
    does. It comes when the process at the other end is gone, also one that was killed.
    """
    first = server.handle_exit

    def stop(number: int, frame: FrameType | None) -> None:
        if server.should_exit:  # uvicorn itself waits for SIGINT, not for a second SIGTERM
            server.force_exit = True
            for each in list(server.server_state.connections):  # from Python 3.12 on it waits for them, too
                each.loop.call_soon_threadsafe(each.transport.abort)
        first(number, frame)

    server.handle_exit = stop  # type: ignore[method-assign, assignment]
    for number in (signal.SIGINT, signal.SIGTERM):  # until uvicorn takes them, and when it raises them again
        signal.signal(number, stop)
    if os.environ.get(STDIN_VARIABLE):
        threading.Thread(target=_end_with_stdin, args=[server], daemon=True).start()
    server.run(sockets=[listener])


def _end_with_stdin(server: uvicorn.Server) -> None:
    while os.read(sys.stdin.fileno(), 1024):  # sys.stdin itself would be locked when Python ends
        pass
    server.should_exit = True


def load(args: argparse.Namespace) -> Served:
    """What the arguments name, loaded."""
    import torch

    from finelab.chat.source import of_folders, of_runs, serve, serving_dtype

    if args.adapter and not args.model:
        raise LabError("--adapter goes on a base: give its --model FOLDER, or a run with --run or --also.")
    if args.model and (args.run or args.also):
        raise LabError("--model is served instead of a run: leave out --run and --also, or --model.")
    if args.model:
        source = of_folders(args.model, map(_named_folder, args.adapter))
    else:
        first = open_run() if RUN_VARIABLE in os.environ and not args.run else None
        source = of_runs([first or named_run(args.run or default_recipe()), *map(named_run, args.also)])
    profile = machine.profile(source.recipe)
    dtype = getattr(torch, args.dtype or serving_dtype(source.base, profile))
    return serve(source, dtype, profile.device, args.max_concurrency, args.max_queue, args.max_model_len)


def read_keys(file: str | None) -> list[str]:
    """The API keys from a file or the environment; LabError for a file without any or with blanks in one.

    In a file each line is a key, but empty lines and those that begin with #.
    """
    if file is None:
        return [key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip()]
    try:
        lines = [line.strip() for line in read_text(Path(file)).splitlines()]
    except OSError as error:
        raise LabError(f"--api-key-file {file}: cannot be read ({error.strerror}).") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise LabError(f"--api-key-file {file}: the file has no key; expected one key on each line.")
    if any(len(key.split()) > 1 for key in keys):
        raise LabError(
            f"--api-key-file {file}: a key has a blank inside; expected one key on each line, and a comment "
            "on a line of its own that begins with #."
        )
    return keys


def require_safe(keys: list[str], host: str) -> None:
    """LabError unless there are keys, none of them easy to guess."""
    if not keys:
        raise LabError(
            f"--host {host} would let anyone on the network use this server: set {KEYS}=KEY "
            "or give --api-key-file FILE."
        )
    if (shortest := min(map(len, keys))) < SHORTEST_KEY:
        raise LabError(
            f"--host {host}: a key of {shortest} characters could be guessed from the network; use keys of "
            f'at least {SHORTEST_KEY}, as `python -c "import secrets; print(secrets.token_urlsafe())"` makes.'
        )


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; LabError when the port is taken or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        raise LabError(
            f"cannot listen at {host}:{port} ({error}); choose another --port, or 0 for any."
        ) from error


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or not (Path(folder) / "adapter_config.json").exists():
        raise LabError(f"--adapter {text}: expected NAME=FOLDER with an adapter_config.json in the folder.")
    return name, Path(folder)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 1 on")
    return number

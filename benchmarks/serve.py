"""Time the lab's server beside `transformers serve`, on the embedded model in the same dtype.

python benchmarks/serve.py   writes benchmarks/results/serve.json; about 10 minutes on 2 cores, in bfloat16 as
`lab.py serve` takes it there. Both servers
run all the time and are asked the same in turn, so that the machine's pace changes for both alike. No two
prompts begin alike after the template, so that nobody gains from what was read before. Memory is the
process's after the round.
"""

import argparse
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from finelab import machine
from finelab.embedded.model import embedded_model

RESULT = Path(__file__).parent / "results" / "serve.json"
CLIENTS = 4
LONG = 465  # words of one token each: 500 tokens with the template
WORDS = (
    "red",
    "blue",
    "green",
    "house",
    "tree",
    "river",
    "stone",
    "cloud",
    "bird",
    "horse",
    "table",
    "garden",
)
BETTER_IF_LESS = ("first_token_s", "first_token_500_s", "memory_bytes")


class Server(NamedTuple):
    """A server that listens, and the model's name there."""

    url: str
    model: str
    process: psutil.Process


class Streamed(NamedTuple):
    """One answer: seconds to its first text and to its end, tokens read and made."""

    first_s: float
    total_s: float
    prompt_tokens: int
    tokens: int


def main() -> None:
    """Start both, ask them in turn, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    folder = embedded_model()
    with ExitStack() as stack:
        servers = {
            "finelab": stack.enter_context(ours(folder, args.dtype)),
            "transformers serve": stack.enter_context(theirs(folder, args.dtype)),
        }
        runs = {name: [] for name in servers}
        for number in range(args.rounds + 1):
            for name, server in servers.items():
                measured = measure(server, number, args.tokens)
                if number:  # the first round warms up
                    runs[name].append(measured)
            servers = dict(reversed(servers.items()))
    result = summary(runs, vars(args))
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


def summary(runs: dict[str, list[dict[str, float]]], settings: dict[str, object]) -> dict[str, object]:
    """Medians and their ratios; over 1 means ours is better."""
    medians = {
        name: {key: statistics.median(run[key] for run in each) for key in each[0]}
        for name, each in runs.items()
    }
    mine, peer = medians["finelab"], medians["transformers serve"]
    ratios = {
        key: peer[key] / mine[key] if key in BETTER_IF_LESS else mine[key] / peer[key]
        for key in (*BETTER_IF_LESS, "tokens_per_s", f"tokens_per_s_{CLIENTS}_clients")
    }
    ratios["batching"] = mine[f"tokens_per_s_{CLIENTS}_clients"] / mine["tokens_per_s"]
    return {
        "benchmark": "serve",
        "ratios": {key: round(value, 2) for key, value in ratios.items()},
        "limit_share": None,
        "details": {
            "settings": settings,
            "medians": medians,
            "runs": runs,
            "load_average": os.getloadavg(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "versions": machine.versions(),
        },
    }


def measure(server: Server, number: int, tokens: int) -> dict[str, float]:
    """One round: two waits for a first token, one client alone, several at once."""
    draw = random.Random(number)
    short = ask(server, story(draw), 2)
    long = ask(server, " ".join(draw.choices(WORDS, k=LONG)), 2)
    alone = ask(server, story(draw), tokens)
    prompts = [story(draw) for _ in range(CLIENTS)]
    started = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        together = list(pool.map(lambda prompt: ask(server, prompt, tokens), prompts))
    seconds = time.monotonic() - started
    return {
        "first_token_s": short.first_s,
        "first_token_500_s": long.first_s,
        "prompt_tokens": long.prompt_tokens,
        "tokens_per_s": alone.tokens / alone.total_s,
        f"tokens_per_s_{CLIENTS}_clients": sum(each.tokens for each in together) / seconds,
        "first_token_last_of_clients_s": max(each.first_s for each in together),
        "memory_bytes": server.process.memory_info().rss,
    }


def story(draw: random.Random) -> str:
    """A question with a long answer, unlike the others from its first tokens on."""
    words = ", ".join(draw.sample(WORDS, 4))
    return f"{draw.randrange(10**6)}. Tell a very long story with these words in it: {words}."


def ask(server: Server, prompt: str, tokens: int) -> Streamed:
    """Stream one greedy answer."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first, usage, started = None, {}, time.monotonic()
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=600) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            if first is None and any(each["delta"].get("content") for each in chunk["choices"]):
                first = time.monotonic() - started
    total = time.monotonic() - started
    if first is None:
        raise SystemExit(f"{server.url} answered nothing to: {prompt}")
    return Streamed(first, total, usage["prompt_tokens"], usage["completion_tokens"])


@contextmanager
def ours(folder: Path, dtype: str) -> Iterator[Server]:
    """The lab's server, with the base model alone as the peer has it."""
    port = free_port()
    command = [sys.executable, "-m", "finelab", "serve", "--model", str(folder), "--dtype", dtype]
    with running([*command, "--port", str(port)], port) as process:
        yield Server(f"http://127.0.0.1:{port}", "base", process)


@contextmanager
def theirs(folder: Path, dtype: str) -> Iterator[Server]:
    """The named peer, as its documentation shows it."""
    port = free_port()
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with running([*command, "--device", "cpu", "--dtype", dtype], port) as process:
        yield Server(f"http://127.0.0.1:{port}", str(folder), process)


@contextmanager
def running(command: list[str], port: int) -> Iterator[psutil.Process]:
    """A server's process from when it is healthy."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}/health", process)
            yield psutil.Process(process.pid)
        finally:
            process.kill()


def wait_until_healthy(url: str, process: subprocess.Popen) -> None:
    """Ask for two minutes at most."""
    for _ in range(240):
        if process.poll() is not None:
            raise SystemExit(f"this ended before it listened: {' '.join(process.args)}")
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise SystemExit(f"{url} did not answer within two minutes")


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()

"""`python -m finelab serve` as a process of its own, and adapters for it."""

import os
import re
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx

from tests import tiny

KEYS = ("the-first-key-0123456789", "the-second-key-0123456789")
ORIGIN = "https://page.example"
TLS = ssl.create_default_context()  # read once: it takes longer than most requests


class Address(NamedTuple):
    """Where a server listens, and the keys it takes."""

    url: str
    keys: tuple[str, ...] = ()

    @property
    def headers(self):
        return {"Authorization": f"Bearer {self.keys[0]}"} if self.keys else {}

    def http(self, **options):
        options = {"headers": self.headers, "timeout": 60} | options
        return httpx.Client(base_url=self.url, verify=TLS, **options)

    def connection(self):
        """A connection by hand: what is asked need not be read, and it can be closed at any time."""
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.netloc, timeout=60)

    def send(self, path, body):
        """A connection with a request sent and its answer not read."""
        connection = self.connection()
        headers = {"Content-Type": "application/json"} | self.headers
        connection.request("POST", path, httpx.Request("POST", self.url, json=body).content, headers)
        return connection


class Server:
    """Our server with these arguments; `address` waits until it listens."""

    def __init__(self, *arguments, keys=()):
        environment = os.environ | {"FINELAB_API_KEYS": ",".join(keys), "PYTHONUNBUFFERED": "1"}
        self.keys = keys
        self.lines = []
        self.process = subprocess.Popen(
            command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        self._url = Future()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()

    @property
    def address(self):
        return Address(self._url.result(timeout=120), self.keys)

    @property
    def log(self):
        return "".join(self.lines)

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("Serving ") and not self._url.done():
                self._url.set_result(line.split()[1].rstrip("/"))
        if not self._url.done():
            self._url.set_exception(AssertionError(f"the server ended before it listened:\n{self.log}"))


def command(*arguments):
    return [sys.executable, "-m", "finelab", "serve", "--port", "0", *map(str, arguments)]


def write_adapters(base: Path, folder: Path):
    """Two adapters that moved, made by peft, with the tokenizer as a run leaves it; gives the arguments."""
    _write_adapter(base, folder / "tuned", std=0.25, r=8)
    _write_adapter(base, folder / "other", std=0.3, r=4, target_modules=["q_proj", "v_proj"])
    return [f"--adapter={name}={folder / name}" for name in ("tuned", "other")]


def _write_adapter(base, folder, std, **config):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = tiny.with_adapter(model, moved=False, **config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def write_tiny_base(folder: Path):
    """A random model of two layers with its tokenizer: thousands of tokens in seconds."""
    tiny.base_model(vocab_size=260, max_position_embeddings=32_768).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


@contextmanager
def serving(base: Path, folder: Path):
    """Our server on the model in `base` with both adapters, two keys and one origin."""
    adapters = write_adapters(base, folder)
    with Server(
        "--model", base, "--dtype=float32", f"--allow-origin={ORIGIN}", *adapters, keys=KEYS
    ) as server:
        yield server


def metric(address, name):
    """A number without labels from /metrics."""
    with address.http() as http:
        text = http.get("/metrics").raise_for_status().text
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])


def generated(address):
    """The tokens of all answers that have ended, those whose client went included."""
    with address.http() as http:
        text = http.get("/metrics").raise_for_status().text
    return sum(map(float, re.findall(r"^finelab_generated_tokens_total\S* (\S+)$", text, re.MULTILINE)))


def load_of(address):
    """How many answers are (running, waiting)."""
    return int(metric(address, "finelab_running")), int(metric(address, "finelab_waiting"))


def wait_for(condition, seconds=30.0):
    """Ask until it is true; what is not true after so long never will be."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + seconds, f"not true after {seconds} s"
        time.sleep(0.005)

"""A chat server that does what a test tells it: replies, pauses, errors and broken connections on demand."""

import json
import re
import select
import socket
import struct
import threading
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).parents[2] / "deployment" / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}
RUN = {
    "run": "smollm2-135m",
    "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "recipe": {"r": 16, "lora_alpha": 16, "learning_rate": 0.0002, "num_train_epochs": 1},
    "data": {"source": "embedded", "train_rows": 345, "heldout_rows": 40},
    "adapter": {"trainable_parameters": 4884480, "total_parameters": 139399488},
    "training": {"steps": 44, "first_loss": 2.18, "last_loss": 0.64},
    "evaluation": {
        "heldout_nll_base": 2.04826,
        "heldout_nll_tuned": 1.76841,
        "difference": -0.27984,
        "interval": [-0.32968, -0.23429],
        "verdict": "improved",
    },
}
GALLERY = [
    {
        "source": "sorting",
        "messages": [{"role": "user", "content": "List 52, 7 and 140 from smallest to largest."}],
        "reference": "7, 52, 140.",
    },
    {
        "source": "unit-conversion",
        "messages": [{"role": "user", "content": "How many grams are 3 ounces?"}],
        "reference": "About 85 g.",
    },
]


@dataclass
class Say:
    """A reply: its text in pieces, then how it ends; waits for `more` after `hold_after` pieces."""

    text: str = "Hello there."
    finish: str | None = "stop"
    pause_s: float = 0.0
    usage: bool = True
    hold_after: int | None = None
    more: threading.Event = field(default_factory=threading.Event)
    reset: bool = False  # the connection breaks at the end, without a goodbye
    error: str | None = None  # an error event at the end
    piece: int | None = None  # characters; a word each without
    left: threading.Event = field(default_factory=threading.Event)  # the client went away

    @property
    def pieces(self):
        if self.piece:
            return [self.text[at : at + self.piece] for at in range(0, len(self.text), self.piece)]
        return re.findall(r"\s*\S+\s*$|\s*\S+", self.text)


@dataclass
class Fail:
    status: int
    code: str
    message: str = "No."
    headers: dict = field(default_factory=dict)


def model(id_, parent=None, facts=None):
    return {
        "id": id_,
        "object": "model",
        "created": 0,
        "owned_by": "finelab",
        "root": id_,
        "parent": parent,
        "max_model_len": 4096,
        "finelab": facts or {},
    }


class Scripted:
    def __init__(self):
        self.models = [model("base"), model("tuned", "base", RUN)]
        self.gallery = GALLERY
        self.features = {"tokenize", "gallery"}
        self.transcript = "what is a llama"
        self.transcribed = threading.Event()  # the transcript comes once this is set
        self.transcribed.set()
        self.asleep = False  # the proxy before it answers 503, and allows no other origin
        self.key = None
        self.before_models = deque()  # Fail, or an Event to wait for, one for each request for /v1/models
        self.replies = deque()  # Say or Fail, one for each chat request
        self.by_model = {}  # Say or Fail for all chat requests to a model
        self.requests = []  # (method, path, headers, body)
        self.closed = threading.Event()

    def chats(self):
        return [body for method, path, _, body in self.requests if path == "/v1/chat/completions"]

    def paths(self):
        return [path for _, path, _, _ in self.requests]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Scripted

    def log_message(self, *_):
        pass

    def parse_request(self):
        if self.script.closed.is_set():
            self.close_connection = True
            return False
        if not super().parse_request():
            return False
        if self.script.asleep:
            self.close_connection = True
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return False
        return True

    def do_GET(self):
        self.script.requests.append(("GET", self.path, dict(self.headers), None))
        if self.path.startswith("/v1/"):
            return self.api(None)
        path = PAGE / (self.path.partition("?")[0].lstrip("/") or "index.html")
        if not path.is_file():
            return self.json(404, {"error": {"message": "not found", "code": "not_found"}})
        return self.body(200, TYPES.get(path.suffix, "application/octet-stream"), path.read_bytes())

    def do_OPTIONS(self):
        self.body(204, "text/plain", b"")

    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        sent = json.loads(raw) if self.headers.get("Content-Type") == "application/json" else raw
        self.script.requests.append(("POST", self.path, dict(self.headers), sent))
        self.api(sent)

    def api(self, sent):
        script = self.script
        if script.key and self.headers.get("Authorization") != f"Bearer {script.key}":
            return self.fail(Fail(401, "invalid_api_key", "Wrong key."))
        if self.path == "/v1/models":
            if script.before_models:
                step = script.before_models.popleft()
                if isinstance(step, Fail):
                    return self.fail(step)
                self.wait(step)
            return self.json(200, {"object": "list", "data": script.models})
        if self.path == "/v1/gallery" and "gallery" in script.features:
            return self.json(200, {"object": "list", "data": script.gallery})
        if self.path == "/tokenize" and "tokenize" in script.features:
            return self.json(200, tokenized(sent))
        if self.path == "/v1/audio/transcriptions" and "transcribe" in script.features:
            if b"speech.webm" not in sent:
                return self.fail(Fail(400, "invalid_value", "no file"))
            self.wait(script.transcribed)
            return self.json(200, {"text": script.transcript})
        if self.path == "/v1/chat/completions":
            step = script.by_model.get(sent["model"]) or (
                script.replies.popleft() if script.replies else Say()
            )
            return self.fail(step) if isinstance(step, Fail) else self.stream(step)
        return self.fail(Fail(404, "not_found", "no such route"))

    def stream(self, say):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            self.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
            for number, piece in enumerate(say.pieces):
                if number == say.hold_after:
                    self.wait(say.more)
                self.event({"choices": [{"index": 0, "delta": {"content": piece}}]})
                if say.pause_s:
                    self.script.closed.wait(say.pause_s)
            if say.hold_after == len(say.pieces):
                self.wait(say.more)
            self.end(say)
        except (ConnectionError, Left):
            say.left.set()

    def end(self, say):
        if say.reset:
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        if say.error:
            self.event({"error": {"message": say.error}})
            return
        if say.finish:
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": say.finish}]})
        if say.usage:
            counts = {"prompt_tokens": 9, "completion_tokens": len(say.pieces)}
            self.event({"choices": [], "usage": counts})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, data):
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
        self.wfile.flush()

    def wait(self, event):
        """Until the test goes on; Left when the client went away before."""
        while not event.wait(0.02) and not self.script.closed.is_set():
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise Left

    def fail(self, fail):
        self.json(
            fail.status, {"error": {"message": fail.message, "code": fail.code, "type": "x"}}, fail.headers
        )

    def json(self, status, value, headers=None):
        self.body(status, "application/json", json.dumps(value).encode(), headers)

    def body(self, status, kind, content, headers=None):
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": len(content),
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Allow-Headers": "*",
            "Access-Control-Expose-Headers": "Retry-After",
            **(headers or {}),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)


class Left(Exception):
    """The client closed the connection."""


def tokenized(sent):
    text = sent.get("prompt") or "".join(
        f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in sent["messages"]
    )
    pieces = re.findall(r"<\|\w+\|>| ?\w+|\s|[^\w\s]", text)
    return {
        "count": len(pieces),
        "max_model_len": 4096,
        "tokens": list(range(len(pieces))),
        "token_strs": [piece.replace(" ", "Ġ").replace("\n", "Ċ") for piece in pieces],
        "prompt": text,
    }


@contextmanager
def serving():
    """A scripted server; gives its script, which has its `url`."""
    script = Scripted()
    handler = type("ScriptedHandler", (Handler,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield script
    finally:
        script.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()

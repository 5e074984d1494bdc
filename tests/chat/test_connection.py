"""Half-sent requests over real sockets: they are let go, and nobody waits for them."""

import asyncio
import socket
import threading

import pytest
import uvicorn

from finelab.chat import connection

LONG = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"


class Slow:
    """An application that reads a request, and answers once it is told to."""

    def __init__(self):
        self.go_on = threading.Event()

    async def __call__(self, scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await asyncio.to_thread(self.go_on.wait, 60)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(connection, "REQUEST_S", 1.0)
    return Slow()


@pytest.fixture
def connect(slow):
    config = uvicorn.Config(slow, http=connection.Connection, lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        opened = []

        def open_(sent):
            opened.append(socket.create_connection(listener.getsockname(), timeout=60))
            opened[-1].sendall(sent)
            return opened[-1]

        yield open_
        slow.go_on.set()
        server.should_exit = True
        for each in opened:
            each.close()
        thread.join()


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST / HT", LONG[:-2], LONG, LONG + b"1234"],
    ids=["nothing", "line", "head", "no body", "body"],
)
def test_a_request_that_never_becomes_whole_is_let_go(connect, sent):
    assert connect(sent).recv(1) == b""


def test_a_second_request_on_a_connection_has_its_time_too(connect, slow):
    slow.go_on.set()
    opened, answer = connect(LONG + b"12345"), b""
    while not answer.endswith(b"ok"):
        answer += opened.recv(1000)
    opened.sendall(LONG)
    assert opened.recv(1) == b""


def test_an_answer_may_take_as_long_as_it_needs(connect, slow):
    whole = connect(LONG + b"12345")
    assert connect(LONG).recv(1) == b""  # sent later, and its time is over
    slow.go_on.set()
    assert whole.recv(1000).startswith(b"HTTP/1.1 200")

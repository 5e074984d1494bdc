"""The server that a notebook starts."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import httpx
import psutil
import pytest

from finelab.chat import start_server
from finelab.errors import LabError
from finelab.run import create_run
from tests.conformance.server import wait_for, write_adapters, write_tiny_base

KERNEL = """
import sys
from finelab.chat import start_server
from finelab.run import open_run

try:
    server = start_server(open_run(sys.argv[1]))
    print(server.url, server.process.pid, flush=True)
    sys.stdin.read()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_why_it_did_not_start_is_said_in_any_alphabet(tmp_path, preset, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")  # what Windows takes for a file
    run = create_run(tmp_path / "läuft-🦙", preset)
    with pytest.raises(LabError, match=r"läuft-🦙.* is not there yet: run notebook 03_train"):
        start_server(run)


@pytest.fixture
def trained(run, tmp_path):
    """A run with a tiny model and its adapter."""
    write_tiny_base(tmp_path / "base")
    write_adapters(tmp_path / "base", tmp_path)
    (tmp_path / "tuned").rename(run.adapter)
    return run


@pytest.mark.slow
def test_it_needs_no_key_also_where_one_is_exported(trained, monkeypatch):
    """The notebook sends none, and `lab.py run` neither."""
    monkeypatch.setenv("FINELAB_API_KEYS", "a-key-of-another-server")
    server = start_server(trained)
    try:
        models = httpx.get(f"{server.url}/v1/models", timeout=60).raise_for_status().json()["data"]
    finally:
        server.stop()
    assert [each["id"] for each in models] == ["base", "tuned"]


@pytest.fixture
def kernel(trained):
    """A process that serves the run, in a group of its own, and waits after an interrupt."""
    command = [sys.executable, "-c", KERNEL, str(trained.folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen(command, process_group=0, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupted_cell_leaves_it_and_the_kernels_end_ends_it(kernel):
    url, pid = kernel.stdout.readline().split()
    with ending(psutil.Process(int(pid))):
        os.killpg(kernel.pid, signal.SIGINT)
        assert kernel.stdout.readline() == "interrupted\n"
        asked = {"model": "base", "prompt": "a", "max_tokens": 400, "ignore_eos": True}
        for _ in range(2):  # a server that was interrupted too would finish the first answer at most
            httpx.post(f"{url}/v1/completions", json=asked, timeout=60).raise_for_status()
        kernel.kill()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_one_that_is_interrupted_while_it_starts_is_not_left(kernel):
    children = psutil.Process(kernel.pid).children
    wait_for(lambda: any(each.net_connections() for each in children()), 120)  # it listens, and loads
    with ending(children()[0]):
        kernel.send_signal(signal.SIGINT)
        assert kernel.stdout.readline() == "interrupted\n"


@contextmanager
def ending(process):
    """A process that ends soon after what is done to it; it does not outlive the test."""
    try:
        yield
        process.wait(20)
    finally:
        if process.is_running():
            process.kill()

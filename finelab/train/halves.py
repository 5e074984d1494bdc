"""One step by hand in two processes: half of a batch's documents in each, with half of the threads.

Two threads of one process wait for each other at the end of each operation, and both for Python between two
operations. Two processes wait for each other once in a step: documents do not see each other, so losses and
gradients add up. Eight conversations of 570 tokens take 0.74 to 0.84 of the time on two cores that multiply
in tiles; without tiles products take most of it, and two processes 0.97 of it (bfloat16) or 0.92 (float32).

The second process has frozen weights of its own. Its standard input brings the adapter's, with its half of
the batch, and its standard output takes the results; it ends with the first, whose end closes both.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from finelab.errors import LabError
from finelab.resources import HELPERS, KEPT, keep_freed_memory, release_memory
from finelab.train.documents import Batch

if TYPE_CHECKING:
    from finelab.train.cpu_llama import Llama


class Halves:
    """A Llama whose `step` and `score` two processes compute, each with half of torch's threads."""

    def __init__(self, llama: Llama) -> None:
        threads = torch.get_num_threads()
        self.llama = llama
        self.threads = max(threads - threads // 2, 1), max(threads // 2, 1)
        self.second: Second | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """A and B of every adapter, in the order of the gradients."""
        return self.llama.parameters

    def step(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The sum of the losses over the labelled positions, and its gradient by `parameters`."""
        halves = batch.halves(self.threads)
        if halves is None:
            return self.llama.step(batch)
        (loss, gradients), (more, flat) = self._both("step", *halves)
        torch._foreach_add_(gradients, pieces(torch.from_numpy(flat), gradients))
        return loss + more, gradients

    def score(self, batch: Batch) -> Tensor:
        """The sum of the losses alone."""
        halves = batch.halves(self.threads)
        if halves is None:
            return self.llama.score(batch)
        loss, more = self._both("score", *halves)
        return loss + more

    def _both(self, call: str, mine: Batch, theirs: Batch) -> tuple[Any, Any]:
        """What the call gives for this process's batch and for the other's."""
        if self.second is None or not self.second.end.alive:
            self.second = Second(self.llama, self.threads[1])
        second = self.second
        with second.exchange():
            second.ask((call, theirs, flattened(self.parameters).numpy()))
            with _threads(self.threads[0]):
                given = getattr(self.llama, call)(mine)
            return given, second.answer()


class Second:
    """The second process, in a group of its own: an interrupt of the first does not reach it.

    Its memory is counted without the libraries that it shares with the first.
    """

    def __init__(self, llama: Llama, threads: int) -> None:
        self.memory_bytes = self.peak_memory_bytes = 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "finelab.train.halves"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            process_group=0,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
        )
        self.end = weakref.finalize(self, _end, self.process)
        self.requests: Any = self.process.stdin
        self.answers: Any = self.process.stdout
        self.ask(llama)
        KEPT.add(self)
        HELPERS.add(self)

    def ask(self, request: Any) -> None:
        """Send a request, of which the first is the model; LabError where the process has ended."""
        with self._alive():
            pickle.dump(request, self.requests)
            self.requests.flush()

    def answer(self) -> Any:
        """The answer to the last request; raises what went wrong there, LabError where the process ended."""
        with self._alive():
            given, self.memory_bytes = pickle.load(self.answers)
        self.peak_memory_bytes = max(self.peak_memory_bytes, self.memory_bytes)
        if isinstance(given, Exception):
            raise given
        return given

    def free(self) -> None:
        """Give back what it keeps for its next step."""
        if self.process.poll() is None:
            with self.exchange():
                self.ask(("free",))
                self.answer()

    @contextlib.contextmanager
    def exchange(self) -> Iterator[None]:
        """Around a request and its answer: cut short, it ends the process, and the next step starts another.

        The answer that is under way would be taken for the next one.
        """
        try:
            yield
        except BaseException:
            self.end()
            self.memory_bytes = self.peak_memory_bytes = 0
            raise

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            self.process.kill()
            code = self.process.wait()
            raise LabError(
                f"The process that computes half of each batch has ended ({code}; -9 where the system needed "
                "its memory). Go on with FINELAB_MACHINE=processes=1, which does without it."
            ) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in filter(None, (process.stdin, process.stdout)):
        with contextlib.suppress(OSError):  # what it did not take
            pipe.close()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def flattened(tensors: list[Tensor]) -> Tensor:
    """All values one after another, in float32."""
    return torch.cat([each.detach().flatten().float() for each in tensors])


def pieces(flat: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """What `flattened` laid one after another, in the tensors' shapes."""
    parts = flat.split([each.numel() for each in tensors])
    return [part.view_as(each) for part, each in zip(parts, tensors, strict=True)]


def serve() -> None:
    """Be the second process: answer the requests on standard input until it ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    torch.set_grad_enabled(False)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the first process has ended
        llama = pickle.load(requests)
        keep_freed_memory()  # from here on: what reading the model freed has gone back
        while True:
            given = _given(llama, *pickle.load(requests))
            memory = psutil.Process().memory_info()
            pickle.dump((given, memory.rss - getattr(memory, "shared", 0)), answers)
            answers.flush()


def _given(llama: Llama, call: str, *request: Any) -> Any:
    """What the first process asks for, or the error instead."""
    try:
        if call == "free":
            return release_memory()
        batch, parameters = request
        torch._foreach_copy_(llama.parameters, pieces(torch.from_numpy(parameters), llama.parameters))
        if call == "score":
            return float(llama.score(batch))
        loss, gradients = llama.step(batch)
        return float(loss), flattened(gradients).numpy()
    except Exception as error:
        return error


if __name__ == "__main__":
    serve()

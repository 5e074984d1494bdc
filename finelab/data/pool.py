"""One function over many chunks, in worker processes, with the results in order."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from finelab.errors import LabError

SPAWN_CHUNKS = 8  # a worker's, from which on it is worth its start: importing takes it seconds
_function: Callable[[Any], Any]


def in_order(function: Callable[[Any], Any], chunks: Iterable[Any], workers: int) -> Iterator[Any]:
    """`function(chunk)` of every chunk, in the order of the chunks; LabError when a worker dies.

    Two chunks a worker are under way at most, so memory stays flat however many there are. Few chunks
    are not worth a process. `function` is sent once to each worker.
    """
    chunks = iter(chunks)
    # fork takes no time; macOS and Windows cannot fork safely and start a fresh interpreter
    method, few = ("fork", workers) if sys.platform == "linux" else ("spawn", SPAWN_CHUNKS * workers)
    first = list(itertools.islice(chunks, few))
    if workers == 1 or len(first) < few:
        yield from map(function, itertools.chain(first, chunks))
        return
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(function,))
    under_way: deque[tuple[Any, Future[Any]]] = deque()
    try:
        for chunk in itertools.chain(first, chunks):
            under_way.append((chunk, pool.submit(_call, chunk)))
            if len(under_way) > 2 * workers:
                yield _result(function, *under_way.popleft())
        while under_way:
            yield _result(function, *under_way.popleft())
    except BrokenProcessPool as error:
        raise LabError(
            "a worker process died, most often for want of memory; "
            'set FINELAB_MACHINE="dataset_num_proc=1" to work in one process.'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _result(function: Callable[[Any], Any], chunk: Any, future: Future[Any]) -> Any:
    try:
        return future.result()
    except RecursionError:  # JSON is read to twice the depth that can be sent to a worker
        return function(chunk)


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next chunk for ever, and hold what is locked."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def _call(chunk: Any) -> Any:
    return _function(chunk)

"""A chat server in a process of its own, started from a notebook."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from finelab.errors import LabError
from finelab.run import RUN_VARIABLE, STDIN_VARIABLE, Run

READY = "Serving "  # what `serve` prints before its address
NO_KEYS = {"FINELAB_API_KEYS": ""}  # an exported key is another server's; the notebook sends none


@dataclass(frozen=True)
class LocalServer:
    """A server that answers this machine alone; `url` opens the page, `url + "/v1"` is for clients."""

    process: subprocess.Popen[str]
    url: str

    def stop(self) -> None:
        """End it; answers under way are finished first."""
        self.process.terminate()
        self.process.wait()


def start_server(run: Run) -> LocalServer:
    """Serve a run's base and adapter at a free port; LabError with the reason when it does not come up.

    It goes on when a cell is interrupted, and ends with this process. Its log is `server.log` in the run's
    folder.
    """
    log = run.folder / "server.log"
    with log.open("w", encoding="utf-8") as errors:
        process = _serve(run, errors)
    atexit.register(process.terminate)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()  # ends with the process, should it fail
    except BaseException:  # it would go on, and nobody would have it
        process.terminate()
        process.wait()
        raise
    if not line.startswith(READY):
        process.wait()
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
        raise LabError(f"the server did not start: {said[-1].removeprefix('finelab: ')}")
    return LocalServer(process, line.removeprefix(READY).strip())


def _serve(run: Run, errors: TextIO) -> subprocess.Popen[str]:
    """The server's process, in a group of its own: an interrupt of the kernel does not reach it."""
    return subprocess.Popen(
        [sys.executable, "-m", "finelab", "serve", "--port", "0"],
        stdin=subprocess.PIPE,  # held open while this process lives
        stdout=subprocess.PIPE,
        stderr=errors,
        encoding="utf-8",
        errors="replace",
        cwd=Path(__file__).parents[2],
        env={**os.environ, **NO_KEYS, STDIN_VARIABLE: "1", RUN_VARIABLE: str(run.folder.absolute())},
        process_group=0,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
    )

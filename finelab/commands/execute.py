"""Execute one notebook as it stands, with progress, in a kernel that never outlives the runner."""

from __future__ import annotations

import asyncio
import atexit
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from finelab.commands.progress import Progress
from finelab.errors import LabError
from finelab.files import write_text
from finelab.recipe import SMALLER_BATCHES
from finelab.resources import NO_MEMORY
from finelab.run import RUN_VARIABLE

FULL_DISK = re.compile(  # the last one is torch's, which hides the system's reason
    r"No space left on device|Errno 28\b|WinError 112\b|Disk quota exceeded"
    r"|PytorchStreamWriter failed writing"
)
NO_DEVICE = "cannot find any torch accelerator"  # Unsloth, which does without one only where no card is
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
SHOWN_LINES = 12
ONE_REQUEST_S = 3.0  # a sweep's trial hears of one Ctrl-C twice: from the terminal, and from the sweep


class NotebookError(Exception):
    """A cell failed in a way that is the lab's fault, with what to send in a bug report."""


class Stopped(Exception):
    """The user stopped the notebook."""


def execute(notebook: Path, run_folder: Path, copy: Path, progress: Progress) -> None:
    """Execute `notebook` for a run and keep it as `copy`, which is there only if it ended well.

    LabError is a mistake the user can mend, NotebookError any other failed cell, KeyboardInterrupt
    a stop; what had been executed by then is in `<copy>.failed.ipynb`.
    """
    content = nbformat.read(notebook, as_version=4)
    failed = copy.with_suffix(".failed.ipynb")
    client = Client(content, progress, notebook.parent)
    before = {number: signal.getsignal(number) for number in stopping_signals()}
    try:
        client.execute(env={**os.environ, RUN_VARIABLE: str(run_folder)})
    except (CellExecutionError, RuntimeError, Stopped) as error:
        write_text(failed, nbformat.writes(content))
        if client.stopping:
            raise KeyboardInterrupt from error
        _explain(error, run_folder.name, notebook.stem, client.cell_number, failed)
    finally:
        if client.km is None:  # of a kernel that did not start nothing is left to clean up
            atexit.unregister(client._cleanup_kernel)
        for number, handler in before.items():  # on Windows the client's would outlive it
            if handler is not None:
                signal.signal(number, handler)
    write_text(copy, nbformat.writes(content))
    failed.unlink(missing_ok=True)
    if client.stopping:
        raise KeyboardInterrupt


class Client(NotebookClient):  # type: ignore[misc]
    """nbclient that shows progress, and at Ctrl-C lets the kernel finish what it is saving."""

    def __init__(self, content: Any, progress: Progress, folder: Path) -> None:
        super().__init__(
            content,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
            startup_timeout=300,
            extra_arguments=["--log-level=ERROR"],  # not a warning at every start about plain TCP
            store_widget_state=False,
            coalesce_streams=True,
        )
        self.progress = progress
        self.cell_number = 0
        self.stopping = False
        self._asked_at = 0.0
        self._in_cell = False
        self._stopping_task: asyncio.Task[None] | None = None

    def create_kernel_manager(self) -> Any:
        """The kernel runs this environment's Python, whatever kernels the user has installed."""
        manager = super().create_kernel_manager()
        manager.kernel_spec.argv[0] = sys.executable
        return manager

    async def async_start_new_kernel(self, **kwargs: Any) -> None:
        """Take the signals from nbclient: it would shut the kernel down in the midst of a save."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            self._stopping_task = loop.create_task(self._stop())

        for number in stopping_signals():
            try:
                loop.add_signal_handler(number, stop)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))
        if hasattr(signal, "SIGHUP"):  # the others are nbclient's to remove
            self.on_notebook_complete = lambda notebook: loop.remove_signal_handler(signal.SIGHUP)
        await super().async_start_new_kernel(**kwargs)

    async def async_execute_cell(self, cell: Any, *args: Any, **kwargs: Any) -> Any:
        """Execute a cell unless the user has stopped the notebook."""
        if self.stopping:
            raise Stopped
        if cell.cell_type == "code":
            self.cell_number += 1
            self.progress.cell(self.cell_number)
        self._in_cell = True
        try:
            return await super().async_execute_cell(cell, *args, **kwargs)
        finally:
            self._in_cell = False

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        """Look for a line of progress in what a cell prints or displays."""
        content = msg["content"]
        if msg["msg_type"] == "stream":
            self.progress.say(content["text"])
        elif msg["msg_type"] in ("display_data", "update_display_data"):
            self.progress.say(content["data"].get("text/plain", ""))
        return super().process_message(msg, cell, cell_index)

    async def _stop(self) -> None:
        """Interrupt the running cell; asked a second time, end the kernel at once."""
        now = time.monotonic()
        if self.stopping and now - self._asked_at < ONE_REQUEST_S:
            return
        self._asked_at = now
        if self.stopping and self.km is not None:
            await self.km.shutdown_kernel(now=True)
        elif self._in_cell and self.km is not None:
            await self.km.interrupt_kernel()
        self.stopping = True


def stopping_signals() -> list[signal.Signals]:
    """Ctrl-C, `kill` and a closed terminal, unless `nohup` says to ignore that; a sweep's on Windows."""
    names = ["SIGINT", "SIGTERM", "SIGBREAK"]  # the first also in a shell's background job: sweeps send it
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        names.append("SIGHUP")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def _less_memory(stage: str, run: str) -> str:
    """What helps a stage whose memory ran out; a batch is of the training alone."""
    if stage == "03_train":
        return f"close other programs, or take smaller batches ({SMALLER_BATCHES}) under another --run NAME"
    return (
        "close other programs and run the same command again, which keeps what was trained; where it was a "
        "card's memory, set CUDA_VISIBLE_DEVICES=-1, which does the stage on the processor, and name the "
        f"run: python lab.py run --run {run} --stages {stage.partition('_')[2]}"
    )


def _explain(error: Exception, run: str, stage: str, cell: int, failed: Path) -> NoReturn:
    if isinstance(error, DeadKernelError):
        raise LabError(
            f"{stage}: the kernel died in cell {cell}, most often for want of memory; close other "
            "programs or use a smaller model, then run the same command again."
        ) from error
    if not isinstance(error, CellExecutionError):
        raise LabError(f"{stage}: the kernel did not start ({error}); run it again.") from error
    if error.ename == "LabError":
        raise LabError(f"{stage}: {error.evalue}") from error
    trace = COLOUR.sub("", error.traceback)
    if FULL_DISK.search(trace):
        raise LabError(
            f"{stage}: the disk is full; free some space and run the same command again."
        ) from error
    if NO_DEVICE in error.evalue:
        raise LabError(
            f"{stage}: there is an NVIDIA card, and torch does not see it; `python lab.py doctor` says why. "
            "CUDA_VISIBLE_DEVICES=-1 trains on the processor."
        ) from error
    if NO_MEMORY.search(f"{error.ename}: {error.evalue}"):
        raise LabError(f"{stage}: not enough memory in cell {cell}; {_less_memory(stage, run)}.") from error
    tail = "\n".join(f"    {line}" for line in trace.strip().splitlines()[-SHOWN_LINES:])
    raise NotebookError(f"{stage}: cell {cell} failed:\n{tail}\nmore of it: {failed}") from error

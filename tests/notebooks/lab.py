"""`lab.py run` as a process of its own, with the runs in a folder of the test."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Lab:
    """Calls `python -m finelab run`, as lab.py does, with its runs in the folder `runs`."""

    def __init__(self, runs):
        self.runs = runs
        self.environment = {
            **os.environ,
            "FINELAB_RUNS": str(runs),
            "HF_TOKEN": "",
            "HF_TOKEN_PATH": str(runs / "no-login"),
        }

    def start(self, *options):
        return subprocess.Popen(
            [sys.executable, "-m", "finelab", "run", *options],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *options):
        process = self.start(*options)
        output, _ = process.communicate()
        return process.returncode, output

    def kill_when(self, path, *options):
        """Start a run and kill -9 it, with its kernel, as soon as `path` is there."""
        process = self.start(*options)
        while not path.exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

"""Standard tasks through EleutherAI's lm-evaluation-harness, when it is installed: `pip install lm-eval`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finelab.errors import LabError

SHOWN = 500  # characters of the harness's last words


def harness(
    model: Path,
    tasks: Sequence[str],
    include_path: Path | None = None,
    limit: int | None = None,
    device: str = "cpu",
) -> dict[str, dict[str, float]]:
    """Each task's metrics for a merged model's folder, as the harness names them: `acc,none` and so on.

    `include_path` is a folder with tasks of one's own. LabError when the harness is not installed or fails.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise LabError(
            "lm-evaluation-harness is not installed; run `pip install lm-eval` in this environment."
        )
    with tempfile.TemporaryDirectory() as folder:
        command = harness_command(model, tasks, Path(folder), include_path, limit, device)
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONUTF8": "1"},  # its tables have an arrow, which cp1252 has not
            check=False,
        )
        results = sorted(Path(folder).rglob("results_*.json"))
        if done.returncode or not results:
            words = (done.stderr or done.stdout).strip()[-SHOWN:]
            raise LabError(f"lm_eval failed on {', '.join(tasks)}: {words or 'it wrote no results'}")
        found = json.loads(results[-1].read_text(encoding="utf-8"))["results"]
    return {task: _numbers(metrics) for task, metrics in found.items()}


def harness_command(
    model: Path,
    tasks: Sequence[str],
    output: Path,
    include_path: Path | None = None,
    limit: int | None = None,
    device: str = "cpu",
) -> list[str]:
    """The command line of `harness`, with the model's own chat template."""
    dtype = "float32" if device == "cpu" else "auto"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf"]
    command += ["--model_args", f"pretrained={model},dtype={dtype}", "--tasks", ",".join(tasks)]
    command += ["--device", device, "--apply_chat_template", "--output_path", str(output)]
    if include_path is not None:
        command += ["--include_path", str(include_path)]
    return command if limit is None else [*command, "--limit", str(limit)]


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics that are numbers; the harness keeps names and "N/A" among them."""
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}

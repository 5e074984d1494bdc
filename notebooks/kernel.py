"""Imported first by every notebook: says what to do when its kernel is not the lab's Python."""

import importlib.util
import sys

if not all(importlib.util.find_spec(name) for name in ("finelab", "unsloth")):
    raise SystemExit(
        f"This kernel is {sys.executable}, which is not the lab's Python. "
        "In a terminal, in the lab's folder, `python lab.py notebooks` opens them with the right one. "
        "In VS Code choose the kernel in .venv. "
        "On Paperspace run `bash environment/setup-paperspace.sh`, then choose the kernel finelab."
    )

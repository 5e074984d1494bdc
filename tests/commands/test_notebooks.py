"""JupyterLab with the lab's Python, and what is said where the lock leaves it out."""

import os
import subprocess
import sys

WITHOUT = """
import sys
from finelab.__main__ import main

class Paperspace:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jupyterlab", "notebook", "jupyter_server"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Paperspace())
sys.exit(main(["notebooks"]))
"""


def test_without_jupyterlab_it_says_where_the_notebooks_are_opened(tmp_path):
    """As on Paperspace, whose lock has neither JupyterLab nor its server."""
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("finelab: jupyterlab is not installed here")
    assert ended.stderr.endswith("choose the kernel finelab there.\n")
    assert "Traceback" not in ended.stderr

import io

import nbformat
import pytest
from rich.console import Console


@pytest.fixture
def console():
    """A log 80 columns wide; `console.file.getvalue()` is what was printed."""
    return Console(file=io.StringIO(), width=80)


@pytest.fixture
def write_notebook(tmp_path):
    """Writes a notebook of these cells and gives its path."""

    def write(*sources, name="03_train"):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    return write

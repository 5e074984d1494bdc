"""What a reader meets in every notebook, and whether its calls still exist in the libraries."""

import ast
import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def cells(path, kind):
    return [
        "".join(cell["source"])
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == kind
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short_and_explained(path):
    code, prose = cells(path, "code"), cells(path, "markdown")
    assert max(len(cell.splitlines()) for cell in code) <= 14
    assert len(prose) >= 0.6 * len(code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_imports_unsloth_before_what_it_patches_and_says_where_it_runs(path):
    first = cells(path, "code")[0]
    imported = re.findall(r"^(?:import|from) (\w+)", first, re.MULTILINE)
    assert imported == ["kernel", "finelab", "unsloth"]
    assert "show.header(run, profile)" in first


def test_another_python_is_told_what_to_do():
    """As a host's own kernel starts: in the notebooks' folder, with a Python that has no packages."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import kernel"], cwd=NOTEBOOKS[0].parent, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("This kernel is ") and "python lab.py notebooks" in done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_takes_from_the_lab_is_there(path):
    """Known in seconds, and not when the notebook is executed."""
    for node in ast.walk(ast.parse("\n".join(cells(path, "code")))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("finelab"):
            exec(ast.unparse(node), {})  # raises ImportError
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id
            if importlib.util.find_spec(f"finelab.{name}") and name not in assigned(path):
                assert hasattr(importlib.import_module(f"finelab.{name}"), node.attr), ast.unparse(node)


def assigned(path):
    tree = ast.parse("\n".join(cells(path, "code")))
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and type(node.ctx) is ast.Store}


def keywords_of(function):
    """The parameters of a function or method, read from the installed source without importing it."""
    module, name = function
    source = Path(importlib.util.find_spec(module.partition(".")[0]).submodule_search_locations[0])
    path = source.joinpath(*module.split(".")[1:]).with_suffix(".py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            arguments = node.args
            yield {a.arg for a in arguments.posonlyargs + arguments.args + arguments.kwonlyargs}


ON_CUDA = {
    "from_pretrained": ("unsloth.models.loader", "from_pretrained"),
    "get_peft_model": ("unsloth.models.llama", "get_peft_model"),
    "save_pretrained_merged": ("unsloth.save", "unsloth_generic_save_pretrained_merged"),
}

THROUGH_KWARGS = {"use_dora"}  # Unsloth hands its **kwargs on to LoraConfig


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_unsloths_cuda_functions_take_the_keywords_we_pass(path):
    for cell in cells(path, "code"):
        for node in ast.walk(ast.parse(cell)):
            name = getattr(getattr(node, "func", None), "attr", "")
            owner = getattr(getattr(getattr(node, "func", None), "value", None), "id", "")
            if not isinstance(node, ast.Call) or name not in ON_CUDA or owner.startswith("Auto"):
                continue
            passed = {keyword.arg for keyword in node.keywords} - THROUGH_KWARGS
            assert any(passed <= known for known in keywords_of(ON_CUDA[name])), (name, passed)

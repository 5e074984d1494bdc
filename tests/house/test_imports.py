"""Unsloth must be imported before the libraries it patches, so no module of ours may import them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATCHED = {"unsloth", "unsloth_zoo", "trl", "transformers", "peft"}
MODULES = sorted((ROOT / "finelab").rglob("*.py"))


def at_module_scope(tree):
    """Import statements that run on import: those outside functions."""
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)


def roots(node):
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_imports_a_patched_library(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [name for node in at_module_scope(tree) for name in roots(node) & PATCHED]
    assert found == []


def test_the_rule_sees_imports_in_branches_and_classes():
    text = "if True:\n    import trl\nclass A:\n    from peft import x\ndef f():\n    import unsloth\n"
    assert {name for node in at_module_scope(ast.parse(text)) for name in roots(node)} == {"trl", "peft"}

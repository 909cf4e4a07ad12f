"""Docstrings are sentences: subject, verb, noun; none leans on the line before it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "shortened_llm").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])
FRAGMENTS = ("Of ", "The same", "As ", "Likewise", "Ditto")


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Those of modules, classes, functions, and of what is assigned above them."""
    for node in ast.walk(ast.parse(path.read_text())):
        for statement in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value.strip()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_begins_with_a_fragment(path: Path) -> None:
    found = [f"{path}:{line}: {text.splitlines()[0]}" for line, text in docstrings(path) if text.startswith(FRAGMENTS)]
    assert not found, "\n".join(found)

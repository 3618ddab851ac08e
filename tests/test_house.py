"""Files and functions of the package, and files of tests, are short enough to read."""

import ast
from pathlib import Path

import pytest

import moe_md

ROOT = Path(moe_md.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TESTS = Path(__file__).parent
FILE_LINES, FUNCTION_LINES = 400, 60


def lengths(source: str) -> dict[str, int]:
    """Lines of each function of a module, without its signature and docstring."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            has_docstring = ast.get_docstring(node) is not None
            start = first.end_lineno if has_docstring else first.lineno - 1
            assert node.end_lineno is not None and start is not None
            found[node.name] = node.end_lineno - start
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    source = path.read_text()
    assert source.count("\n") <= FILE_LINES
    assert {name: n for name, n in lengths(source).items() if n > FUNCTION_LINES} == {}


def test_files_of_tests_are_short():
    lines = {str(p.relative_to(TESTS)): p.read_text().count("\n") for p in sorted(TESTS.rglob("*.py"))}
    assert {name: n for name, n in lines.items() if n > FILE_LINES} == {}


def test_lengths_are_counted():
    first = 'def f():\n    """Text.\n\n    More.\n    """\n    a = 1\n\n    return a\n'
    source = first + "\n\ndef g():\n    return 2\n"
    assert lengths(source) == {"f": 3, "g": 1}

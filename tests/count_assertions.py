"""How many tests there are, and how much they assert: to compare two commits.

    python tests/count_assertions.py [FOLDER OF A CHECKOUT]

Cases are counted as pytest collects them, all and those of the short depth. An assertion is an
`assert`, a call of a function named `assert_...`, or `pytest.raises` or `pytest.warns`. In a test it
counts as often as the test has cases, in any other function of `tests/` once.
"""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path


def is_assertion(node: ast.AST) -> bool:
    """Whether a node of the syntax tree asserts something."""
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    return name.rpartition(".")[2].startswith("assert_") or name in ("pytest.raises", "pytest.warns")


def assertions(file: Path) -> dict[str, int]:
    """By test function, how many assertions it holds; under "" those of everything else."""
    found = Counter()
    for node in ast.parse(file.read_text()).body:
        is_test = isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        found[node.name if is_test else ""] += sum(map(is_assertion, ast.walk(node)))
    return found


def cases(root: Path, *options: str) -> list[tuple[str, str]]:
    """File and function of each case that pytest collects."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-n", "0", *options]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    lines = [line.split("::") for line in done.stdout.splitlines() if "::" in line]
    return [(parts[0], parts[1].partition("[")[0]) for parts in lines]


def main(root: Path) -> None:
    by_file = {path: assertions(path) for path in sorted((root / "tests").rglob("*.py"))}
    every, short = cases(root, "-m", ""), cases(root)
    written = sum(sum(found.values()) for found in by_file.values())
    helpers = sum(found[""] for found in by_file.values())
    print(f"test cases: {len(every)} in all, {len(short)} in the short depth")
    print(f"assertions written in tests/: {written}, {helpers} of them in helpers")
    for name, chosen in (("all", every), ("short depth", short)):
        made = sum(by_file.get(root / file, {}).get(function, 0) for file, function in chosen)
        print(f"assertions of tests times their cases, {name}: {made}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve())

"""The house: imports go downward, importing changes nothing, the ground floors are pure."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import moe_md

ROOT = Path(moe_md.__file__).parent

# From the ground up. A module imports from floors below its own, or from its own package.
FLOORS = (
    ("units", "settings", "interrupts", "neighborhood"),  # rows are the language of the models
    ("neighbor_list", "models"),  # lists fill them
    ("experts", "regions", "data"),
    ("mixture", "checkpoint"),
    ("derivatives", "integrators"),
    ("rollout",),
    ("simulate", "adjoint", "distributed", "implicit", "reweighting"),
    ("training", "interfaces"),
    ("analysis",),  # of surfaces: through ASE; of errors: as the loss has them
    ("demo", "validate", "settings_file", "mixed_system"),
    ("md", "export"),
    ("bench",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TOP = ("__init__", "__main__")  # the front door opens on every room
MAY_TOUCH_FILES = ("checkpoint", "data")

MODULES = sorted(ROOT.rglob("*.py"))


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path):
    """`(room, line)` of every import of this package, also inside functions; "" is the package itself."""
    tree = ast.parse(path.read_text())
    package = ("moe_md", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "moe_md" else [module]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "moe_md":
                yield (parts[1] if len(parts) > 1 else ""), node.lineno


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downward(path):
    here = room(path)
    if here in TOP:
        return
    assert here in FLOOR, f"{here} is on no floor: add it to FLOORS"
    for other, line in imported_rooms(path):
        assert other in FLOOR, f"line {line} imports {other or 'the whole package'}"
        assert other == here or FLOOR[other] < FLOOR[here], f"line {line}: {here} may not import {other}"


def test_the_check_sees_imports():
    """The mixture imports these, so the check above did look at something."""
    assert {"experts", "neighborhood", "regions"} <= {r for r, _ in imported_rooms(ROOT / "mixture.py")}


FORBIDDEN_CALLS = {"print", "open", "input", "exec", "eval", "__import__", "breakpoint"}
FORBIDDEN_METHODS = {
    *("open", "write_text", "write_bytes", "read_text", "read_bytes", "mkdir", "unlink", "touch", "rename"),
    *(
        "fromfile",
        "tofile",
        "savez",
        "savez_compressed",
        "savetxt",
        "loadtxt",
        "genfromtxt",
        "makedirs",
        "fdopen",
    ),
}
FORBIDDEN_MODULES = {"pickle", "subprocess", "socket", "shutil", "tempfile", "logging", "tqdm"}


def impurities(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                yield node.func.id, node.lineno
            elif isinstance(node.func, ast.Attribute):
                written = ast.unparse(node.func)
                if node.func.attr in FORBIDDEN_METHODS or written in (
                    *("np.save", "np.load", "jnp.save", "jnp.load", "jax.debug.print"),
                    *("os.remove", "os.replace", "os.open", "sys.stdout.write", "sys.stderr.write"),
                ):
                    yield written, node.lineno
        elif isinstance(node, ast.Import):
            yield from (
                (a.name, node.lineno) for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            yield node.module, node.lineno


PURE = [
    p
    for p in MODULES
    if room(p) in FLOOR and FLOOR[room(p)] <= FLOOR["simulate"] and room(p) not in MAY_TOUCH_FILES
]


@pytest.mark.parametrize("path", PURE, ids=lambda p: str(p.relative_to(ROOT)))
def test_lower_floors_neither_print_nor_touch_files(path):
    assert list(impurities(path.read_text())) == []


def test_the_check_sees_files():
    found = {name for name, _ in impurities((ROOT / "checkpoint.py").read_text())}
    assert {"open", "os.replace", "path.read_bytes"} <= found
    assert [name for name, _ in impurities("import tqdm\nprint(1)\njax.debug.print('x')")] == [
        "tqdm",
        "print",
        "jax.debug.print",
    ]


def test_importing_changes_no_setting():
    program = (
        "import jax\n"
        "before = dict(jax.config.values)\n"
        "import moe_md\n"
        "after = dict(jax.config.values)\n"
        "changed = {k: (v, after[k]) for k, v in before.items() if after[k] != v}\n"
        "assert len(before) > 50, len(before)\n"
        "assert not changed, changed\n"
        "assert not jax.config.jax_enable_x64\n"
        "import jax.numpy as jnp\n"
        "assert jnp.ones(3).dtype == jnp.float32\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""

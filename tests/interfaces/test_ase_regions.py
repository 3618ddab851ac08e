"""Dynamic regions and blended gates under ASE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import units
from ase.build import add_adsorbate, bulk, fcc111
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from jax_md import space

import moe_md as mm
from moe_md.interfaces import ase_gates, cached_rows, selections
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.interfaces.lammps import RankPotential
from moe_md.neighbors.rows import image_pairs

SPECIES = ("C", "O", "Pt")


@pytest.fixture(scope="module")
def checkpoint():
    """Two experts that disagree."""
    experts = tuple(
        mm.experts.lennard_jones(SPECIES, 5.0, epsilon=e, sigma=s, onset=4.2)
        for e, s in ((0.4, 2.3), (0.3, 2.35))
    )
    return mm.Checkpoint(experts, tuple(e.init(None) for e in experts), {}, {})


def slab(repeat=(4, 4, 3), pbc=(True, True, False)):
    """A platinum slab with an adatom, which is the last atom."""
    atoms = fcc111("Pt", repeat, a=3.97, vacuum=6.0)
    add_adsorbate(atoms, "Pt", 2.3, "fcc")
    atoms.pbc = pbc
    atoms.rattle(0.1, seed=3)
    return atoms


def crystal():
    atoms = bulk("Pt", a=3.97, cubic=True).repeat(3)
    atoms.set_cell(atoms.cell.array @ [[1, 0.05, 0], [0, 1, 0.08], [0, 0, 1.03]], scale_atoms=True)
    atoms.rattle(0.1, seed=3)
    return atoms


def followed(atoms):
    return mm.regions.around([len(atoms) - 1], 1.5, 3.0)


CASES = {
    "skew slab, open above": (slab, followed),
    "skew crystal": (crystal, followed),
    "cluster": (lambda: slab(pbc=False), followed),
    "few neighbours": (crystal, lambda atoms: mm.regions.coordination(11.0, 12.2, r_full=2.9, r_none=3.7)),
    "both": (
        slab,
        lambda atoms: mm.regions.union(
            followed(atoms), mm.regions.coordination(8.0, 10.0, r_full=2.9, r_none=3.7)
        ),
    ),
    "grown": (
        crystal,
        lambda atoms: mm.regions.grown(mm.regions.coordination(11.0, 12.2, r_full=2.9, r_none=3.7), 0.5, 2.0),
    ),
    "grown, open": (
        slab,
        lambda atoms: mm.regions.grown(
            mm.regions.grown(mm.regions.coordination(3.0, 4.5, r_full=2.9, r_none=3.7), 0.5, 2.5), 1.5, 2.0
        ),
    ),
    "static blend": (
        crystal,
        lambda atoms: mm.regions.sphere(atoms.positions, atoms.positions[5], 3.0, blend=3.0),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_forces_and_stress_are_the_gradient(checkpoint, name):
    make, region = CASES[name]
    atoms = make()
    atoms.calc = MixtureCalculator(checkpoint, region(atoms))
    gate = gate_of(atoms, region(atoms))
    assert np.sum((gate > 0.01).all(axis=1)) >= 3, "the gate must blend at least 3 atoms"
    some = [0, 5, len(atoms) // 2, len(atoms) - 2, len(atoms) - 1]
    forces = atoms.get_forces()
    for n in some:
        np.testing.assert_allclose(
            forces[n], calculate_numerical_forces(atoms, eps=1e-4, iatoms=[n])[0], atol=2e-6
        )
    np.testing.assert_allclose(atoms.get_potential_energies().sum(), atoms.get_potential_energy(), rtol=1e-12)
    if name != "static blend":  # its gate is fixed in space
        np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-10)
    if atoms.pbc.all():
        np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-5), atol=1e-8)
        np.testing.assert_allclose(atoms.get_stresses().sum(axis=0), atoms.get_stress(), atol=1e-14)


@pytest.mark.parametrize(
    "region",
    [
        mm.regions.around([40, 50], 2.0, 2.5),
        mm.regions.grown(mm.regions.coordination(8.9, 9.4, r_full=3.0, r_none=3.8), 2.0, 2.5),
    ],
    ids=["around", "grown"],
)
def test_agrees_with_the_mixture(checkpoint, region):
    """The same energy through jax-md's lists."""
    atoms = fcc111("Pt", (4, 6, 3), a=3.97, orthogonal=True, vacuum=6.0)
    atoms.pbc = True
    atoms.rattle(0.1, seed=3)
    box = atoms.cell.lengths()
    fns = mm.mixture_neighbor_list(
        space.periodic(box)[0],
        box,
        checkpoint.potentials,
        np.full(len(atoms), 2),
        region,
        per_particle=True,
    )
    R = jnp.asarray(atoms.positions)
    neighbors = fns[0].allocate(R)
    atoms.calc = MixtureCalculator(checkpoint, region)
    np.testing.assert_allclose(atoms.get_potential_energies(), jax.jit(fns[1])(R, neighbors), atol=1e-10)
    np.testing.assert_allclose(
        atoms.get_forces(), -jax.jit(jax.grad(lambda R: jnp.sum(fns[1](R, neighbors))))(R), atol=1e-9
    )


def test_one_calculator_serves_slabs_with_and_without_adsorbates(checkpoint):
    """Where no atom is selected, all atoms belong to the cheap expert."""
    clean = fcc111("Pt", (4, 4, 3), a=3.97, vacuum=6.0)
    adsorbed = clean.copy()
    add_adsorbate(adsorbed, "O", 1.3, "fcc")
    for region in (
        selections.around_species(("O", "C"), 3.0, 1.5, missing="cheap"),
        selections.by_tag(0, missing="cheap"),
        lambda atoms: mm.regions.around(np.flatnonzero(atoms.symbols == "O"), 3.0, 1.5, missing="cheap"),
    ):
        calculator = MixtureCalculator(checkpoint, region)
        energies = [calculator.get_potential_energy(atoms) for atoms in (clean, adsorbed, clean)]
        cheap = MixtureCalculator(checkpoint, 1)
        assert energies[0] == energies[2] == pytest.approx(cheap.get_potential_energy(clean), rel=1e-13)
        assert energies[1] != pytest.approx(cheap.get_potential_energy(adsorbed), abs=1e-4)
        np.testing.assert_allclose(calculator.get_forces(clean), cheap.get_forces(clean), atol=1e-12)
    for wrong in (selections.around_species(("O",), 3.0, 1.5), selections.by_tag(0)):
        with pytest.raises(ValueError, match='With missing="cheap" they may be absent'):
            MixtureCalculator(checkpoint, wrong).get_potential_energy(clean)


def test_energy_is_conserved_while_atoms_switch_expert(checkpoint):
    """With ASE's velocity Verlet the error in the energy is of second order in the time step."""
    start = slab()
    MaxwellBoltzmannDistribution(start, temperature_K=600, rng=np.random.default_rng(0))
    region = mm.regions.around([10], 2.0, 1.5)
    spread = {}
    for timestep, n_steps in ((2.0, 40), (1.0, 80)):
        atoms = start.copy()
        atoms.calc = MixtureCalculator(checkpoint, region)
        energies, sums = [], []
        dynamics = VelocityVerlet(atoms, timestep * units.fs)

        def record(atoms=atoms, energies=energies, sums=sums):
            energies.append(atoms.get_total_energy())
            sums.append(gate_of(atoms, region)[:, 0].sum())

        dynamics.attach(record)
        dynamics.run(n_steps)
        spread[timestep] = np.std(energies)
        assert np.ptp(sums) > 0.2  # sum of the gates of expert 0
    assert spread[1.0] < 0.4 * spread[2.0]


def gate_of(atoms, region):
    """`[n_atoms, n_experts]`."""
    calc = atoms.calc
    geometry = cached_rows.reference_geometry(atoms, calc._species_of(atoms))
    cutoff = max(e.cutoff for e in calc.checkpoint.experts)
    pairs = image_pairs(geometry.position, geometry.cell, geometry.pbc, cutoff)
    idx, complete_within = ase_gates.gate_neighbors(geometry, pairs, cutoff, 0.0)
    offsets = cached_rows.lattice_offsets(geometry)
    return calc._gate(region, calc._gate_inputs(geometry, offsets, idx, region), complete_within)


def test_single_precision(checkpoint):
    atoms = slab()
    found = []
    for dtype in ("float64", "float32"):
        atoms.calc = MixtureCalculator(checkpoint, followed(atoms), dtype=dtype)
        found.append(atoms.get_forces())
    np.testing.assert_allclose(*found, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 0


def test_bad_regions(checkpoint):
    atoms = slab()
    for message, region, cell in (
        ("region must give finite gates for the 49 atoms, got NaN", mm.regions.around([49], 2.0, 1.0), atoms),
        (
            "region must give a gate for each of the 49 atoms and 2 experts, got shape \\(49, 3\\)",
            mm.regions.nested(followed(atoms), followed(atoms)),
            atoms,
        ),
        (
            "neighbors must be listed within 3.7 Å",
            mm.regions.coordination(8.0, 10.0, r_full=2.9, r_none=3.7),
            bulk("Pt", a=3.97, cubic=True),
        ),
        ("region must have assigned its atoms", mm.regions.reassigned(followed(atoms)), atoms),
    ):
        with pytest.raises(ValueError, match=message):
            MixtureCalculator(checkpoint, region).calculate(cell)
    with pytest.warns(UserWarning, match="wider than half the box"):
        MixtureCalculator(checkpoint, mm.regions.around([0], 5.0, 3.0)).calculate(atoms)


def test_reused_rows_are_right_in_cells_that_change(checkpoint):
    """A narrow cell is compressed and stretched while atoms move: results equal those of new rows."""
    atoms, rng = crystal(), np.random.default_rng(0)
    region = mm.regions.coordination(11.0, 12.2, r_full=2.9, r_none=3.7)
    reused = MixtureCalculator(checkpoint, region)
    for scale in (1.0, 0.98, 0.96, 1.0, 1.03, 1.05, 1.1):
        moved = atoms.copy()
        moved.positions += 0.05 * rng.standard_normal(moved.positions.shape)
        moved.set_cell(scale * moved.cell.array, scale_atoms=True)
        new = MixtureCalculator(checkpoint, region, dr_threshold=0.0)
        for calculator in (reused, new):
            calculator.calculate(moved)
        for key in ("energies", "forces", "stresses"):
            np.testing.assert_allclose(reused.results[key], new.results[key], atol=1e-10)


def test_a_rank_of_lammps_agrees_on_a_grown_region(checkpoint):
    """All atoms of a cluster on one rank; the padded atoms of LAMMPS change nothing."""
    atoms = slab(pbc=False)
    region = mm.regions.grown(mm.regions.coordination(3.0, 4.5, r_full=2.9, r_none=3.7), 1.0, 2.5)
    atoms.calc = MixtureCalculator(checkpoint, region)
    rank = RankPotential(checkpoint, region, ["Pt"])
    n = len(atoms)
    for _ in range(2):
        energies, forces, _ = rank.compute(atoms.positions, np.ones(n, int), np.arange(1, n + 1), n)
        np.testing.assert_allclose(energies, atoms.get_potential_energies(), atol=1e-11)
        np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-10)
        atoms.rattle(0.02, seed=8)

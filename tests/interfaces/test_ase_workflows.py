"""Workflows of ASE with the mixture as calculator: relaxation, barriers, phonons, dynamics."""

import jax
import numpy as np
import pytest
from ase import units
from ase.build import add_adsorbate, bulk, fcc111
from ase.constraints import FixAtoms
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import FIRE
from ase.phonons import Phonons

import moe_md as mm
from moe_md.analysis.bulk import relax_crystal
from moe_md.interfaces.ase import MixtureCalculator
from moe_md.interfaces.selections import around_species, by_layer
from moe_md.neighbors.rows import rows_from_images


@pytest.fixture(scope="module")
def model():
    return mm.load("ptco-small")


@pytest.fixture(scope="module")
def lattice_constant(model):
    return (4 * relax_crystal(*model.cheap, bulk("Pt")).volume) ** (1 / 3)


def slab_with_co(lattice_constant, site, size=(2, 2, 3), free=1):
    """An upright CO; all layers below the top `free` ones are fixed."""
    atoms = fcc111("Pt", size, a=lattice_constant, vacuum=7.0)
    height = {"ontop": 1.85, "fcc": 1.35}[site]
    add_adsorbate(atoms, "C", height, site)
    add_adsorbate(atoms, "O", height + 1.16, site)
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() > free))
    return atoms


def relaxed(atoms, calculator, fmax=0.05):
    atoms.calc = calculator
    assert FIRE(atoms, logfile=None).run(fmax=fmax, steps=200)
    return atoms


def barrier(lattice_constant, calculator, size, n_images, fmax):
    """Barrier of CO from fcc to on top, and its reaction energy, eV; two layers are free to move."""
    ends = [
        relaxed(slab_with_co(lattice_constant, site, size, free=2), calculator(), fmax / 2)
        for site in ("fcc", "ontop")
    ]
    images = [ends[0], *(ends[0].copy() for _ in range(n_images)), ends[1]]
    for image in images[1:-1]:
        image.calc = calculator()
    band = NEB(images, k=0.1, method="improvedtangent")
    band.interpolate()
    for band.climb in (False, True):
        assert FIRE(band, logfile=None).run(fmax=fmax, steps=200)
    energies = np.array([image.get_potential_energy() for image in images])
    return energies.max() - energies[0], energies[-1] - energies[0]


def check_barrier(model, lattice_constant, size=(2, 2, 4), n_images=3, fmax=0.1):
    """The mixture, with the bottom layer on the cheap expert, agrees with the expensive expert alone."""
    mixed = barrier(
        lattice_constant, lambda: MixtureCalculator(model, by_layer(size[2] + 1)), size, n_images, fmax
    )
    alone = barrier(lattice_constant, lambda: MixtureCalculator(model, 0), size, n_images, fmax)
    assert np.isfinite(mixed).all() and mixed[0] > max(0.05, mixed[1])
    assert mixed != alone
    np.testing.assert_allclose(mixed, alone, atol=5e-3)


def test_relaxation_leaves_fixed_atoms_where_they_are(model, lattice_constant):
    atoms = slab_with_co(lattice_constant, "ontop")
    before = atoms.positions.copy()
    atoms.calc = MixtureCalculator(model, by_layer(3))
    start = atoms.get_potential_energy()
    relaxed(atoms, atoms.calc)
    fixed = atoms.constraints[0].index
    assert len(fixed) == 8
    np.testing.assert_array_equal(atoms.positions[fixed], before[fixed])
    free = np.setdiff1d(np.arange(len(atoms)), fixed)
    assert np.abs(atoms.positions[free] - before[free]).max() > 1e-3
    assert atoms.get_potential_energy() < start
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.05
    assert np.abs(atoms.get_forces(apply_constraint=False)[fixed]).max() > 0


def test_barrier_is_that_of_the_expensive_expert(model, lattice_constant):
    check_barrier(model, lattice_constant)


@pytest.mark.slow
def test_barrier_on_a_wider_slab_is_that_of_the_expensive_expert(model, lattice_constant):
    check_barrier(model, lattice_constant, (3, 3, 4), 5, 0.05)


@pytest.mark.thorough
def test_phonons_of_ase_are_those_of_the_hessian(model, lattice_constant, tmp_path):
    """At zone boundary points that are commensurate with a 2 x 2 x 2 supercell, frequencies equal
    those of the Hessian that jax computes.
    """
    primitive = bulk("Pt", a=lattice_constant)
    phonons = Phonons(
        primitive, MixtureCalculator(model, 1), supercell=(2, 2, 2), delta=0.01, name=str(tmp_path / "phonon")
    )
    phonons.run()
    phonons.read(acoustic=True)
    points = np.array([[0.5, 0.5, 0.0], [0.5, 0.0, 0.0]])  # X and L, in the primitive reciprocal cell
    found = phonons.band_structure(points, verbose=False)

    expert, params = model.experts[1], model.params[1]
    atoms = primitive.repeat(2)
    kinds = np.full(len(atoms), expert.species.index("Pt"))
    rows = rows_from_images(
        atoms.positions, kinds, atoms.cell.array, atoms.pbc, expert.cutoff, dtype=np.float64
    )

    def energy(moved):
        neighbor = np.where(rows.mask, rows.neighbor, 0)
        shift = moved[neighbor] - moved[:, None]
        return expert.atom_energies(params, rows._replace(displacement=rows.displacement + shift)).sum()

    hessian = np.asarray(jax.jacfwd(jax.grad(energy))(np.zeros((len(atoms), 3))))  # [n, 3, n, 3]
    # Force constants between the first atom and each other one, summed with the phases of the point,
    # give the dynamical matrix.
    cells = np.round(primitive.cell.scaled_positions(atoms.positions - atoms.positions[0])).astype(int)
    for point, energies in zip(points, found):
        phase = np.cos(2 * np.pi * cells @ point)
        dynamical = np.einsum("anb,n->ab", hessian[0], phase) / atoms.get_masses()[0]
        expected = (
            np.sqrt(np.linalg.eigvalsh(dynamical)) * units._hbar * 1e10 / np.sqrt(units._e * units._amu)
        )
        assert expected.min() > 5e-3
        np.testing.assert_allclose(np.sort(energies), expected, rtol=5e-3)


def test_constant_energy_with_a_region_that_follows_co(model, lattice_constant):
    atoms = slab_with_co(lattice_constant, "ontop", (4, 4, 3))
    atoms.set_constraint()
    atoms.calc = MixtureCalculator(model, around_species(("C", "O"), 2.5, 1.5))
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
    energies = []
    dynamics = VelocityVerlet(atoms, timestep=0.5 * units.fs)
    dynamics.attach(lambda: energies.append((atoms.get_total_energy(), atoms.get_kinetic_energy())))
    dynamics.run(20)
    total, kinetic = np.transpose(energies)
    assert np.ptp(kinetic) > 0.02 and np.ptp(total) < 0.05 * np.ptp(kinetic)


def test_langevin_dynamics_heats_free_atoms_only(model, lattice_constant):
    atoms = slab_with_co(lattice_constant, "ontop")
    before = atoms.positions.copy()
    atoms.calc = MixtureCalculator(model, by_layer(3))
    Langevin(
        atoms, 1.0 * units.fs, temperature_K=300, friction=0.1 / units.fs, rng=np.random.default_rng(0)
    ).run(60)
    fixed = atoms.constraints[0].index
    np.testing.assert_array_equal(atoms.positions[fixed], before[fixed])
    temperature_K = 2 * atoms.get_kinetic_energy() / (3 * (len(atoms) - len(fixed))) / units.kB
    # With 6 free atoms the temperature fluctuates by 300 sqrt(2 / 18) = 100 K.
    assert 50 < temperature_K < 700

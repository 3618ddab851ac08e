"""Adsorption of CO with the Lennard-Jones potential, against closed forms and ASE."""

import json

import ase.units
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms, FixCartesian
from ase.optimize import FIRE
from ase.vibrations import Vibrations

import moe_md as mm
from moe_md.analysis.adsorption import _wavenumbers, adsorption, around_adsorbate

SIGMA, EPSILON, CUTOFF = 2.5446, 0.6, 5.2
A = 3.95  # Å, close to equilibrium
SPECIES = ("Pt", "C", "O")
EXPERT = mm.experts.lennard_jones(SPECIES, CUTOFF, epsilon=EPSILON, sigma=SIGMA)
# Error of relaxed energies: forces up to 0.01 eV/Å, curvatures above 1 eV/Å^2 per atom.
RELAXED_EV = 2e-3


def checkpoint(*experts):
    return mm.Checkpoint(experts, tuple(e.init(None) for e in experts), {}, {})


def ase_relaxed(atoms) -> float:
    """Energy, eV, under ASE's potential, relaxed by another optimiser to smaller forces."""
    atoms.calc = LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF, ro=0.8 * CUTOFF, smooth=True)
    assert FIRE(atoms, logfile=None).run(fmax=0.003, steps=500)
    return atoms.get_potential_energy()


@pytest.fixture(scope="module")
def one():
    return checkpoint(EXPERT)


METAL = {"symbol": "Pt", "lattice_constant": A}


def test_adsorption(one):
    found = adsorption(one, **METAL, sites=("top", "fcc"))
    # The minimum of the pair energy has curvature k = 72 eps / 2^(1/3) sigma^2. A force of 0.01 eV/Å
    # corresponds to 2e-3 Å; the curvature changes by a relative 21 / bond times this distance.
    assert found["gas"]["bond_A"] == pytest.approx(2 ** (1 / 6) * SIGMA, abs=2e-3)
    reduced = 12.011 * 15.999 / (12.011 + 15.999) * ase.units._amu
    frequency = np.sqrt(72 * EPSILON / 2 ** (1 / 3) / SIGMA**2 * ase.units._e * 1e20 / reduced) / (2 * np.pi)
    assert found["gas"]["stretch_cm1"] == pytest.approx(frequency / (100 * ase.units._c), rel=7e-3)
    # Sites with more neighbours have lower energies.
    assert found["order"] == list(found["sites"]) == ["fcc", "top"]
    fcc, top = found["sites"].values()
    assert fcc["energy_eV"] < top["energy_eV"] < 0
    assert top["height_A"] > fcc["height_A"] > 1
    assert fcc["metal_carbon_A"] == pytest.approx(2 ** (1 / 6) * SIGMA, abs=0.1)
    assert fcc["stayed"] and fcc["converged"] and fcc["atoms_per_expert"] == [18]
    assert fcc["lateral_force_eV_per_A"] < 1e-6  # threefold
    assert json.loads(json.dumps(found)) == found

    slab = fcc111("Pt", (2, 2, 4), a=A, vacuum=7.0)
    fixed = FixAtoms(mask=slab.get_tags() > 2)
    slab.set_constraint(fixed)
    apart = ase_relaxed(slab) - EPSILON
    add_adsorbate(slab, Atoms("CO", [[0, 0, 0], [0, 0, 2.86]]), 2.3, "fcc", mol_index=0)
    slab.set_constraint([fixed, FixCartesian(16, (True, True, False))])
    assert fcc["energy_eV"] == pytest.approx(ase_relaxed(slab) - apart, abs=RELAXED_EV)
    assert fcc["bond_A"] == pytest.approx(slab.get_distance(16, 17), abs=5e-3)
    height = slab.positions[16, 2] - slab.positions[12:16, 2].mean()
    assert fcc["height_A"] == pytest.approx(height, abs=5e-3)


def test_wavenumbers_agree_with_ase(tmp_path):
    atoms = fcc111("Pt", (2, 2, 2), a=A, vacuum=7.0)
    add_adsorbate(atoms, Atoms("CO", [[0, 0, 0], [0.2, 0, 2.7]]), 2.4, "bridge", mol_index=0)
    atoms.set_constraint(FixCartesian(8, (True, True, False)))  # constraints do not affect the modes
    atoms.calc = LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF, ro=0.8 * CUTOFF, smooth=True)
    ours = _wavenumbers(atoms, [8, 9])
    atoms.set_constraint()
    vibrations = Vibrations(atoms, indices=[8, 9], delta=0.01, name=str(tmp_path / "modes"))
    vibrations.run()
    theirs = vibrations.get_frequencies()
    np.testing.assert_allclose(ours, np.sort(theirs.real - np.abs(theirs.imag)), atol=1e-3)
    assert ours[0] < -1 and ours[-1] > 100


def test_adsorption_energy_includes_the_difference_on_atoms_that_switch_expert():
    """Equal forces, energies that differ by a constant per atom: the clean slab is owned by expert 1,
    with CO on it some atoms are owned by expert 0.
    """
    difference = 0.01
    energies = EXPERT.atom_energies
    other = EXPERT._replace(
        atom_energies=lambda params, rows: energies(params, rows) + difference, allowed_species=("Pt",)
    )
    kwargs = {**METAL, "size": (2, 2, 5), "sites": ("fcc",)}
    mixed = adsorption(checkpoint(EXPERT, other), around_adsorbate(CUTOFF), **kwargs)["sites"]["fcc"]
    alone = adsorption(checkpoint(EXPERT, other), 0, **kwargs)["sites"]["fcc"]
    owned, rest = mixed.pop("atoms_per_expert")
    assert owned + rest == 22 and 2 < owned < 20
    assert alone.pop("atoms_per_expert") == [22]
    assert mixed.pop("energy_eV") == pytest.approx(
        alone.pop("energy_eV") - (owned - 2) * difference, abs=1e-9
    )
    assert mixed == pytest.approx(alone, rel=1e-6, abs=1e-8)


def test_around_adsorbate_includes_images():
    """Against all images of a skewed cell that is narrower than the region."""
    rng = np.random.default_rng(0)
    atoms = Atoms("Pt60CO", rng.uniform(0, 1, (62, 3)), cell=np.eye(3), pbc=(True, True, False))
    atoms.set_cell([[5.0, 0, 0], [2.3, 4.5, 0], [0, 0, 25.0]], scale_atoms=True)
    region = around_adsorbate(3.2)(atoms)
    shifts = np.array([[i, j, 0] for i in range(-4, 5) for j in range(-4, 5)]) @ atoms.cell.array
    seeds = (atoms.positions[60:, None] + shifts).reshape(-1, 3)
    nearest = np.linalg.norm(atoms.positions[:, None] - seeds, axis=-1).min(axis=1)
    np.testing.assert_array_equal(region, nearest > 3.7)
    assert 5 < region.sum() < 55
    assert around_adsorbate(3.2)(atoms[:60]).tolist() == [1] * 60
    with pytest.raises(ValueError, match="cutoff must be positive, got 0"):
        around_adsorbate(0)


def test_stayed_is_false_for_a_molecule_that_desorbs():
    """The metal repels C and O."""

    def energies(params, rows):
        r2 = jnp.sum(rows.displacement**2, axis=-1)
        metal_and_molecule = (rows.center_species[:, None] > 0) != (rows.neighbor_species > 0)
        repulsion = jnp.where(
            rows.mask & metal_and_molecule & (r2 < CUTOFF**2), (1 - r2 / CUTOFF**2) ** 3, 0.0
        )
        return EXPERT.atom_energies(params, rows) + 20 * jnp.sum(repulsion, axis=1)

    repulsive = checkpoint(EXPERT._replace(atom_energies=energies))
    found = adsorption(repulsive, **METAL, sites=("top",), max_steps=60)["sites"]["top"]
    assert not found["stayed"] and found["metal_carbon_A"] > 3


def test_converged_is_false_where_max_steps_is_reached(one):
    found = adsorption(one, sites=("top",), max_steps=1, **METAL)
    assert not found["sites"]["top"]["converged"] and found["sites"]["top"]["steps"] == 1
    assert not found["gas"]["converged"]


@pytest.mark.thorough
def test_the_shipped_mixture():
    """The order of sites of PBE, and a C-O stretch that decreases with coordination."""
    found = adsorption(
        mm.load("ptco"), symbol="Pt", lattice_constant=3.985, size=(2, 2, 3), sites=("top", "fcc")
    )
    assert found["gas"]["bond_A"] == pytest.approx(1.14, abs=0.01)
    assert found["order"] == ["fcc", "top"]
    fcc, top = found["sites"].values()
    assert min(fcc["atoms_per_expert"]) > 3
    assert all(
        site["converged"] and site["stayed"] and -2.2 < site["energy_eV"] < -1.2 for site in (fcc, top)
    )
    assert fcc["height_A"] < 1.6 and top["height_A"] > 1.8
    assert found["gas"]["stretch_cm1"] > top["stretch_cm1"] > fcc["stretch_cm1"] > 1600


def test_bad_input(one):
    with pytest.raises(ValueError, match="lattice_constant must be positive, got -1"):
        adsorption(one, symbol="Pt", lattice_constant=-1)
    with pytest.raises(ValueError, match="max_steps must be a whole number, at least 1, got 0"):
        adsorption(one, **METAL, max_steps=0)
    with pytest.raises(ValueError, match="sites must be some of .* got .'step',."):
        adsorption(one, **METAL, sites=("step",))
    with pytest.raises(ValueError, match="each of size must be a whole number, at least 2, got 1"):
        adsorption(one, **METAL, size=(1, 2, 4))
    with pytest.raises(ValueError, match="size must be three numbers"):
        adsorption(one, **METAL, size=(2, 2))
    metal = EXPERT._replace(allowed_species=("Pt",))
    with pytest.raises(ValueError, match="may meet Pt, C and O, got 1 with allowed_species"):
        adsorption(checkpoint(EXPERT, metal), 1, **METAL)

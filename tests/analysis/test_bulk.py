"""Bulk properties against lattice sums and ASE."""

import numpy as np
import pytest

from moe_md import experts, units
from moe_md.analysis.bulk import relax_fcc
from moe_md.data.crystals import fcc_supercell

SIGMA, EPSILON, CUTOFF = 2.5446, 0.6, 6.0


@pytest.fixture(scope="module")
def crystal():
    expert = experts.lennard_jones(("C", "Pt"), CUTOFF, epsilon=EPSILON, sigma=SIGMA)
    return relax_fcc(expert, expert.init(None), "Pt")


def ase_energy_per_atom(lattice_constant: float) -> float:
    from ase import Atoms
    from ase.calculators.lj import LennardJones

    frame = fcc_supercell("Pt", lattice_constant, 4)
    atoms = Atoms(frame.symbols, frame.positions, cell=frame.cell, pbc=True)
    atoms.calc = LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF, ro=0.8 * CUTOFF, smooth=True)
    return atoms.get_potential_energy() / len(atoms)


def test_agrees_with_ase(crystal):
    a0, h = crystal.lattice_constant, 2e-3
    low, middle, high = (ase_energy_per_atom(a0 * np.exp(s)) for s in (-h, 0.0, h))
    assert middle == pytest.approx(crystal.energy, abs=1e-9)
    assert abs(high - low) / (2 * h) < 1e-3 * 9  # dE/ds: (a^3 / 4) 3 P, zero up to the difference's own error
    curvature = (high - 2 * middle + low) / h**2
    assert crystal.bulk_modulus_GPa == pytest.approx(curvature / (9 * a0**3 / 4) / units.GPa, rel=1e-3)


def test_agrees_with_the_lattice_sums():
    """Without truncation, a^6 = 16 sigma^6 A12 / A6 (Ashcroft and Mermin, ch. 20)."""
    A12, A6 = 12.13188, 14.45392
    nearest = (2 * A12 / A6) ** (1 / 6) * SIGMA
    expert = experts.lennard_jones(("Pt",), 16.0, epsilon=EPSILON, sigma=SIGMA, onset=15.0)
    crystal = relax_fcc(expert, expert.init(None), "Pt")
    assert crystal.lattice_constant == pytest.approx(np.sqrt(2) * nearest, rel=1e-3)
    assert crystal.energy == pytest.approx(-0.5 * EPSILON * A6**2 / A12, rel=1e-2)
    volume = nearest**3 / np.sqrt(2)
    modulus = 4 * EPSILON * A6**2 / A12 / volume / units.GPa  # B = -8 E / V
    assert crystal.bulk_modulus_GPa == pytest.approx(modulus, rel=2e-2)


def test_independent_of_the_guess(crystal):
    expert = experts.lennard_jones(("C", "Pt"), CUTOFF, epsilon=EPSILON, sigma=SIGMA)
    again = relax_fcc(expert, expert.init(None), "Pt", guess=4.1)
    assert again.lattice_constant == pytest.approx(crystal.lattice_constant, abs=1e-8)


def test_bad_input():
    expert = experts.lennard_jones(("C", "Pt"), CUTOFF, sigma=SIGMA)
    params = expert.init(None)
    with pytest.raises(ValueError, match="symbol must be one of .* got 'Au'"):
        relax_fcc(expert, params, "Au")
    with pytest.raises(ValueError, match="minimum"):
        relax_fcc(expert, params, "Pt", guess=6.0)
    with pytest.raises(ValueError, match="guess"):
        relax_fcc(expert, params, "Pt", guess=-1.0)

"""Equilibrium, equation of state and elastic constants against lattice sums, closed forms and ASE."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.optimize import BFGS
from example_crystals import (
    A_COMPRESSED,
    ALPHA,
    BETA,
    BOND,
    EPSILON,
    SIGMA,
    angular,
    ase_lennard_jones,
    keating,
    lennard_jones,
    passing_messages,
)

from moe_md import experts, units
from moe_md.analysis.bulk import elastic_constants, equation_of_state, relax_crystal
from moe_md.analysis.strained_cell import STRAINS
from moe_md.checkpoint import Checkpoint
from moe_md.data.batching import frame_rows
from moe_md.data.structures import fcc_supercell
from moe_md.interfaces.ase import MixtureCalculator


@pytest.fixture(scope="module")
def crystal():
    return relax_crystal(*lennard_jones(), bulk("Pt"))


@pytest.fixture(scope="module")
def hexagonal():
    """A crystal of two atoms that are no centres of inversion."""
    return relax_crystal(*lennard_jones(), bulk("Pt", "hcp", a=2.8, c=4.5))


def fcc(a: float) -> Atoms:
    return bulk("Pt", "fcc", a=a)


def length(crystal) -> float:
    """Å, lattice constant of an fcc crystal."""
    return (4 * crystal.volume) ** (1 / 3)


def finite_strains(calculator, atoms: Atoms, *, relax: bool = False, h: float = 1e-4) -> np.ndarray:
    """GPa, `[6, 6]` changes of the stress (xx, yy, zz, yz, xz, xy) per strain, by central differences."""
    columns = []
    for strain in STRAINS:
        stress = []
        for sign in (1, -1):
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ (np.eye(3) + sign * h * strain), scale_atoms=True)
            strained.calc = calculator
            if relax:
                assert BFGS(strained, logfile=None).run(fmax=1e-7, steps=100)
            stress.append(strained.get_stress())
        columns.append((stress[0] - stress[1]) / (2 * h) / units.GPa)
    return np.transpose(columns)


def ase_energy_per_atom(lattice_constant: float) -> float:
    atoms = bulk("Pt", "fcc", a=lattice_constant, cubic=True).repeat(4)
    atoms.calc = ase_lennard_jones()
    return atoms.get_potential_energy() / len(atoms)


def test_equilibrium_agrees_with_ase(crystal):
    a0, h = length(crystal), 2e-3
    low, middle, high = (ase_energy_per_atom(a0 * np.exp(s)) for s in (-h, 0.0, h))
    assert middle == pytest.approx(crystal.energy, abs=1e-9)
    assert (
        abs(high - low) / (2 * h) < 1e-3 * 9
    )  # dE/ds = (a^3 / 4) 3 P, zero within the error of the finite difference
    curvature = (high - 2 * middle + low) / h**2
    assert crystal.bulk_modulus_GPa == pytest.approx(curvature / (9 * a0**3 / 4) / units.GPa, rel=1e-3)


def test_agrees_with_the_lattice_sums():
    """Without truncation, a^6 = 16 sigma^6 A12 / A6 (Ashcroft and Mermin, ch. 20)."""
    A12, A6 = 12.13188, 14.45392
    nearest = (2 * A12 / A6) ** (1 / 6) * SIGMA
    expert = experts.lennard_jones(("Pt",), 16.0, epsilon=EPSILON, sigma=SIGMA, onset=15.0)
    crystal = relax_crystal(expert, expert.init(None), bulk("Pt"))
    assert length(crystal) == pytest.approx(np.sqrt(2) * nearest, rel=1e-3)
    assert crystal.energy == pytest.approx(-0.5 * EPSILON * A6**2 / A12, rel=1e-2)
    volume = nearest**3 / np.sqrt(2)
    modulus = 4 * EPSILON * A6**2 / A12 / volume / units.GPa  # B = -8 E / V
    assert crystal.bulk_modulus_GPa == pytest.approx(modulus, rel=2e-2)


def test_a_hexagonal_crystal_is_at_rest_in_ase(hexagonal):
    atoms = hexagonal.atoms.copy()
    atoms.calc = ase_lennard_jones()
    assert np.abs(atoms.get_stress()).max() < 1e-8
    assert np.abs(atoms.get_forces()).max() < 1e-8
    assert atoms.get_potential_energy() / 2 == pytest.approx(hexagonal.energy, abs=1e-9)
    a, b, c, *angles = atoms.cell.cellpar()
    assert a == pytest.approx(b, abs=1e-9) and angles == pytest.approx([90, 90, 120], abs=1e-9)
    assert 1.62 < c / a < 1.64


def test_independent_of_the_given_cell(hexagonal):
    """A strained, turned supercell, whose atoms are displaced, relaxes to the same crystal."""
    given = bulk("Pt", "hcp", a=2.9, c=4.4).repeat((1, 2, 1))
    given.set_cell(given.cell.array @ (np.eye(3) + 0.03 * STRAINS[3]), scale_atoms=True)
    given.rotate(40, (1, 2, 3), rotate_cell=True)
    given.rattle(0.05, seed=1)
    found = relax_crystal(*lennard_jones(), given)
    assert found[1:] == pytest.approx(hexagonal[1:], rel=1e-8)
    assert found.atoms.get_distances(0, [1, 2, 3], mic=True) == pytest.approx(
        given.get_distances(0, [1, 2, 3], mic=True), abs=0.3
    )  # the order of atoms is kept


def test_message_passing_in_a_primitive_cell():
    expert, params = passing_messages()
    rows = frame_rows(fcc_supercell("Pt", 3.9, 1), ("Pt",), expert.cutoff, dtype=float)
    (energy,) = equation_of_state(expert, params, fcc(3.9), strains=[0.0])["energy_eV_per_atom"]
    np.testing.assert_allclose(expert.atom_energies(params, rows), energy, rtol=1e-12)


def test_equation_of_state_agrees_with_ase(crystal):
    constants = np.array([3.8, length(crystal), 4.1, 3.7])
    curve = equation_of_state(*lennard_jones(), fcc(4.0), strains=constants / 4.0 - 1)
    for k, a in enumerate(constants):
        atoms = bulk("Pt", "fcc", a=a, cubic=True)
        atoms.calc = ase_lennard_jones()
        assert curve["volume_A3_per_atom"][k] == pytest.approx(atoms.get_volume() / 4)
        assert curve["energy_eV_per_atom"][k] == pytest.approx(atoms.get_potential_energy() / 4, abs=1e-9)
        assert curve["pressure_GPa"][k] == pytest.approx(-atoms.get_stress()[:3].mean() / units.GPa, abs=1e-7)
    assert abs(curve["pressure_GPa"][1]) < 1e-5 < curve["pressure_GPa"][0] < curve["pressure_GPa"][3]


def test_equation_of_state_relaxes_atoms(hexagonal):
    """From shifted sublattices, as from their places."""
    shifted = hexagonal.atoms.copy()
    shifted.positions[1] += [0.05, 0.1, -0.05]
    curves = [equation_of_state(*lennard_jones(), a, strains=[-0.02, 0.01]) for a in (shifted, hexagonal[0])]
    for key in curves[0]:
        assert curves[0][key] == pytest.approx(curves[1][key], abs=1e-7)


@pytest.mark.parametrize("compressed", [False, True])
def test_elastic_constants_agree_with_finite_strains_of_ase(crystal, compressed):
    a = A_COMPRESSED if compressed else length(crystal)
    elastic = elastic_constants(*lennard_jones(), fcc(a))
    expected = finite_strains(ase_lennard_jones(), fcc(a))
    np.testing.assert_allclose(elastic.relaxed, expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(elastic.clamped, elastic.relaxed, rtol=1e-12, atol=1e-9)  # by inversion
    # Pair potentials at zero pressure have C12 = C44 (Cauchy); under pressure, C12 - C44 = 2 P.
    (pressure,) = equation_of_state(*lennard_jones(), fcc(a), strains=[0])["pressure_GPa"]
    C12, C44 = elastic.relaxed[0, 1], elastic.relaxed[3, 3]
    assert pytest.approx(2 * pressure, abs=1e-5 * C12) == C12 - C44
    if not compressed:
        assert elastic.bulk_modulus == pytest.approx(crystal.bulk_modulus_GPa, rel=1e-8)


def test_elastic_constants_of_a_hexagonal_crystal_agree_with_ase(hexagonal):
    elastic = elastic_constants(*lennard_jones(), hexagonal.atoms)
    for found, relax in ((elastic.clamped, False), (elastic.relaxed, True)):
        expected = finite_strains(ase_lennard_jones(), hexagonal.atoms, relax=relax)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
    C = elastic.relaxed
    assert elastic.clamped[0, 0] > 1.01 * C[0, 0]
    assert C[5, 5] == pytest.approx((C[0, 0] - C[0, 1]) / 2, rel=1e-9)
    assert elastic.bulk_modulus == pytest.approx(hexagonal.bulk_modulus_GPa, rel=1e-8)
    np.testing.assert_allclose(C, C.T, rtol=1e-9, atol=1e-7)


def test_elastic_constants_of_diamond_agree_with_the_closed_form():
    """Keating, Phys. Rev. 145, 637 (1966): C44 falls when the two sublattices relax."""
    crystal = relax_crystal(*keating(), bulk("GaAs", "zincblende", a=5.2))
    assert crystal.volume == pytest.approx(8 * BOND**3 / 27**0.5, rel=1e-9)
    unit = 3**0.5 / (4 * BOND) / units.GPa
    C11, C12 = unit * (ALPHA + 3 * BETA), unit * (ALPHA - BETA)
    cubic = bulk("GaAs", "zincblende", a=(8 * crystal.volume) ** (1 / 3), cubic=True)
    for atoms in (crystal.atoms, cubic):
        elastic = elastic_constants(*keating(), atoms)
        for C, C44 in (
            (elastic.clamped, unit * (ALPHA + BETA)),
            (elastic.relaxed, unit * 4 * ALPHA * BETA / (ALPHA + BETA)),
        ):
            expected = np.diag([C11 - C12] * 3 + [C44] * 3)
            expected[:3, :3] += C12
            np.testing.assert_allclose(C, expected, rtol=1e-7, atol=1e-6)
        assert elastic.bulk_modulus == pytest.approx((C11 + 2 * C12) / 3, rel=1e-7)


def test_elastic_constants_with_angular_terms_agree_with_finite_strains():
    expert, params = angular()
    elastic = elastic_constants(expert, params, fcc(A_COMPRESSED))
    calculator = MixtureCalculator(Checkpoint((expert,), (params,), {}, {}), 0)
    expected = finite_strains(calculator, fcc(A_COMPRESSED))
    np.testing.assert_allclose(elastic.relaxed, expected, rtol=1e-5, atol=1e-5 * expected.max())


def test_the_bulk_modulus_is_the_slope_of_the_pressure():
    h, (expert, params) = 1e-4, angular()
    curve = equation_of_state(expert, params, fcc(A_COMPRESSED), strains=[-h, h])
    slope = np.diff(curve["pressure_GPa"]) / np.diff(np.log(curve["volume_A3_per_atom"]))
    elastic = elastic_constants(expert, params, fcc(A_COMPRESSED))
    # The pressure is large enough to tell measures of strain apart (a third of it in the bulk modulus).
    assert min(np.abs(curve["pressure_GPa"])) > 1e-2 * abs(elastic.bulk_modulus)
    assert elastic.bulk_modulus == pytest.approx(-slope[0], rel=1e-5)


def test_bad_input():
    potential = lennard_jones()
    with pytest.raises(ValueError, match="atoms must be of the expert's species .* got Au"):
        relax_crystal(*potential, bulk("Au"))
    with pytest.raises(ValueError, match="decreases towards 0.85"):
        relax_crystal(*potential, fcc(6.0))
    with pytest.raises(ValueError, match="decreases towards 1.15"):
        relax_crystal(*potential, fcc(3.0))
    with pytest.raises(ValueError, match="larger window than 0.06"):  # of the volume, but not of the shape
        relax_crystal(*potential, bulk("Pt", "hcp", a=2.62, c=4.95), window=0.06)
    with pytest.raises(ValueError, match="window must be in"):
        relax_crystal(*potential, fcc(4.0), window=1.5)
    with pytest.raises(ValueError, match="periodic in all directions, got Pt with pbc"):
        elastic_constants(*potential, Atoms("Pt", pbc=[True, True, False], cell=[3, 3, 20]))
    with pytest.raises(ValueError, match="atoms must be of the expert's species"):
        elastic_constants(*potential, bulk("Au"))
    with pytest.raises(ValueError, match="strains must be one or more numbers"):
        equation_of_state(*potential, fcc(4.0), strains=[])
    with pytest.raises(ValueError, match="strains must be .* above -1, got"):
        equation_of_state(*potential, fcc(4.0), strains=[0.0, -1.0])

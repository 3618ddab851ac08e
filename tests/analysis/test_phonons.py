"""Phonons against closed forms, ASE's finite displacements and the speed of sound."""

import sys

import numpy as np
import pytest
from ase import units as ase_units
from ase.build import bulk
from ase.data import atomic_masses, atomic_numbers
from ase.phonons import Phonons as AsePhonons
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

from moe_md import units
from moe_md.analysis.bulk import elastic_constants
from moe_md.analysis.phonons import phonons
from moe_md.checkpoint import Checkpoint
from moe_md.interfaces.ase import MixtureCalculator

MASS = atomic_masses[78]
A = 3.95  # Å, near the equilibrium of the Lennard-Jones crystal
CUTOFF = 4.4  # Å, of Lennard-Jones: supercells of some hundred atoms
TO_THZ = ase_units.fs * 1e3 / (2 * np.pi)  # of an angular frequency per time unit of ASE


def fcc(a: float):
    return bulk("Pt", "fcc", a=a)


def pair_frequencies(q_points, lattice_constant: float) -> np.ndarray:
    """M w^2 are the eigenvalues of sum_R [f'' rr + f'/r (1 - rr)] (1 - cos q.R), f the pair energy."""
    n = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij"), -1).reshape(-1, 3)
    R = n @ fcc(lattice_constant).cell.array
    r = np.linalg.norm(R, axis=1)
    keep = (r > 0) & (r < CUTOFF)
    n, R, r = n[keep], R[keep], r[keep]

    def f(r):
        o2, c2 = (0.8 * CUTOFF) ** 2, CUTOFF**2
        switch = (c2 - r**2) ** 2 * (c2 + 2 * r**2 - 3 * o2) / (c2 - o2) ** 3
        return 4 * EPSILON * ((SIGMA / r) ** 12 - (SIGMA / r) ** 6) * np.where(r**2 < o2, 1.0, switch)

    h = 1e-4
    first, second = (f(r + h) - f(r - h)) / (2 * h), (f(r + h) - 2 * f(r) + f(r - h)) / h**2
    rr = np.einsum("na,nb->nab", R, R) / r[:, None, None] ** 2
    springs = second[:, None, None] * rr + (first / r)[:, None, None] * (np.eye(3) - rr)
    wave = 1 - np.cos(2 * np.pi * q_points @ n.T)
    w2 = np.linalg.eigvalsh(np.einsum("qn,nab->qab", wave, springs) / MASS)
    return np.sqrt(np.abs(w2)) * TO_THZ


def test_a_pair_potential_agrees_with_the_closed_form():
    waves = phonons(*lennard_jones(CUTOFF), fcc(A))
    # Rounding in the second differences of the reference: 1e-16 eV / h^2, 1e-8 of a force constant.
    np.testing.assert_allclose(waves.frequencies_THz, pair_frequencies(waves.q_points, A), atol=1e-4)
    assert waves.frequencies_THz.max() > 4
    assert len(waves.q_points) == 101
    assert waves.labels == ("Γ", "X", "W", "K", "Γ", "L", "U", "W", "L", "K|U", "X")
    corners = np.diff(waves.distance[list(waves.ticks)]) * A / (2 * np.pi)
    np.testing.assert_allclose(corners[:5], [1, 0.5, 0.125**0.5, 1.125**0.5, 0.75**0.5], rtol=1e-12)
    assert np.diff(waves.distance).min() >= 0


def test_optical_phonons_of_zincblende_agree_with_the_closed_form():
    """Sublattices move against each other with w^2 = 4 (alpha + beta) / reduced mass; the masses differ."""
    atoms = bulk("GaAs", "zincblende", a=4 * BOND / 3**0.5)
    waves = phonons(*keating(), atoms, path=atoms.cell.bandpath("GL", npoints=3))
    m_1, m_2 = (atomic_masses[atomic_numbers[symbol]] for symbol in ("Ga", "As"))
    optical = np.sqrt(4 * (ALPHA + BETA) * (1 / m_1 + 1 / m_2)) * TO_THZ
    np.testing.assert_allclose(waves.frequencies_THz[0], [0] * 3 + [optical] * 3, atol=1e-6)
    assert waves.frequencies_THz.shape == (3, 6) and waves.labels == ("Γ", "L")


@pytest.mark.parametrize("name", ["angular", "hexagonal"])
def test_frequencies_agree_with_ase(name, tmp_path):
    """ASE displaces the atoms of the same supercell, which is wide enough for all interactions."""
    if name == "angular":
        atoms, (expert, params), repeat = fcc(A_COMPRESSED), angular(), (5, 5, 5)
        calculator = MixtureCalculator(Checkpoint((expert,), (params,), {}, {}), 0)
    else:
        atoms, cutoff, repeat = bulk("Pt", "hcp", a=2.8, c=4.5), 3.4, (6, 6, 4)
        (expert, params), calculator = lennard_jones(cutoff), ase_lennard_jones(cutoff)
    path = atoms.cell.bandpath(npoints=11)
    waves = phonons(expert, params, atoms, path=path, repeat=repeat)
    files = str(tmp_path / "phonons")
    ase_phonons = AsePhonons(atoms, calculator, supercell=repeat, delta=2e-3, name=files)
    ase_phonons.run()
    ase_phonons.read(acoustic=True)
    # ASE returns energies h f, imaginary ones negative as in phonopy.
    expected = ase_phonons.band_structure(path.kpts) / (ase_units._hplanck * ase_units.J) * 1e-12
    np.testing.assert_allclose(waves.frequencies_THz, np.sort(expected, axis=1), atol=2e-3)
    assert np.abs(waves.frequencies_THz).max() > 0.5


@pytest.mark.parametrize(
    ("potential", "a"),
    [(lambda: lennard_jones(CUTOFF), A_COMPRESSED), (passing_messages, 4.1)],
    ids=["pairs", "messages"],
)
def test_long_waves_have_the_speed_of_sound(potential, a):
    """Near Γ along Γ-X, M w^2 = V C44 q^2 (twice) and V C11 q^2 with Birch's constants at any pressure."""
    waves = phonons(*potential(), fcc(a), path=fcc(a).cell.bandpath("GX", npoints=101))
    C = elastic_constants(*potential(), fcc(a)).relaxed
    speed = waves.frequencies_THz[1] / waves.distance[1] / TO_THZ
    modulus = MASS * speed**2 / (a**3 / 4) / units.GPa
    # w is proportional to a sine: smaller by a relative (q a / 2)^2 / 6 = 4e-5, twice that in the square.
    assert modulus == pytest.approx(sorted([C[3, 3], C[3, 3], C[0, 0]]), rel=1e-3)


def test_missing_phonopy_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "phonopy", None)
    with pytest.raises(ImportError, match="validate"):
        phonons(*lennard_jones(CUTOFF), fcc(A))


def test_bad_input():
    potential = lennard_jones(CUTOFF)
    with pytest.raises(ValueError, match="atoms must be of the expert's species"):
        phonons(*potential, bulk("Au"))
    with pytest.raises(ValueError, match="repeat .* got"):
        phonons(*potential, fcc(A), repeat=(2, 2, 0))
    with pytest.raises(ValueError, match="repeat must be of type int"):
        phonons(*potential, fcc(A), repeat=(2, 2, 2.5))
    with pytest.raises(ValueError, match="n_points must be at least 2, got 1"):
        phonons(*potential, fcc(A), n_points=1)

"""Vacancies and surfaces with the Lennard-Jones potential, against closed forms and ASE."""

import json

import ase.units
import numpy as np
import pytest
from ase.build import bulk, diamond100, fcc100, fcc110, fcc111, hcp0001
from ase.calculators.lj import LennardJones
from ase.optimize import FIRE
from ase.spacegroup import crystal

import moe_md as mm
from moe_md.analysis.surfaces import surface_energies, vacancy_energies

SIGMA, EPSILON, CUTOFF = 2.5446, 0.6, 5.2
A = 3.95  # Å, close to equilibrium
SPECIES = ("Pt", "C", "O")
EXPERT = mm.experts.lennard_jones(SPECIES, CUTOFF, epsilon=EPSILON, sigma=SIGMA)
J_PER_M2 = ase.units.J / ase.units.m**2
# Error of relaxed energies: forces up to 0.01 eV/Å, curvatures above 1 eV/Å^2 per atom.
RELAXED_EV = 2e-3


def checkpoint(*experts):
    return mm.Checkpoint(experts, tuple(e.init(None) for e in experts), {}, {})


def ase_energy(atoms) -> float:
    """Energy, eV, under ASE's potential."""
    atoms.calc = LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF, ro=0.8 * CUTOFF, smooth=True)
    return atoms.get_potential_energy()


def ase_relaxed(atoms) -> float:
    """The same, relaxed by another optimiser to smaller forces."""
    ase_energy(atoms)
    assert FIRE(atoms, logfile=None).run(fmax=0.003, steps=500)
    return atoms.get_potential_energy()


def pair_energies(R):
    """Pair energies, eV, at displacements `[n, 3]`."""
    o2, c2 = (0.8 * CUTOFF) ** 2, CUTOFF**2
    r2 = np.sum(R**2, axis=-1)
    switch = np.where(r2 < o2, 1.0, (c2 - r2) ** 2 * (c2 + 2 * r2 - 3 * o2) / (c2 - o2) ** 3)
    s6 = (SIGMA**2 / r2) ** 3
    return np.where(r2 < c2, 4 * EPSILON * (s6**2 - s6) * switch, 0.0)


def lattice():
    """`[n, 3]` Å, displacements from an atom of the crystal to all atoms within the cutoff and beyond."""
    n = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    return n[np.any(n != 0, axis=1)] @ bulk("Pt", "fcc", a=A).cell.array


PLATINUM = bulk("Pt", a=A)


@pytest.fixture(scope="module")
def one():
    return checkpoint(EXPERT)


def test_vacancy(one):
    (found,) = vacancy_energies(one, PLATINUM, width=2 * A)
    per_atom = pair_energies(lattice()).sum() / 2
    assert found["unrelaxed_energy_eV"] == pytest.approx(
        -per_atom, rel=1e-9
    )  # the bonds of one atom have energy 2 e
    atoms = bulk("Pt", "fcc", a=A, cubic=True) * 2
    del atoms[5]  # any
    assert found["energy_eV"] == pytest.approx(ase_relaxed(atoms) - 31 * per_atom, abs=RELAXED_EV)
    assert found["unrelaxed_energy_eV"] - found["energy_eV"] > 10 * RELAXED_EV
    assert (found["site"], found["symbol"], found["multiplicity"]) == ("Pt", "Pt", 1)
    assert found["n_atoms"] == 31 and found["converged"] and found["steps"] > 1
    assert json.loads(json.dumps(found)) == found


def test_vacancies_of_a_compound_are_those_of_its_sites(one):
    """Ordered Cu3Au; the potential does not tell species apart, so energies are those of the element."""
    ordered = bulk("Pt", a=A, cubic=True)
    ordered.symbols[1:] = "C"
    atom, compound = (vacancy_energies(one, atoms, width=2 * A) for atoms in (PLATINUM, ordered))
    assert [(v["site"], v["multiplicity"]) for v in compound] == [("Pt", 1), ("C", 3)]
    for vacancy in compound:
        assert vacancy["energy_eV"] == pytest.approx(atom[0]["energy_eV"], abs=RELAXED_EV)
        assert vacancy["unrelaxed_energy_eV"] == pytest.approx(atom[0]["unrelaxed_energy_eV"], rel=1e-9)


def test_inequivalent_sites_of_an_element(one):
    """Stacking abac: sites of hexagonal and of cubic surroundings; the region sees the whole crystal."""
    a, owners = A / 2**0.5, []
    double = crystal(
        "Pt2",
        [(0, 0, 0), (1 / 3, 2 / 3, 1 / 4)],
        spacegroup=194,
        cellpar=[a, a, a * 32**0.5 / 3**0.5, 90, 90, 120],
    )

    def region(atoms):
        owners.append(len(atoms))
        return np.zeros(len(atoms), int)

    found = vacancy_energies(one, double, region, width=4.0, max_steps=1)
    assert [(v["site"], v["symbol"], v["multiplicity"]) for v in found] == [
        ("Pt 1", "Pt", 2),
        ("Pt 2", "Pt", 2),
    ]
    assert found[0]["unrelaxed_energy_eV"] != pytest.approx(found[1]["unrelaxed_energy_eV"], rel=1e-5)
    assert owners == [found[0]["n_atoms"] + 1]


def test_surfaces(one):
    found = surface_energies(one, PLATINUM)
    assert list(found) == ["111", "100", "110"]
    R = lattice()
    pair, per_atom = pair_energies(R), pair_energies(R).sum() / 2
    for facet, normal, build, layers in (
        ("111", (1, 1, 1), fcc111, 7),
        ("100", (1, 0, 0), fcc100, 7),
        ("110", (1, 1, 0), fcc110, 11),
    ):
        here = found[facet]
        assert here["converged"] and here["layers"] > 5
        # A plane cuts |R.n| bonds R per volume; half of their energy belongs to each face.
        cut = np.abs(R @ np.array(normal)) / np.linalg.norm(normal)
        closed_form = -(pair * cut).sum() / (4 * A**3 / 4) / J_PER_M2
        assert here["unrelaxed_energy_J_per_m2"] == pytest.approx(closed_form, rel=1e-9)
        # Another thickness and width; the middle is bulk-like in both.
        atoms = build("Pt", (1, 2, layers), a=A, vacuum=6.0)
        area = np.linalg.norm(np.cross(*atoms.cell.array[:2]))
        relaxed = (ase_relaxed(atoms) - len(atoms) * per_atom) / (2 * area) / J_PER_M2
        assert here["energy_J_per_m2"] == pytest.approx(relaxed, abs=RELAXED_EV / area / J_PER_M2)
        height = np.unique(atoms.positions[:, 2].round(2))
        ideal = A / (2 * np.linalg.norm(normal) / (2 if facet == "111" else 1))
        assert here["first_spacing_percent"] == pytest.approx(
            100 * ((height[-1] - height[-2]) / ideal - 1), abs=1.0
        )
    assert json.loads(json.dumps(found)) == found


def test_surfaces_of_crystals_with_two_atoms_a_cell(one):
    """Basal planes of hcp, relaxed; (100) of diamond, of which only unrelaxed slabs keep their form."""
    a = A / 2**0.5
    hexagonal = bulk("Pt", "hcp", a=a, c=a * (8 / 3) ** 0.5)
    (found,) = surface_energies(one, hexagonal, n_planes=1).values()
    assert list(surface_energies(one, hexagonal, n_planes=1, thickness=4.0, max_steps=1)) == ["001"]
    atoms = hcp0001("Pt", (1, 1, 8), a=a, c=a * (8 / 3) ** 0.5, vacuum=6.0)
    two_areas = 2 * np.linalg.norm(np.cross(*atoms.cell.array[:2])) * J_PER_M2
    relaxed = (ase_relaxed(atoms) - 4 * ase_energy(hexagonal)) / two_areas
    assert found["energy_J_per_m2"] == pytest.approx(relaxed, abs=RELAXED_EV / two_areas)
    height = np.sort(atoms.positions[:, 2])
    spacing = 100 * ((height[1] - height[0]) / (a * (2 / 3) ** 0.5) - 1)
    assert found["first_spacing_percent"] == pytest.approx(spacing, abs=0.3)
    assert found["layers"] % 2 == 0 and found["converged"]

    diamond = bulk("C", "diamond", a=5.2)
    found = surface_energies(one, diamond, n_planes=2, max_steps=1)
    assert list(found) == ["111", "100"]
    atoms = diamond100("C", (1, 1, 12), a=5.2, vacuum=6.0)
    two_areas = 2 * np.linalg.norm(np.cross(*atoms.cell.array[:2])) * J_PER_M2
    unrelaxed = (ase_energy(atoms) - 6 * ase_energy(diamond)) / two_areas
    assert found["100"]["unrelaxed_energy_J_per_m2"] == pytest.approx(unrelaxed, rel=1e-9)


def test_converged_is_false_where_max_steps_is_reached(one):
    assert not vacancy_energies(one, PLATINUM, width=7.0, max_steps=1)[0]["converged"]
    found = surface_energies(one, PLATINUM, n_planes=3, thickness=6.0, max_steps=1)
    assert not found["110"]["converged"]


def test_bad_input(one):
    for compute in (vacancy_energies, surface_energies):
        with pytest.raises(ValueError, match="max_steps must be a whole number, at least 1, got 0"):
            compute(one, PLATINUM, max_steps=0)
        with pytest.raises(ValueError, match="region must be .* between 0 and 0, got 1"):
            compute(one, PLATINUM, 1)
        with pytest.raises(ValueError, match="region must be of type int"):
            compute(one, PLATINUM, [0, 0])
        with pytest.raises(ValueError, match=r"region must assign each of the \d+ atoms, got shape \(5,\)"):
            compute(one, PLATINUM, lambda atoms: np.zeros(5, int))
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        vacancy_energies(one, PLATINUM, width=0)
    with pytest.raises(ValueError, match="thickness must be positive, got 0"):
        surface_energies(one, PLATINUM, thickness=0)
    with pytest.raises(ValueError, match="n must be between 1 and"):
        surface_energies(one, PLATINUM, n_planes=0)

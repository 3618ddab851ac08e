"""Lattice planes against closed forms, heights of lattice points and ASE's structures."""

from itertools import product

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.spacegroup import crystal

from moe_md.data.planes import (
    conventional_axes,
    conventional_cell,
    cut_at_widest_gap,
    oriented_cell,
    plane_name,
    plane_normal,
    plane_spacing,
    repeats_to_width,
    widest_planes,
)

RUTILE = crystal(
    ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.59, 4.59, 2.96, 90, 90, 90]
)
TRICLINIC = Atoms(
    "MgOC",
    scaled_positions=[[0, 0, 0], [0.3, 0.4, 0.55], [0.6, 0.1, 0.2]],
    cell=[[4.1, 0, 0], [0.7, 4.9, 0], [-0.4, 1.1, 5.6]],
    pbc=True,
)
CRYSTALS = {
    "fcc": bulk("Pt", a=3.98),
    "bcc": bulk("Mo", a=3.16),
    "diamond": bulk("Si", a=5.43),
    "hcp": bulk("Mg", a=3.2, c=5.2),
    "rocksalt": bulk("MgO", "rocksalt", a=4.2),
    "rutile": RUTILE,
    "triclinic": TRICLINIC,
}
KNOWN = {  # names, and spacings in Å
    "fcc": {"111": 3.98 / 3**0.5, "100": 3.98 / 2, "110": 3.98 / 8**0.5},
    "bcc": {"110": 3.16 / 2**0.5, "100": 3.16 / 2, "211": 3.16 / 6**0.5},
    "diamond": {"111": 5.43 / 3**0.5, "100": 5.43 / 2, "110": 5.43 / 8**0.5},
    "hcp": {"001": 5.2, "100": 3.2 * 3**0.5 / 2, "101": (4 / 3 / 3.2**2 + 1 / 5.2**2) ** -0.5},
    "rocksalt": {"111": 4.2 / 3**0.5, "100": 4.2 / 2, "110": 4.2 / 8**0.5},
    "rutile": {"100": 4.59, "110": 4.59 / 2**0.5, "001": 2.96},
}
SKEW = np.array([[1, 2, -1], [0, 1, 3], [0, 0, 1]])  # of determinant one


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("skewed", [False, True])
def test_names_and_spacings_do_not_depend_on_the_cell(name, skewed):
    atoms = make_supercell(CRYSTALS[name], SKEW) if skewed else CRYSTALS[name]
    planes = widest_planes(atoms.cell.array, 3)
    found = {plane_name(atoms, hkl): plane_spacing(atoms.cell.array, hkl) for hkl in planes}
    assert list(found) == list(KNOWN[name])
    assert found == pytest.approx(KNOWN[name])


def test_widest_planes_are_those_of_the_heights_of_lattice_points():
    """Every plane of small indices; spacings from heights of points, not from the reciprocal lattice."""
    cell = TRICLINIC.cell.array
    points = np.array(list(product(range(-4, 5), repeat=3))) @ cell
    spacings = []
    for hkl in product(range(-2, 3), repeat=3):
        if np.gcd.reduce(hkl) == 1 and hkl > (0, 0, 0):
            heights = np.unique((points @ plane_normal(cell, hkl)).round(6))
            spacings.append(np.diff(heights).min())
    found = [plane_spacing(cell, hkl) for hkl in widest_planes(cell, 4)]
    np.testing.assert_allclose(found, sorted(spacings, reverse=True)[:4], atol=2e-6)


@pytest.mark.parametrize("name", CRYSTALS)
def test_oriented_cells_hold_the_crystal_and_span_the_plane_by_its_shortest_vectors(name):
    atoms = make_supercell(CRYSTALS[name], SKEW)
    lattice = np.array([n for n in product(range(-4, 5), repeat=3) if any(n)]) @ CRYSTALS[name].cell.array
    for hkl in [*widest_planes(atoms.cell.array, 3), (3, -1, 2)]:
        oriented = oriented_cell(atoms, hkl)
        a, b, c = oriented.cell.array
        normal = plane_normal(atoms.cell.array, hkl)
        assert np.linalg.det(oriented.cell) == pytest.approx(atoms.get_volume())
        np.testing.assert_allclose([a @ normal, b @ normal], 0, atol=1e-9)
        assert c @ normal == pytest.approx(plane_spacing(atoms.cell.array, hkl))
        if hkl != (3, -1, 2):  # its vectors are longer than the lattice points of the test
            lengths = np.sort(np.linalg.norm(lattice[np.abs(lattice @ normal) < 1e-6], axis=1))
            assert np.linalg.norm(a) == pytest.approx(lengths[0])
            independent = [
                np.linalg.norm(v)
                for v in lattice[np.abs(lattice @ normal) < 1e-6]
                if np.linalg.norm(np.cross(a, v)) > 1e-6
            ]
            assert np.linalg.norm(b) == pytest.approx(min(independent))
        # Each atom is a lattice vector of the given cell away from where it was.
        moved = np.linalg.solve(atoms.cell.array.T, (oriented.positions - atoms.positions).T)
        np.testing.assert_allclose(moved, np.rint(moved), atol=1e-9)
        assert (oriented.numbers == atoms.numbers).all()


def test_cut_at_the_widest_gap():
    """Between the double layers of diamond (111), and in the middle between the layers of others."""
    for name, gap in (("diamond", 5.43 * 3**0.5 / 4), ("fcc", 3.98 / 3**0.5), ("rutile", 0.39 * 4.59 / 2)):
        atoms = CRYSTALS[name]
        shifted = oriented_cell(atoms, widest_planes(atoms.cell.array, 1)[0])
        shifted.positions += 0.37 * shifted.cell.array[2]
        cut, found = cut_at_widest_gap(shifted)
        fraction = cut.get_scaled_positions()[:, 2]
        height = atoms.get_volume() / np.linalg.norm(np.cross(*cut.cell.array[:2]))
        assert found == pytest.approx(gap)
        assert fraction.min() * height == pytest.approx(gap / 2)
        assert (1 - fraction.max()) * height == pytest.approx(gap / 2)
        again, _ = cut_at_widest_gap(cut)
        np.testing.assert_allclose(again.positions, cut.positions, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "n_atoms"), [("fcc", 4), ("bcc", 2), ("diamond", 8), ("hcp", 2), ("rutile", 6)]
)
def test_conventional_cells(name, n_atoms):
    atoms = make_supercell(CRYSTALS[name], SKEW)
    found = conventional_cell(atoms)
    assert len(found) == n_atoms
    angles = [90, 90, 120] if name == "hcp" else [90, 90, 90]
    np.testing.assert_allclose(found.cell.angles(), angles, atol=1e-4)
    np.testing.assert_allclose(conventional_axes(atoms) @ atoms.cell.array, found.cell.array, atol=1e-9)
    heights = found.cell.lengths() * np.array([np.sin(np.pi / 3) if name == "hcp" else 1] * 2 + [1])
    repeats = repeats_to_width(found.cell.array, 9.0)
    assert (heights * repeats >= 9.0).all() and (heights * (np.array(repeats) - 1) < 9.0).all()


def test_structures_without_symmetry_keep_their_cell():
    assert plane_name(TRICLINIC, (0, -1, 1)) == "01-1"
    assert plane_name(TRICLINIC, (-1, -1, 0)) == "110"
    assert abs(np.linalg.det(conventional_axes(TRICLINIC))) == pytest.approx(1)


def test_bad_input():
    cell = CRYSTALS["fcc"].cell.array
    with pytest.raises(ValueError, match="n must be between 1 and"):
        widest_planes(cell, 0)
    with pytest.raises(ValueError, match=r"without a common divisor, got \(2, 0, 0\)"):
        oriented_cell(CRYSTALS["fcc"], (2, 0, 0))

"""Lattice planes of a crystal: the most widely spaced ones, their names, and cells along them.

A plane (hkl) of a lattice with the vectors a_i has the reciprocal vector G with a_i . G = h_i. Its
normal is G / |G| and the spacing of its planes 1 / |G|. Planes of large spacing are densely
populated: surfaces of low energy, and the planes along which crystals are cut.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import spglib
from ase import Atoms
from ase.build import make_supercell
from ase.geometry import minkowski_reduce
from jaxtyping import Float, Int

LARGEST_INDEX = 3  # of the planes that are searched, in the reduced cell
SAME_SPACING = 1e-3  # relative difference below which two spacings are one
SYMMETRY_TOLERANCE = 0.01  # Å, for positions that a symmetry relates
LEVEL_TOLERANCE = 1e-6  # of a cell vector, for atoms of one height

Plane = tuple[int, int, int]


def widest_planes(cell: Float[np.ndarray, "3 3"], n: int) -> list[Plane]:
    """The lattice planes of largest spacing, one of each spacing.

    Args:
        cell: `[3, 3]` Å, rows are the vectors of a primitive cell.
        n: number of planes.

    Returns:
        Miller indices in this cell, the widest spacing first.

    Raises:
        ValueError: `n` is not positive, or larger than the number of spacings that are searched.

    >>> from ase.build import bulk
    >>> platinum = bulk("Pt", a=3.98)
    >>> [plane_name(platinum, hkl) for hkl in widest_planes(platinum.cell.array, 3)]
    ['111', '100', '110']
    """
    reduced, to_reduced = minkowski_reduce(np.asarray(cell, float))
    from_reduced = np.rint(np.linalg.inv(to_reduced)).astype(int)
    indices = np.array(list(product(range(-LARGEST_INDEX, LARGEST_INDEX + 1), repeat=3)))
    indices = indices[np.gcd.reduce(indices, axis=1) == 1]
    spacing = 1.0 / np.linalg.norm(indices @ np.linalg.inv(reduced).T, axis=1)
    candidates: list[list[Plane]] = []
    last = np.inf
    for k in np.argsort(-spacing, kind="stable"):
        if spacing[k] < last * (1 - SAME_SPACING):
            candidates.append([])
            last = spacing[k]
        candidates[-1].append(_plane(from_reduced @ indices[k]))
    if not 1 <= n <= len(candidates):
        raise ValueError(f"n must be between 1 and {len(candidates)} planes, got {n}.")
    return [min(planes, key=_preference) for planes in candidates[:n]]


def plane_normal(cell: Float[np.ndarray, "3 3"], hkl: Sequence[int]) -> Float[np.ndarray, " 3"]:
    """Unit vector across a lattice plane, in the direction of its reciprocal vector.

    Args:
        cell: `[3, 3]` Å, rows are the cell's vectors.
        hkl: Miller indices in this cell.
    """
    reciprocal = np.linalg.inv(cell) @ np.asarray(hkl)
    return reciprocal / np.linalg.norm(reciprocal)


def plane_spacing(cell: Float[np.ndarray, "3 3"], hkl: Sequence[int]) -> float:
    """Distance between neighbouring lattice planes, Å.

    Args:
        cell: `[3, 3]` Å, rows are the vectors of a primitive cell.
        hkl: Miller indices in this cell, without a common divisor.
    """
    return float(1.0 / np.linalg.norm(np.linalg.inv(cell) @ np.asarray(hkl)))


def oriented_cell(atoms: Atoms, hkl: Sequence[int]) -> Atoms:
    """The same crystal in a cell whose first two vectors span a lattice plane.

    Args:
        atoms: a primitive cell, periodic in all directions.
        hkl: Miller indices in this cell, without a common divisor.

    Returns:
        As many atoms in a right-handed cell. Its first two vectors are the shortest that span the
        plane, the third is the shortest to the next plane in the direction of the normal. The crystal
        is not rotated.

    Raises:
        ValueError: the indices are zero or have a common divisor.

    >>> from ase.build import bulk
    >>> cell = oriented_cell(bulk("Pt", a=3.98), (1, 1, 0)).cell  # of the kind (100)
    >>> [round(float(length), 2) for length in cell.lengths()]
    [2.81, 2.81, 2.81]
    """
    if np.gcd.reduce(np.asarray(hkl, int)) != 1:
        raise ValueError(f"hkl must be three whole numbers without a common divisor, got {tuple(hkl)}.")
    reduced, to_reduced = minkowski_reduce(atoms.cell.array)
    h = to_reduced @ np.asarray(hkl, int)  # in the reduced cell
    reach = int(np.abs(h).max()) + 1
    steps = np.array(list(product(range(-reach, reach + 1), repeat=3)))
    steps = steps[np.argsort(np.linalg.norm(steps @ reduced, axis=1), kind="stable")]
    in_plane, across = steps[(steps @ h == 0) & steps.any(axis=1)], steps[steps @ h == 1][0]
    first = in_plane[0]
    # A pair of vectors whose product is h spans all lattice points of the plane.
    is_second = np.all(np.abs(np.cross(first, in_plane)) == np.abs(h), axis=1)
    second = in_plane[is_second][0]
    matrix = np.array([first, second, across])
    if np.linalg.det(matrix @ reduced) < 0:
        matrix[1] *= -1
    oriented = atoms.copy()
    oriented.set_cell(matrix @ reduced)
    oriented.wrap()
    return oriented


def cut_at_widest_gap(atoms: Atoms) -> tuple[Atoms, float]:
    """Shift a cell along its third vector until its faces lie in the widest layer without atoms.

    Args:
        atoms: a crystal, as from `oriented_cell`.

    Returns:
        The shifted atoms, wrapped into the cell, and the width of that layer, Å, perpendicular to the faces.
    """
    fraction = np.sort(atoms.get_scaled_positions()[:, 2] % 1.0)
    gaps = np.diff(fraction, append=fraction[0] + 1.0)
    # The last of equal gaps: a cell that is already cut stays as it is.
    widest = int(np.flatnonzero(gaps > gaps.max() - LEVEL_TOLERANCE)[-1])
    middle = fraction[widest] + gaps[widest] / 2
    shifted = atoms.copy()
    shifted.positions -= middle * atoms.cell.array[2]
    shifted.wrap()
    height = atoms.get_volume() / np.linalg.norm(np.cross(*atoms.cell.array[:2]))
    return shifted, float(gaps[widest] * height)


def plane_name(atoms: Atoms, hkl: Sequence[int]) -> str:
    """Miller indices in the conventional cell, one name for all planes that symmetry relates: "111".

    Args:
        atoms: the crystal, periodic in all directions.
        hkl: Miller indices in its cell.

    Returns:
        Three indices without separators, also in hexagonal crystals. In a structure without symmetry
        they are those of the given cell.
    """
    given = np.asarray(hkl, int)
    dataset = _symmetry(atoms)
    if dataset is None:
        return _text(min((_plane(sign * given) for sign in (1, -1)), key=_preference))
    # x_s = P x for fractional coordinates in the standardised cell, and h_s . x_s = h . x.
    to_standard = np.linalg.inv(dataset.transformation_matrix).T
    planes = [
        _plane(_coprime(to_standard @ (sign * rotation.T @ given)))
        for rotation in dataset.rotations
        for sign in (1, -1)
    ]
    return _text(min(planes, key=_preference))


def conventional_axes(atoms: Atoms) -> Int[np.ndarray, "3 3"]:
    """The conventional cell of a crystal, in the vectors of its own cell.

    Args:
        atoms: the crystal's primitive cell, periodic in all directions.

    Returns:
        `[3, 3]` whole numbers: `conventional_axes(atoms) @ atoms.cell` are rows, Å, in the orientation
        of `atoms`. In a structure without symmetry the axes are those of the reduced cell.
    """
    dataset = _symmetry(atoms)
    axes = None if dataset is None else np.linalg.inv(dataset.transformation_matrix).T
    if axes is None or not np.allclose(axes, np.rint(axes), atol=1e-3):
        axes = minkowski_reduce(atoms.cell.array)[1]
    axes = np.rint(axes).astype(int)
    return axes if np.linalg.det(axes) > 0 else -axes


def conventional_cell(atoms: Atoms) -> Atoms:
    """The crystal in its conventional cell, in the orientation of `atoms`; arrays of atoms are repeated."""
    return make_supercell(atoms, conventional_axes(atoms))


def repeats_to_width(cell: Float[np.ndarray, "3 3"], width: float) -> tuple[int, int, int]:
    """Repetitions of a cell (rows, Å) after which opposite faces are at least `width` Å apart.

    >>> repeats_to_width(np.diag([4.0, 5.0, 11.0]), 10.0)
    (3, 2, 1)
    """
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    a, b, c = (max(1, int(n)) for n in np.ceil(width / heights - LEVEL_TOLERANCE))
    return a, b, c


def _symmetry(atoms: Atoms):
    """spglib's dataset; None where there is no symmetry besides that of the cell."""
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    try:
        dataset = spglib.get_symmetry_dataset(cell, symprec=SYMMETRY_TOLERANCE)
    except spglib.SpglibError:
        return None
    return None if dataset is None or dataset.number == 1 else dataset


def _coprime(indices: np.ndarray) -> np.ndarray:
    """The smallest whole numbers of a direction whose components have small denominators."""
    for factor in range(1, 13):
        whole = np.rint(factor * indices).astype(int)
        if np.allclose(whole, factor * indices, atol=1e-3):
            break
    return whole // np.gcd.reduce(whole)


def _plane(indices: np.ndarray) -> Plane:
    h, k, ell = (int(i) for i in indices)
    return h, k, ell


def _preference(hkl: Plane) -> tuple:
    """Order of equivalent planes: few negative indices, small ones, large ones first."""
    return sum(i < 0 for i in hkl), sum(map(abs, hkl)), tuple(-i for i in hkl)


def _text(hkl: Plane) -> str:
    return "".join(map(str, hkl))

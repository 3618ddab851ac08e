"""Slabs of any crystal in rectangular boxes."""

from itertools import product

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from jaxtyping import Float, Int

from moe_md.checks import check_positive
from moe_md.data.planes import cut_at_widest_gap, oriented_cell, plane_name, plane_spacing, widest_planes

N_PLANES = 3  # the most widely spaced ones, of which the first with a rectangular cell is taken
LARGEST_STEP = 4  # vectors of the plane are searched up to so many cell vectors
RIGHT_ANGLE = 1e-4  # largest cosine of an angle that counts as right


def rectangular_slab(
    crystal: Atoms, *, width: float, thickness: float, vacuum: float = 12.0
) -> tuple[Atoms, str]:
    """A slab along the most widely spaced lattice plane that has two lattice vectors at a right angle.

    Args:
        crystal: a primitive cell, periodic in all directions.
        width: Å, smallest edge of the box in the plane.
        thickness: Å, smallest thickness; whole lattice planes are stacked. They are
            cut where the layer without atoms is widest.
        vacuum: Å, from the uppermost atom to the next image of the slab.

    Returns:
        Atoms in a rectangular box, periodic in all directions, the normal of the slab along
        z; and the plane's Miller indices in the conventional cell, as "111".

    Raises:
        ValueError: a length is not positive, or none of the three most widely spaced planes has
            vectors at a right angle, as in a triclinic crystal.

    >>> from ase.build import bulk
    >>> slab, plane = rectangular_slab(bulk("Si", a=5.43), width=8.0, thickness=6.0)
    >>> plane, len(slab), [round(float(length), 2) for length in slab.cell.lengths()[:2]]
    ('111', 48, [11.52, 13.3])
    """
    for name, value in (("width", width), ("thickness", thickness), ("vacuum", vacuum)):
        check_positive(name, value)
    for hkl in widest_planes(crystal.cell.array, N_PLANES):
        oriented, _ = cut_at_widest_gap(oriented_cell(crystal, hkl))
        pair = _right_angled_pair(oriented.cell.array[:2])
        if pair is not None:
            edges = np.linalg.norm(pair @ oriented.cell.array[:2], axis=1)
            repeats = np.ceil(np.append(width / edges, thickness / plane_spacing(crystal.cell.array, hkl)))
            matrix = np.eye(3, dtype=int)
            matrix[:2, :2] = pair
            slab = make_supercell(oriented, matrix) * np.maximum(repeats - 1e-6, 1).round().astype(int)
            return _in_box(slab, vacuum), plane_name(crystal, hkl)
    raise ValueError(
        f"crystal must have a lattice plane with vectors at a right angle, got {crystal.symbols} with none in"
        f" the {N_PLANES} most widely spaced planes."
    )


def _right_angled_pair(vectors: Float[np.ndarray, "2 3"]) -> Int[np.ndarray, "2 2"] | None:
    """Combinations of two vectors with a right angle between them and the smallest area; None without any."""
    steps = np.array(list(product(range(-LARGEST_STEP, LARGEST_STEP + 1), repeat=2)))
    steps = steps[np.gcd.reduce(steps, axis=1) == 1]
    found = steps @ vectors
    length = np.linalg.norm(found, axis=1)
    cosine = found @ found.T / np.outer(length, length)
    first, second = np.nonzero(np.abs(cosine) < RIGHT_ANGLE)
    if len(first) == 0:
        return None
    # Of equal areas the pair that is most nearly square, then the one with the fewest negative steps.
    area, longest = length[first] * length[second], np.maximum(length[first], length[second])
    negative = np.sum(steps[first] < 0, axis=1) + np.sum(steps[second] < 0, axis=1)
    best = np.lexsort((length[first], negative, longest.round(6), area.round(6)))[0]
    return np.array([steps[first[best]], steps[second[best]]])


def _in_box(slab: Atoms, vacuum: float) -> Atoms:
    """The slab, its first two vectors at a right angle, with its normal along z and vacuum around it."""
    first, second, third = slab.cell.array
    x, z = first / np.linalg.norm(first), np.cross(first, second)
    z *= np.sign(z @ third) / np.linalg.norm(z)
    axes = np.array([x, np.cross(z, x), z])
    position = slab.positions @ axes.T
    height = position[:, 2] - position[:, 2].min()
    position[:, 2] = height + vacuum / 2
    edges = np.linalg.norm(slab.cell.array[:2], axis=1)
    boxed = Atoms(slab.numbers, position, cell=[*edges, height.max() + vacuum], pbc=True)
    boxed.wrap()
    return boxed

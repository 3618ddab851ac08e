"""ASE's constraints as a mask of coordinates that hold still."""

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixScaled

# Columns of a structure by which people mean fixed atoms, in lower case without "_" and "-".
LOOKALIKES = (
    *("constraint", "constraints", "fix", "fixed", "fixedatoms", "fixedmask", "freeze", "frozen"),
    *("movable", "movemask", "selectivedynamics"),
)
TOLERANCE = 1e-6  # component of a lattice vector, relative to its length, that counts as zero


def fixed_mask(atoms: Atoms) -> np.ndarray | None:
    """The Cartesian components that the constraints of atoms fix.

    `FixAtoms`, `FixCartesian` and `FixScaled` are read: ASE makes them from the
    column `move_mask` of extended XYZ and from the selective dynamics of POSCAR.

    Args:
        atoms: with constraints, or none.

    Returns:
        `[n_atoms, 3]` bool, True where a component holds still; None where all move.

    Raises:
        ValueError: a constraint is of another kind; `FixScaled` fixes directions of
            the cell that are not those of Cartesian axes; or a column such as
            `frozen` may mean fixed atoms.

    >>> from ase.build import fcc111
    >>> slab = fcc111("Pt", (1, 1, 3))
    >>> slab.set_constraint(FixAtoms(mask=slab.positions[:, 2] < 1))
    >>> fixed_mask(slab).sum(axis=1).tolist()
    [3, 0, 0]
    """
    unread = [name for name in atoms.arrays if name.lower().replace("_", "").replace("-", "") in LOOKALIKES]
    if unread:
        raise ValueError(
            f"the structure has a column {unread[0]!r}, which is not read: fixed atoms are in the column "
            "move_mask (0 where an atom holds still), or in ASE's constraints. Rename or remove it."
        )
    mask = np.zeros((len(atoms), 3), bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            mask[constraint.index] = True
        elif isinstance(constraint, FixCartesian):
            mask[constraint.index] |= np.asarray(constraint.mask, bool)
        elif isinstance(constraint, FixScaled):
            mask[constraint.index] |= _cartesian(constraint, atoms.cell.array)
        else:
            raise ValueError(
                "constraints of the structure must be FixAtoms or FixCartesian (fixed atoms or components), "
                f"got {type(constraint).__name__}. Remove it: atoms.set_constraint()."
            )
    return mask if mask.any() else None


def _cartesian(constraint: FixScaled, cell: np.ndarray) -> np.ndarray:
    """`[3]` bool, Cartesian components fixed by a constraint along lattice vectors."""
    free = cell[~constraint.mask]
    length = np.linalg.norm(free, axis=1, keepdims=True)
    fixed = (np.abs(free) <= TOLERANCE * length).all(axis=0)
    if fixed.sum() != constraint.mask.sum():
        raise ValueError(
            f"FixScaled (selective dynamics) of atom {int(constraint.index[0])} must fix whole atoms, or "
            f"lattice vectors along Cartesian axes, got {constraint.mask.tolist()} in the cell "
            f"{np.round(cell, 3).tolist()}. Fix whole atoms, or use FixCartesian."
        )
    return fixed

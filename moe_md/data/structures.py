"""Slabs with adsorbates, built with ASE."""

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule

HEIGHT = 1.85  # Å, of the adsorbate's lowest atom above a metal atom
CO_LENGTH = 1.15  # Å


def co_covered_slab(
    metal: str, lattice_constant: float, columns: int, rows: int, layers: int, *, vacuum: float = 16.0
) -> Atoms:
    """An fcc (111) slab with a quarter layer of CO on top of its atoms, p(2x2).

    Args:
        metal: chemical symbol of an fcc metal.
        lattice_constant: Å.
        columns: atoms along x, even.
        rows: rows along y, a multiple of 4.
        layers: of the metal.
        vacuum: Å, from the oxygen to the next image of the slab.

    Returns:
        Atoms in a rectangular box, periodic in all directions, the slab in the
        middle; tags count layers from the top, 0 for CO.

    >>> str(co_covered_slab("Pt", 3.98, 4, 4, 3).symbols)
    'Pt48COCOCOCO'
    """
    atoms = fcc111(metal, (columns, rows, layers), a=lattice_constant, orthogonal=True)
    top = atoms.positions[:, 2].max()
    side = lattice_constant / np.sqrt(2)
    for x, y, z in atoms.positions[atoms.get_tags() == 1]:
        row = round(y / (side * np.sqrt(3) / 2))
        column = round(x / side - row / 2)
        if row % 2 == 0 and column % 2 == 0:
            atoms += Atoms("CO", [(x, y, z + HEIGHT), (x, y, z + HEIGHT + CO_LENGTH)])
    atoms.cell[2] = (0.0, 0.0, top + HEIGHT + CO_LENGTH + vacuum)
    atoms.positions[:, 2] += vacuum / 2
    atoms.pbc = True
    return atoms


def slab_with_adsorbate(
    metal: str,
    lattice_constant: float,
    size: tuple[int, int, int],
    *,
    adsorbate: str = "CO",
    vacuum: float = 12.0,
) -> Atoms:
    """A (111) slab with one molecule upright on a metal atom.

    Args:
        metal: chemical symbol of an fcc metal.
        lattice_constant: Å.
        size: atoms along x, rows along y (even), layers.
        adsorbate: a molecule that ASE knows, or a chemical symbol; "" for none.
        vacuum: Å, from the uppermost atom to the next image of the slab.

    Returns:
        Atoms in a rectangular box, periodic in all directions.

    Raises:
        ValueError: the size is not positive and even, or ASE does not know the
            molecule.

    >>> str(slab_with_adsorbate("Pt", 3.98, (2, 2, 3)).symbols)
    'Pt12OC'
    """
    if min(size) < 1 or size[1] % 2:
        raise ValueError(f"size must be positive with an even number of rows, got {size}.")
    atoms = fcc111(metal, size, a=lattice_constant, orthogonal=True)
    if adsorbate:
        try:
            guest = molecule(adsorbate)
        except (KeyError, NotImplementedError):
            raise ValueError(f"adsorbate must be a molecule that ASE knows, got {adsorbate!r}.") from None
        add_adsorbate(atoms, guest, HEIGHT, "ontop", mol_index=int(np.argmin(guest.positions[:, 2])))
    height = atoms.positions[:, 2]
    height -= height.min() - vacuum / 2
    atoms.cell[2] = (0.0, 0.0, height.max() + vacuum / 2)
    atoms.pbc = True
    return atoms

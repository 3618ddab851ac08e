"""Ideal crystals and slabs, clean or with adsorbates, built with ASE."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100, fcc110, fcc111, fcc211, molecule

from moe_md.checks import check_positive
from moe_md.data.reading import Frame, frame_from_atoms

HEIGHT = 1.85  # Å, of the adsorbate's lowest atom above the metal atom below it
CO_LENGTH = 1.15  # Å


class FlatFacet(NamedTuple):
    """A flat low-index surface of an fcc crystal."""

    build: Callable[..., Atoms]  # ASE's builder of a slab
    layer_spacing: float  # in lattice constants
    next_layer_site: str  # ASE's name of the site where the lattice continues


FLAT_FACETS = {
    "111": FlatFacet(fcc111, 3**-0.5, "fcc"),
    "100": FlatFacet(fcc100, 0.5, "hollow"),
    "110": FlatFacet(fcc110, 8**-0.5, "hollow"),
}
FACETS: dict[str, Callable[..., Atoms]] = {
    **{name: facet.build for name, facet in FLAT_FACETS.items()},
    "211": fcc211,  # stepped
}


def fcc_supercell(symbol: str, lattice_constant: float, repeat: int | Sequence[int]) -> Frame:
    """An ideal fcc crystal of cubic 4-atom cells.

    Args:
        symbol: chemical symbol.
        lattice_constant: Å, positive.
        repeat: cells along each axis, one number or three.

    Returns:
        A fully periodic frame without labels.

    Raises:
        ValueError: the lattice constant or a repeat is not positive.

    Example:
        >>> len(fcc_supercell("Pt", 3.98, (2, 2, 3)).symbols)
        48
    """
    check_positive("lattice_constant", lattice_constant)
    repeat = tuple(np.broadcast_to(repeat, 3).tolist())
    if min(repeat) < 1:
        raise ValueError(f"repeat must be at least 1 along each axis, got {repeat}.")
    return named_frame(bulk(symbol, "fcc", a=lattice_constant, cubic=True) * repeat, "bulk")


def fcc_slab(
    symbol: str,
    lattice_constant: float,
    size: tuple[int, int, int],
    facet: str = "111",
    vacuum: float = 10.0,
) -> Frame:
    """An ideal fcc slab, periodic in its plane.

    Args:
        symbol: chemical symbol.
        lattice_constant: Å, positive.
        size: atoms along both directions of the plane, and layers; the first
            must be a multiple of 3 for facet 211 (ASE).
        facet: `"111"`, `"100"`, `"110"` or `"211"` (stepped).
        vacuum: Å on each side, positive.

    Returns:
        A frame with pbc (True, True, False), without labels.

    Raises:
        ValueError: an argument is out of range, or the facet is unknown.
    """
    check_positive("lattice_constant", lattice_constant)
    check_positive("vacuum", vacuum)
    return named_frame(facet_slab(symbol, lattice_constant, size, facet, vacuum), f"slab-{facet}")


def facet_slab(symbol: str, lattice_constant: float, size: Sequence[int], facet: str, vacuum: float) -> Atoms:
    """The slab of `fcc_slab` as ASE's atoms, which may be changed.

    Raises:
        ValueError: the facet is unknown, or the size does not fit it.
    """
    if facet not in FACETS:
        raise ValueError(f"facet must be one of {tuple(FACETS)}, got {facet!r}.")
    if min(size) < 1 or (facet == "211" and size[0] % 3):
        raise ValueError(f"size must be positive, its first a multiple of 3 for facet 211, got {size}.")
    return _cached_slab(symbol, lattice_constant, tuple(size), facet, vacuum).copy()


@lru_cache(maxsize=256)
def _cached_slab(
    symbol: str, lattice_constant: float, size: tuple[int, ...], facet: str, vacuum: float
) -> Atoms:
    """A slab that callers copy: training requests the same few slabs thousands of times."""
    return FACETS[facet](symbol, size=size, a=lattice_constant, vacuum=vacuum)


def named_frame(atoms: Atoms, kind: str) -> Frame:
    """A frame without labels whose kind and group are `kind`."""
    return frame_from_atoms(atoms)._replace(kind=kind, group=kind)


def co_covered_slab(
    metal: str, lattice_constant: float, columns: int, rows: int, layers: int, *, vacuum: float = 16.0
) -> Atoms:
    """An fcc (111) slab with a quarter monolayer of CO on top sites, p(2x2).

    Args:
        metal: chemical symbol of an fcc metal.
        lattice_constant: Å.
        columns: metal atoms along x, even.
        rows: rows of metal atoms along y, a multiple of 4.
        layers: layers of the metal.
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
    """An fcc (111) slab with one upright molecule on a top site.

    Args:
        metal: chemical symbol of an fcc metal.
        lattice_constant: Å.
        size: metal atoms along x, rows of them along y (even), layers.
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
            adsorbed = molecule(adsorbate)
        except (KeyError, NotImplementedError):
            raise ValueError(f"adsorbate must be a molecule that ASE knows, got {adsorbate!r}.") from None
        lowest = int(np.argmin(adsorbed.positions[:, 2]))
        add_adsorbate(atoms, adsorbed, HEIGHT, "ontop", mol_index=lowest)
    height = atoms.positions[:, 2]
    height -= height.min() - vacuum / 2
    atoms.cell[2] = (0.0, 0.0, height.max() + vacuum / 2)
    atoms.pbc = True
    return atoms

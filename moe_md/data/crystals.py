"""Metal environments made on the fly, without labels.

Agreement between experts is asked for wherever the cheap one may own atoms:
strained and hot crystals, vacancies, clean surfaces, steps, adatoms. Perfect
crystals and slabs are here too.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100, fcc110, fcc111, fcc211

from moe_md.data.extxyz import Frame, frame_from_atoms

_FACETS = {"111": fcc111, "100": fcc100, "110": fcc110, "211": fcc211}

# Site of an adatom that continues the lattice, and its height in lattice constants.
_ADATOM_SITES = {"111": ("fcc", 3**-0.5), "100": ("hollow", 0.5), "110": ("hollow", 8**-0.5)}


def fcc_supercell(symbol: str, lattice_constant: float, repeat: int | Sequence[int]) -> Frame:
    """A perfect fcc crystal of cubic 4-atom cells.

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
    _check_positive(lattice_constant=lattice_constant)
    repeat = tuple(np.broadcast_to(repeat, 3).tolist())
    if min(repeat) < 1:
        raise ValueError(f"repeat must be at least 1 along each axis, got {repeat}.")
    cell = bulk(symbol, "fcc", a=lattice_constant, cubic=True)
    return _frame(cell * repeat, "bulk")


def fcc_slab(
    symbol: str,
    lattice_constant: float,
    size: tuple[int, int, int],
    facet: str = "111",
    vacuum: float = 10.0,
) -> Frame:
    """A perfect fcc slab, periodic in its plane.

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
    _check_positive(lattice_constant=lattice_constant, vacuum=vacuum)
    return _frame(_slab(symbol, lattice_constant, size, facet, vacuum), f"slab-{facet}")


def random_metal(
    rng: np.random.Generator,
    *,
    symbol: str = "Pt",
    lattice_constant: float = 3.98,
    max_strain: float = 0.04,
    max_rattle: float = 0.15,
) -> Frame:
    """A random small metal structure.

    Two in five are 4-atom fcc cells, one in ten a 31-atom cell with a vacancy,
    the rest slabs of 3 to 5 layers, p(2x2) of (111), (100), (110) or a stepped
    (211), one in three of the flat ones with an adatom. All are strained (a
    random symmetric strain plus a volume change) and rattled.

    Args:
        rng: source of the draw.
        symbol: chemical symbol of an fcc metal.
        lattice_constant: Å, positive.
        max_strain: largest component of the strain, and largest relative
            volume change besides, in [0, 0.3).
        max_rattle: Å, the standard deviation of each coordinate is uniform
            between 0 and this; not negative.

    Returns:
        A frame without labels; `kind` says which it is.

    Raises:
        ValueError: an argument is out of range.
    """
    _check_positive(lattice_constant=lattice_constant)
    _check_strain(max_strain)
    if not max_rattle >= 0.0:
        raise ValueError(f"max_rattle must not be negative (Å), got {max_rattle}.")
    draw = rng.random()
    if draw < 0.4:
        kind, atoms = "bulk-strained", bulk(symbol, "fcc", a=lattice_constant, cubic=True)
    elif draw < 0.5:
        kind, atoms = "bulk-vacancy", bulk(symbol, "fcc", a=lattice_constant, cubic=True) * 2
        del atoms[int(rng.integers(len(atoms)))]
    else:
        facet = str(rng.choice(list(_FACETS), p=[0.4, 0.25, 0.2, 0.15]))
        kind = f"slab-{facet}"
        size = (3 if facet == "211" else 2, 2, int(rng.integers(3, 6)))
        atoms = _slab(symbol, lattice_constant, size, facet, vacuum=8.0)
        if facet in _ADATOM_SITES and rng.random() < 1 / 3:
            kind += "-adatom"
            position, height = _ADATOM_SITES[facet]
            add_adsorbate(atoms, symbol, height * lattice_constant, position)

    _strain(atoms, _symmetric(rng, max_strain) + rng.uniform(-max_strain, max_strain) / 3.0 * np.eye(3))
    atoms.positions += rng.uniform(0.0, max_rattle) * rng.standard_normal((len(atoms), 3))
    return _frame(atoms, kind)


def ideal_crystals(
    rng: np.random.Generator,
    n_crystals: int,
    *,
    symbol: str = "Pt",
    lattice_constant: float = 3.98,
    max_strain: float = 0.03,
) -> list[Frame]:
    """Perfect fcc crystals under random strains, as cells of one atom.

    Args:
        rng: source of the draw.
        n_crystals: how many. Their isotropic strains are spread evenly, one in
            each of as many equal parts of the range.
        symbol: chemical symbol of an fcc metal.
        lattice_constant: Å, positive.
        max_strain: largest isotropic strain, in [0, 0.3). Besides, each
            component has up to half of it, times a factor uniform between 0 and 1.

    Returns:
        Frames of one atom, without labels.

    Raises:
        ValueError: an argument is out of range.
    """
    _check_positive(lattice_constant=lattice_constant)
    _check_strain(max_strain)
    frames = []
    for k in range(n_crystals):
        isotropic = max_strain * (2.0 * (k + rng.random()) / n_crystals - 1.0)
        atoms = bulk(symbol, "fcc", a=lattice_constant)
        _strain(atoms, _symmetric(rng, 0.5 * max_strain * rng.random()) + isotropic * np.eye(3))
        frames.append(_frame(atoms, "bulk-perfect"))
    return frames


def metal_frames(rng: np.random.Generator, n_rows: int, **kwargs) -> list[Frame]:
    """Random metal structures of at most `n_rows` atoms together.

    Drawn as `random_metal` does; from the first that does not fit, 4-atom
    cells fill the room, so that at most three rows stay empty.

    Args:
        rng: source of the draw.
        n_rows: atoms, at least 4.
        **kwargs: handed to `random_metal`.

    Returns:
        The frames.

    Raises:
        ValueError: `n_rows` is below 4, or as `random_metal`.
    """
    if n_rows < 4:
        raise ValueError(f"n_rows must be at least 4, the smallest cell, got {n_rows}.")
    frames: list[Frame] = []
    room, smallest_only = n_rows, False
    while room >= 4:
        frame = random_metal(rng, **kwargs)
        n_atoms = len(frame.symbols)
        if n_atoms <= room and (n_atoms == 4 or not smallest_only):
            frames.append(frame)
            room -= n_atoms
        else:
            smallest_only = True
    return frames


def _slab(symbol: str, lattice_constant: float, size: Sequence[int], facet: str, vacuum: float) -> Atoms:
    if facet not in _FACETS:
        raise ValueError(f"facet must be one of {tuple(_FACETS)}, got {facet!r}.")
    if min(size) < 1 or (facet == "211" and size[0] % 3):
        raise ValueError(f"size must be positive, its first a multiple of 3 for facet 211, got {size}.")
    return _built_slab(symbol, lattice_constant, tuple(size), facet, vacuum).copy()


@lru_cache(maxsize=256)
def _built_slab(
    symbol: str, lattice_constant: float, size: tuple[int, ...], facet: str, vacuum: float
) -> Atoms:
    """To be copied: training asks for the same few thousands of times."""
    return _FACETS[facet](symbol, size=size, a=lattice_constant, vacuum=vacuum)


def _symmetric(rng: np.random.Generator, largest: float) -> np.ndarray:
    strain = rng.uniform(-largest, largest, (3, 3))
    return 0.5 * (strain + strain.T)


def _strain(atoms: Atoms, strain: np.ndarray) -> None:
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)


def _check_strain(max_strain: float) -> None:
    if not 0.0 <= max_strain < 0.3:
        raise ValueError(f"max_strain must be in [0, 0.3), got {max_strain}.")


def _frame(atoms: Atoms, kind: str) -> Frame:
    return frame_from_atoms(atoms)._replace(kind=kind, group=kind)


def _check_positive(**lengths: float) -> None:
    for name, value in lengths.items():
        if not 0.0 < value < np.inf:
            raise ValueError(f"{name} must be positive (Å), got {value}.")

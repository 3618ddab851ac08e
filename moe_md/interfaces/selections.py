"""Regions chosen as ASE users choose atoms: by tag, by layer, around species.

Each function returns a function of the ASE atoms, for `MixtureCalculator(region=)`.
Those by tag and by layer keep what they chose for the atoms they saw first, as
regions that are reassigned as atoms move would make jumps in the energy. Atoms of
other symbols or tags are chosen anew; for another structure of the same, make
another function.
"""

from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.geometry import get_layers

from moe_md.checks import check_count, check_positive
from moe_md.regions import Around, around

AtomsToAssignment = Callable[[Atoms], np.ndarray]


def by_tag(tags: int | Sequence[int]) -> AtomsToAssignment:
    """Atoms of these ASE tags (`atoms.get_tags()`) go to expert 0, the others to expert 1.

    Args:
        tags: one or several, each of which some atom must have.

    Returns:
        `(atoms) -> [n_atoms] int`.

    Raises:
        ValueError: tags are no integers, or, on use, no atom has one of them.

    >>> from ase.build import fcc111
    >>> by_tag((1, 2))(fcc111("Pt", (1, 1, 4))).tolist()
    [1, 1, 0, 0]
    """
    wanted = np.atleast_1d(np.asarray(tags))
    if wanted.ndim != 1 or wanted.size == 0 or not np.issubdtype(wanted.dtype, np.integer):
        raise ValueError(f"tags must be an integer or several, got {tags!r:.80}.")

    def chosen(atoms: Atoms) -> np.ndarray:
        found = atoms.get_tags()
        missing = sorted(set(wanted.tolist()) - set(found.tolist()))
        if missing:
            raise ValueError(
                "tags must each be that of an atom, "
                f"{missing} are not: atoms have {sorted(set(found.tolist()))}."
            )
        return np.where(np.isin(found, wanted), 0, 1)

    return _kept(chosen)


def by_layer(
    n_layers: int, axis: int = 2, *, bottom: bool = False, tolerance: float = 0.3
) -> AtomsToAssignment:
    """The top layers go to expert 0, the others to expert 1.

    What lies on a surface is a layer of its own, or several: a CO that stands
    upright is two.

    Args:
        n_layers: how many, at least 1.
        axis: 0, 1 or 2, the Cartesian axis along which layers are stacked.
        bottom: choose the bottom ones.
        tolerance: Å, atoms less than this apart along the axis share a layer
            (`ase.geometry.get_layers`).

    Returns:
        `(atoms) -> [n_atoms] int`.

    Raises:
        ValueError: an argument is out of range, or, on use, there are fewer layers.

    >>> from ase.build import fcc111
    >>> by_layer(1)(fcc111("Pt", (1, 1, 4))).tolist()
    [1, 1, 1, 0]
    """
    check_count("n_layers", n_layers, 1)
    check_positive("tolerance", tolerance)
    if isinstance(axis, bool) or axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0, 1 or 2, got {axis!r}.")

    def chosen(atoms: Atoms) -> np.ndarray:
        if len(atoms) == 0:
            raise ValueError(f"n_layers must be at most the 0 layers of these atoms, got {n_layers}.")
        # Of a cell of its own, so that layers are planes normal to the axis, whatever the lattice.
        upright = Atoms(atoms.symbols, atoms.positions, cell=np.eye(3))
        layer, heights = get_layers(upright, tuple(np.eye(3, dtype=int)[axis]), tolerance)
        if n_layers > len(heights):
            raise ValueError(
                f"n_layers must be at most the {len(heights)} layers of these atoms along axis {axis}, "
                f"got {n_layers}."
            )
        return np.where(layer < n_layers if bottom else layer >= len(heights) - n_layers, 0, 1)

    return _kept(chosen)


def around_species(species: str | Sequence[str], r_core: float, r_blend: float) -> Callable[[Atoms], Around]:
    """Spheres about all atoms of these species go to expert 0, and follow them (`regions.around`).

    Energy is conserved.

    Args:
        species: chemical symbols, each of which the atoms must hold.
        r_core: Å, as `regions.around`; at least the cheap expert's cutoff where
            it does not know these species.
        r_blend: Å, positive.

    Returns:
        `(atoms) -> region`.

    Raises:
        ValueError: an argument is out of range, or, on use, a species is absent.

    >>> from ase.build import fcc111, add_adsorbate
    >>> atoms = fcc111("Pt", (1, 1, 4))
    >>> add_adsorbate(atoms, "O", 1.3, "fcc")
    >>> around_species("O", 5.0, 1.0)(atoms).seeds.tolist()
    [4]
    """
    symbols = (species,) if isinstance(species, str) else tuple(species)
    unknown = [s for s in symbols if s not in chemical_symbols[1:]]
    if unknown or not symbols:
        raise ValueError(f"species must be chemical symbols, at least one, got {species!r:.80}.")
    around([0], r_core, r_blend)  # checks the lengths

    def chosen(atoms: Atoms) -> Around:
        absent = sorted(set(symbols) - set(atoms.symbols))
        if absent:
            raise ValueError(
                f"species must be those of some atoms, {', '.join(absent)} is not: atoms are {atoms.symbols}."
            )
        return around(np.flatnonzero(np.isin(atoms.get_chemical_symbols(), symbols)), r_core, r_blend)

    return chosen


def _kept(choose: AtomsToAssignment) -> AtomsToAssignment:
    """What was chosen for atoms of these symbols and tags, however they have moved."""
    last: list = [None, None]

    def chosen(atoms: Atoms) -> np.ndarray:
        key = atoms.numbers.tobytes(), atoms.get_tags().tobytes()
        if last[0] != key:
            last[:] = key, choose(atoms)
        return last[1].copy()

    return chosen

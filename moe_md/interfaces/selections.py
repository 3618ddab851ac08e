"""Regions chosen as ASE users choose atoms: by tag, by layer, around species.

Each function returns a function of the ASE atoms, for `MixtureCalculator(region=)`.
`by_tag` and `by_layer` assign atoms at the first call and return the same assignment
later, because the energy would jump if atoms were reassigned as they move. They
assign again when symbols or tags differ. For another structure with the same symbols
and tags, call `by_tag` or `by_layer` again.
"""

from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.geometry import get_layers
from jaxtyping import Int

from moe_md.checks import check_count, check_positive
from moe_md.regions import Around, around
from moe_md.regions.protocol import check_missing

AtomsToAssignment = Callable[[Atoms], Int[np.ndarray, " atoms"]]


def by_tag(tags: int | Sequence[int], *, missing: str = "error") -> AtomsToAssignment:
    """Assign atoms with these ASE tags (`atoms.get_tags()`) to expert 0, the others to expert 1.

    Args:
        tags: one integer or several.
        missing: what happens where no atom has one of them: "error", or "cheap",
            atoms with the other tags are assigned, and expert 1 gets all where there
            are none.

    Returns:
        `(atoms) -> expert of each atom`.

    Raises:
        ValueError: tags are not integers, or, on use, no atom has one of them.

    >>> from ase.build import fcc111
    >>> by_tag((1, 2))(fcc111("Pt", (1, 1, 4))).tolist()
    [1, 1, 0, 0]
    """
    selected = np.atleast_1d(np.asarray(tags))
    if selected.ndim != 1 or selected.size == 0 or not np.issubdtype(selected.dtype, np.integer):
        raise ValueError(f"tags must be one integer or several, got {tags!r:.80}.")
    check_missing(missing)

    def assign(atoms: Atoms) -> Int[np.ndarray, " atoms"]:
        found = atoms.get_tags()
        absent = sorted(set(selected.tolist()) - set(found.tolist()))
        if absent and missing == "error":
            raise ValueError(
                f"tags must be tags of the atoms, {sorted(set(found.tolist()))}, got {absent}. "
                'Set tags with `atoms.set_tags`. With missing="cheap" they may be absent.'
            )
        return np.where(np.isin(found, selected), 0, 1)

    return _fixed_at_first_call(assign)


def by_layer(
    n_layers: int, axis: int = 2, *, bottom: bool = False, tolerance: float = 0.3
) -> AtomsToAssignment:
    """Assign the top layers to expert 0, the others to expert 1.

    A slab that a periodic boundary cuts is joined first: its layers are counted
    from its vacuum, a gap at least twice as high as any other.

    Adsorbates count as layers of their own; an upright CO counts as two.

    Args:
        n_layers: number of layers for expert 0, at least 1.
        axis: 0, 1 or 2, the Cartesian axis along which layers are stacked.
        bottom: assign the bottom layers to expert 0 instead.
        tolerance: Å, atoms closer than this along the axis share a layer
            (`ase.geometry.get_layers`).

    Returns:
        `(atoms) -> expert of each atom`.

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

    def assign(atoms: Atoms) -> Int[np.ndarray, " atoms"]:
        if len(atoms) == 0:
            raise ValueError(f"n_layers must be at most the 0 layers of these atoms, got {n_layers}.")
        # A Cartesian cell makes layers normal to the axis in any lattice.
        cartesian = Atoms(atoms.symbols, _joined(atoms, axis, tolerance), cell=np.eye(3))
        layer, heights = get_layers(cartesian, tuple(np.eye(3, dtype=int)[axis]), tolerance)
        if n_layers > len(heights):
            raise ValueError(
                f"n_layers must be at most the {len(heights)} layers of these atoms along axis {axis}, "
                f"got {n_layers}."
            )
        return np.where(layer < n_layers if bottom else layer >= len(heights) - n_layers, 0, 1)

    return _fixed_at_first_call(assign)


def _joined(atoms: Atoms, axis: int, tolerance: float) -> np.ndarray:
    """`[n_atoms, 3]` Å, positions of which those below the vacuum are one period higher.

    They are those given, unless the period along the axis is that of one lattice
    vector and the vacuum lies between atoms.
    """
    position, cell = atoms.positions, atoms.cell.array
    along = np.flatnonzero(np.abs(cell[:, axis]) > 1e-6)
    if len(along) != 1 or not atoms.pbc[along[0]]:
        return position
    period = abs(cell[along[0], axis])
    heights = np.sort(position[:, axis] % period)
    gaps = np.diff(heights, append=heights[0] + period)  # the last is that across the boundary
    top = int(np.argmax(gaps))  # the vacuum is above this atom
    others = np.delete(gaps, top)
    inside = np.ptp(position[:, axis]) < period - gaps[top] + tolerance  # not cut as given
    if inside or (len(others) and gaps[top] < 2 * max(others.max(), tolerance)):
        return position
    start = heights[(top + 1) % len(heights)] - 0.5 * gaps[top]  # the middle of the vacuum
    joined = position.copy()
    joined[:, axis] = start + (position[:, axis] - start) % period
    return joined


def around_species(
    species: str | Sequence[str], r_core: float, r_blend: float, *, missing: str = "error"
) -> Callable[[Atoms], Around]:
    """Spheres around all atoms of these species belong to expert 0 and follow the atoms.

    The region is `regions.around`, with which energy is conserved.

    Args:
        species: one chemical symbol or several.
        r_core: Å, radius of the spheres' cores. Use at least the cheap expert's
            cutoff if these species are outside its `allowed_species`.
        r_blend: Å, width of the blending shell, positive.
        missing: what happens where no atom is of one of the species: "error", or
            "cheap", the region follows the others, and expert 1 owns all atoms where
            there are none. One calculator then serves clean and adsorbed slabs.

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
    around([0], r_core, r_blend, missing=missing)  # raises an error for bad arguments

    def region_of(atoms: Atoms) -> Around:
        absent = sorted(set(symbols) - set(atoms.symbols))
        if absent and missing == "error":
            raise ValueError(
                f"species must be among the atoms, {atoms.symbols}, got {', '.join(absent)}. "
                'With missing="cheap" they may be absent.'
            )
        seeds = np.flatnonzero(np.isin(atoms.get_chemical_symbols(), symbols))
        return around(seeds, r_core, r_blend, missing=missing)

    return region_of


def _fixed_at_first_call(assign: AtomsToAssignment) -> AtomsToAssignment:
    """`assign`, whose result is cached while symbols and tags stay the same."""
    last: list = [None, None]

    def assign_once(atoms: Atoms) -> Int[np.ndarray, " atoms"]:
        key = atoms.numbers.tobytes(), atoms.get_tags().tobytes()
        if last[0] != key:
            last[:] = key, assign(atoms)
        return last[1].copy()

    return assign_once

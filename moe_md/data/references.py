"""Reference structures of a dataset: its perfect crystals, reduced to their primitive cells."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import spglib
from ase import Atoms
from ase.formula import Formula

from moe_md.data.dataset import Dataset
from moe_md.data.overview import NEAR, shortest_distance
from moe_md.data.reading import Frame

SYMMETRY_TOLERANCE = 0.03  # of the shortest distance, for positions that a symmetry relates
FILLED = 4.0  # Å, atoms with an empty layer thicker than this are a slab, a wire or a molecule


class Reference(NamedTuple):
    """A perfect crystal."""

    atoms: Atoms  # primitive cell, periodic in all directions
    space_group: str  # international symbol and number, such as "Fm-3m (225)"
    source: str  # frame that it is taken from

    @property
    def formula(self) -> str:
        """Reduced chemical formula."""
        return _formula(self.atoms.get_chemical_symbols())


def find_references(dataset: Dataset) -> list[Reference]:
    """The periodic frame of lowest energy per atom of each composition.

    Frames with empty layers are left out, as are those whose primitive cell is the whole frame
    without any symmetry: hot or disordered atoms, of which no crystal can be told.

    Args:
        dataset: frames; those without an energy are ignored.

    Returns:
        References, those of most atoms in the dataset first.

    >>> from moe_md.data import load_dataset, ptco_pbe
    >>> (platinum,) = find_references(load_dataset(ptco_pbe()))
    >>> platinum.formula, len(platinum.atoms), platinum.space_group
    ('Pt', 1, 'Fm-3m (225)')
    """
    groups: dict[str, list[Frame]] = {}
    for frame in dataset.frames:
        if frame.energy is not None and np.all(frame.pbc) and not _has_vacuum(frame):
            groups.setdefault(_formula(frame.symbols), []).append(frame)
    order = sorted(groups, key=lambda formula: -sum(len(frame.symbols) for frame in groups[formula]))
    found = [_reduced(min(groups[formula], key=_energy_per_atom)) for formula in order]
    return [reference for reference in found if reference is not None]


def _energy_per_atom(frame: Frame) -> float:
    assert frame.energy is not None
    return frame.energy / len(frame.symbols)


def _formula(symbols: Sequence[str]) -> str:
    return Formula.from_list(sorted(symbols)).reduce()[0].format("metal")


def _has_vacuum(frame: Frame) -> bool:
    """Whether a layer across a cell vector is empty."""
    fraction = frame.positions @ np.linalg.inv(frame.cell)
    heights = 1.0 / np.linalg.norm(np.linalg.inv(frame.cell), axis=0)
    for axis in range(3):
        levels = np.sort(fraction[:, axis] % 1.0)
        gaps = np.diff(np.append(levels, levels[0] + 1.0))
        # A cell of few atoms may be high: its own images fill it.
        if gaps.max() * heights[axis] > FILLED and gaps.max() < 1.0:
            return True
    return shortest_distance(frame) is None


def _reduced(frame: Frame) -> Reference | None:
    """The primitive cell; None where atoms have no symmetry besides that of the frame."""
    tolerance = SYMMETRY_TOLERANCE * (shortest_distance(frame) or NEAR)
    atoms = Atoms(frame.symbols, frame.positions, cell=frame.cell, pbc=True)
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    try:
        primitive = spglib.find_primitive(cell, symprec=tolerance)
        space_group = spglib.get_spacegroup(cell, symprec=tolerance)
    except spglib.SpglibError:
        return None
    if primitive is None or space_group is None or (space_group == "P1 (1)" and len(primitive[2]) > 1):
        return None
    lattice, positions, numbers = primitive
    reduced = Atoms(numbers=numbers, scaled_positions=positions, cell=lattice, pbc=True)
    return Reference(reduced, space_group, frame.source)


def describe_reference(reference: Reference) -> str:
    """One line: formula, space group, atoms and volume of the primitive cell, source."""
    n, volume = len(reference.atoms), reference.atoms.get_volume()
    return (
        f"{reference.formula}, {reference.space_group}, {n} atom{'s' * (n > 1)} in {volume:.2f} Å^3"
        f" ({reference.source})"
    )

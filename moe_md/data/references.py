"""Reference structures, on which two experts shall agree: crystals, alloys, liquids and glasses.

They are read from files, or are the perfect crystals of a dataset. Crystals are reduced to their
primitive cells.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import spglib
from ase import Atoms
from ase.formula import Formula

from moe_md.data.dataset import Dataset
from moe_md.data.overview import NEAR, shortest_distance
from moe_md.data.reading import Frame, frame_from_atoms
from moe_md.data.sources import names_of
from moe_md.data.structure_file import read_structure

SYMMETRY_TOLERANCE = 0.03  # of the shortest distance, for positions that a symmetry relates
FILLED = 4.0  # Å, atoms with an empty layer thicker than this are a slab, a wire or a molecule


class Reference(NamedTuple):
    """A perfect crystal, or a disordered structure."""

    atoms: Atoms  # periodic in all directions; of a crystal its primitive cell
    space_group: str  # international symbol and number, such as "Fm-3m (225)"; empty where disordered
    source: str  # file or frame that it is taken from

    @property
    def formula(self) -> str:
        """Reduced chemical formula."""
        return _formula(self.atoms.get_chemical_symbols())

    @property
    def is_crystal(self) -> bool:
        """Whether atoms are related by more than the translations of the cell; a lone atom is."""
        return self.space_group != ""


def reference_from_atoms(atoms: Atoms, source: str = "") -> Reference:
    """A reference from a periodic structure; a crystal is reduced to its primitive cell.

    Args:
        atoms: any number of primitive cells, or a cell of a liquid, a glass or a disordered alloy.
        source: what messages call it.

    Returns:
        The reference; without a space group where no symmetry was found in a cell of several atoms.

    Raises:
        ValueError: the structure is not periodic in all directions or has an empty layer, as a slab has,
            or two atoms are at one place.

    >>> from ase.build import bulk
    >>> reference_from_atoms(bulk("Si", cubic=True)).space_group
    'Fd-3m (227)'
    """
    frame = frame_from_atoms(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc))
    frame = frame._replace(source=source)
    name = source or str(atoms.symbols)
    if len(atoms) == 0 or not np.all(frame.pbc):
        raise ValueError(
            f"references must be periodic in all directions, got {name} with pbc {frame.pbc.tolist()}: give"
            " the crystal, of which surfaces are cut in training."
        )
    if _has_vacuum(frame):
        raise ValueError(
            f"references must fill their cell, got {name} with an empty layer of more than {FILLED:g} Å: give"
            " the crystal, of which surfaces are cut in training."
        )
    whole = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    return _reduced(frame) or Reference(whole, "", source)


def read_references(path: str) -> list[Reference]:
    """References from files of any format that ASE reads, the last structure of each.

    Args:
        path: a file; several are separated by commas.

    Raises:
        ValueError: a file cannot be read, or as `reference_from_atoms`.
    """
    return [reference_from_atoms(read_structure(name), name) for name in names_of(path)]


def reference_to_dict(reference: Reference) -> dict[str, Any]:
    """Plain values, for checkpoints."""
    atoms = reference.atoms
    return {
        "symbols": atoms.get_chemical_symbols(),
        "cell": atoms.cell.array.tolist(),
        "positions": atoms.positions.tolist(),
        "space_group": reference.space_group,
        "source": reference.source,
    }


def reference_from_dict(content: dict[str, Any]) -> Reference:
    """The reference that `reference_to_dict` wrote."""
    atoms = Atoms(content["symbols"], content["positions"], cell=content["cell"], pbc=True)
    return Reference(atoms, content["space_group"], content["source"])


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
    """One line: formula, space group, atoms and volume of the cell, source."""
    n, volume = len(reference.atoms), reference.atoms.get_volume()
    return (
        f"{reference.formula}, {reference.space_group or 'disordered'}, {n} atom{'s' * (n > 1)} in"
        f" {volume:.2f} Å^3" + (f" ({reference.source})" if reference.source else "")
    )

"""Random structures without labels, of platinum by default."""

import numpy as np
from ase.build import bulk, fcc111

from moe_md.data.reading import Frame, frame_from_atoms


def random_cell(rng, *, symbol="Pt", lattice_constant=3.98, max_strain=0.04, max_rattle=0.15) -> Frame:
    """A cubic cell of four atoms, strained, its atoms displaced."""
    return _distorted(rng, bulk(symbol, "fcc", a=lattice_constant, cubic=True), max_strain, max_rattle)


def random_structures(rng, max_atoms: int) -> list[Frame]:
    """Cells, cells with a vacancy and slabs, of at most so many atoms together."""
    frames, free = [], max_atoms
    while free >= 4:
        atoms = [bulk("Pt", a=3.98, cubic=True), bulk("Pt", a=3.98, cubic=True) * 2][int(rng.integers(2))]
        if len(atoms) > 4:
            atoms = (
                atoms[1:] if rng.random() < 0.3 else fcc111("Pt", (2, 2, int(rng.integers(3, 6))), vacuum=8.0)
            )
        if len(atoms) > free:
            atoms = bulk("Pt", a=3.98, cubic=True)
        frames.append(_distorted(rng, atoms, 0.04, 0.15))
        free -= len(atoms)
    return frames


def _distorted(rng, atoms, max_strain, max_rattle) -> Frame:
    strain = rng.uniform(-max_strain, max_strain, (3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
    atoms.positions += rng.uniform(0.0, max_rattle) * rng.standard_normal((len(atoms), 3))
    return frame_from_atoms(atoms)

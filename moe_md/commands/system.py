"""The system of `moe-md run` and `export`: a checkpoint, a structure from a file, and its region."""

import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_masses

from moe_md import checkpoint as checkpoints
from moe_md import regions
from moe_md.checkpoint import Checkpoint
from moe_md.data import read_structure
from moe_md.experts.base import Expert
from moe_md.interfaces import selections
from moe_md.interfaces.constraints import fixed_mask
from moe_md.settings import SystemSettings


class LoadedSystem(NamedTuple):
    """The checkpoint, structure and region of a `SystemSettings`."""

    model: Checkpoint
    atoms: Atoms  # periodic along three directions
    region: regions.Region
    fixed_mask: np.ndarray | None  # [n_atoms, 3] bool, components that hold still; None where all move


def load_system(settings: SystemSettings, extra_experts: Sequence[Expert] = ()) -> LoadedSystem:
    """Read checkpoint and structure, and build the region.

    Args:
        settings: checkpoint, structure and region.
        extra_experts: further experts whose cutoffs the box must allow.

    Raises:
        ValueError: structure, region or checkpoint do not fit one another, a file cannot be read, or the
            structure has constraints other than fixed atoms and components.
    """
    model = checkpoints.load(settings.checkpoint)
    structure = read_structure(settings.structure)
    fixed_mask(structure)  # raises before ASE repeats constraints, which some cannot
    atoms = _repeated(structure, settings.repeat)
    known = model.experts[0].species
    unknown = sorted(set(atoms.symbols) - set(known))
    if unknown:
        raise ValueError(
            f"structure must hold the species {known} of the checkpoint, got {', '.join(unknown)}."
        )
    # Planes and layers are those of the file: the box may move atoms.
    region, fixed = _region(settings, atoms, len(model.experts)), fixed_mask(atoms)
    atoms = periodic_box(atoms, max(e.cutoff for e in (*model.experts, *extra_experts)))
    return LoadedSystem(model, atoms, region, fixed)


def has_own_masses(atoms: Atoms) -> bool:
    """Whether a structure has masses other than ASE's of its elements, such as isotopes."""
    return not np.allclose(atoms.get_masses(), atomic_masses[atoms.numbers], rtol=1e-9)


def fixed_in_words(fixed_mask: np.ndarray) -> str:
    """How many atoms hold still, as a line of text."""
    whole = fixed_mask.all(axis=1)
    partly = fixed_mask.any(axis=1) & ~whole
    texts = [
        f"{n} atoms {text}"
        for n, text in ((whole.sum(), "hold still"), (partly.sum(), "keep some of their coordinates"))
        if n
    ]
    return " and ".join(texts) + ": the structure fixes them"


def _repeated(atoms: Atoms, repeat: str) -> Atoms:
    """Copies along each lattice vector, without velocities: equal ones would keep the copies in phase."""
    if not repeat:
        return atoms
    copies = _whole_numbers("repeat", repeat)
    if len(copies) != 3 or min(copies) < 1:
        raise ValueError(f"repeat must be three positive whole numbers, such as 2,2,1, got {repeat!r:.80}.")
    atoms = atoms.repeat(copies)
    atoms.arrays.pop("momenta", None)
    return atoms


def periodic_box(atoms: Atoms, cutoff: float) -> Atoms:
    """A structure in a periodic box.

    Along directions that are not periodic the box is lengthened: the vacuum is
    wider than the cutoff, and the edge longer than twice the cutoff.

    Args:
        atoms: periodic along some directions, or none.
        cutoff: Å, the largest of the experts'.

    Returns:
        The atoms, periodic along three directions. They keep their positions,
        so that planes given in Å keep their meaning, if they fit into the box.
    """
    if atoms.pbc.all():
        return atoms
    boxed = atoms.copy()
    cell = atoms.cell.complete()
    height = 1 / np.linalg.norm(np.linalg.inv(cell.array), axis=0)  # [3] Å, between opposite faces
    scaled = cell.scaled_positions(atoms.positions)
    extent = np.ptp(scaled, axis=0) * height
    needed = np.maximum(extent + cutoff + 5.0, 2 * cutoff + 1.0)
    stretch = np.where(atoms.pbc, 1.0, np.maximum(needed / height, 1.0))
    to_center = np.where(atoms.pbc, 0.0, 0.5 * stretch - 0.5 * (scaled.min(0) + scaled.max(0)))
    boxed.set_cell(cell.array * stretch[:, None])
    outside = (scaled + to_center < 0) | (scaled + to_center > stretch)
    fits = (scaled.min(0) >= 0) & (scaled.max(0) <= stretch)
    shift = np.where(fits | atoms.pbc, 0.0, to_center)
    assert not (outside & ~fits & ~atoms.pbc).any()
    boxed.positions += shift @ cell.array
    boxed.pbc = True
    return boxed


def _region(settings: SystemSettings, atoms: Atoms, n_experts: int) -> regions.Region:
    """The region that the settings choose: around species, by layer, by tag, by column, or by planes."""
    if settings.region_around:
        seeds = _atoms_of(settings.region_around, atoms)
        return regions.around(seeds, settings.region_core, settings.region_blend)
    if settings.region_layers:
        return regions.fixed(
            selections.by_layer(settings.region_layers, settings.region_axis)(atoms), n_experts
        )
    if settings.region_tags:
        return regions.fixed(
            selections.by_tag(_whole_numbers("region_tags", settings.region_tags))(atoms), n_experts
        )
    if settings.region_lower is None and settings.region_upper is None:
        if "expert" in atoms.arrays:
            return regions.fixed(_whole(atoms.arrays["expert"]), n_experts)
        raise ValueError(
            "region_lower or region_upper (Å), region_around (species), region_layers or region_tags must be"
            " given, or the structure must have a column `expert` of integers."
        )
    lower = -np.inf if settings.region_lower is None else settings.region_lower
    upper = np.inf if settings.region_upper is None else settings.region_upper
    region = regions.slab(
        atoms.positions, lower=lower, upper=upper, axis=settings.region_axis, n_experts=n_experts
    )
    if not np.asarray(region.assignment).any():
        heights = atoms.positions[:, settings.region_axis]
        warnings.warn(
            f"the expensive expert has all {len(atoms)} atoms, which lie from {heights.min():.2f} to "
            f"{heights.max():.2f} Å along axis {settings.region_axis}: region_lower = "
            f"{settings.region_lower}, region_upper = {settings.region_upper}.",
            stacklevel=2,
        )
    return region


def _atoms_of(text: str, atoms: Atoms) -> np.ndarray:
    """Indices of the atoms of species in a text such as "C,O"; each must be in the structure."""
    found = atoms.get_chemical_symbols()
    symbols = [symbol.strip() for symbol in text.split(",")]
    missing = [symbol for symbol in symbols if symbol not in found]
    if missing:
        known, unknown = ", ".join(sorted(set(found))), " and ".join(missing)
        raise ValueError(
            f"region_around must name species of the structure, got {text!r}, and {unknown!r} is not among"
            f" {known}: write chemical symbols with commas between, such as C,O."
        )
    return np.flatnonzero(np.isin(found, symbols))


def _whole(column: np.ndarray) -> np.ndarray:
    """The column `expert` as integers."""
    if column.dtype.kind not in "if" or column.ndim != 1 or (column != np.round(column)).any():
        raise ValueError(
            "the column expert of the structure must hold whole numbers, one per atom, got"
            f" {column[:3].tolist()}."
        )
    return column.astype(int)


def _whole_numbers(name: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"-?\d+", part) for part in parts):
        raise ValueError(f"{name} must be whole numbers with commas between, got {text!r:.80}.")
    return [int(part) for part in parts]

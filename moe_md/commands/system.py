"""The system of `moe-md run` and `export`: a checkpoint, a structure from a file, and its region."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ase.io
import numpy as np
from ase import Atoms

from moe_md import checkpoint as checkpoints
from moe_md import regions
from moe_md.checkpoint import Checkpoint
from moe_md.data import read_frames
from moe_md.experts.base import Expert
from moe_md.interfaces import selections
from moe_md.settings import SystemSettings


class LoadedSystem(NamedTuple):
    """The checkpoint, structure and region of a `SystemSettings`."""

    model: Checkpoint
    atoms: Atoms  # periodic along three directions
    region: regions.Region


def load_system(settings: SystemSettings, extra_experts: Sequence[Expert] = ()) -> LoadedSystem:
    """Read checkpoint and structure, and build the region.

    Args:
        settings: checkpoint, structure and region.
        extra_experts: further experts whose cutoffs the box must allow.

    Raises:
        ValueError: structure, region or checkpoint do not fit one another, or a file cannot be read.
    """
    model = checkpoints.load(settings.checkpoint)
    atoms = _repeated(_structure(settings.structure), settings.repeat)
    known = model.experts[0].species
    unknown = sorted(set(atoms.symbols) - set(known))
    if unknown:
        raise ValueError(
            f"structure must hold the species {known} of the checkpoint, got {', '.join(unknown)}."
        )
    atoms = periodic_box(atoms, max(e.cutoff for e in (*model.experts, *extra_experts)))
    return LoadedSystem(model, atoms, _region(settings, atoms, len(model.experts)))


def _structure(path: str) -> Atoms:
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"structure must be an existing file, got {path}.")
    if any(suffix in (".xyz", ".extxyz") for suffix in file.suffixes):
        read_frames(file)  # raises if the file was cut short
    try:
        atoms = ase.io.read(file, index=-1)
    except Exception as error:  # ASE raises many types
        raise ValueError(f"structure must be a file that ASE reads, got {path}: {error}.") from None
    assert isinstance(atoms, Atoms)  # the index selects one frame
    return atoms


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
        symbols = [symbol.strip() for symbol in settings.region_around.split(",")]
        seeds = np.flatnonzero(np.isin(atoms.get_chemical_symbols(), symbols))
        if len(seeds) == 0:
            raise ValueError(
                f"region_around must name species of the structure, got {settings.region_around!r}."
            )
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
            return regions.fixed(atoms.arrays["expert"].astype(int), n_experts)
        raise ValueError(
            "region_lower or region_upper (Å), region_around (species), region_layers or region_tags must be"
            " given, or the structure must have a column `expert` of integers."
        )
    lower = -np.inf if settings.region_lower is None else settings.region_lower
    upper = np.inf if settings.region_upper is None else settings.region_upper
    return regions.slab(
        atoms.positions, lower=lower, upper=upper, axis=settings.region_axis, n_experts=n_experts
    )


def _whole_numbers(name: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"-?\d+", part) for part in parts):
        raise ValueError(f"{name} must be whole numbers with commas between, got {text!r:.80}.")
    return [int(part) for part in parts]

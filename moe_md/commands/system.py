"""The system of `moe-md run` and `export`: a checkpoint, a structure from a file, and its region."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers

from moe_md import checkpoint as checkpoints
from moe_md import regions
from moe_md.checkpoint import Checkpoint
from moe_md.data import read_structure
from moe_md.experts.base import Expert
from moe_md.interfaces import selections
from moe_md.interfaces.constraints import fixed_mask
from moe_md.neighbors.rows import image_pairs
from moe_md.settings import SystemSettings

SHELL_GAP = 0.25  # of the nearest-neighbour distance, over which a neighbour stops counting


class LoadedSystem(NamedTuple):
    """The checkpoint, structure and region of a `SystemSettings`."""

    model: Checkpoint
    atoms: Atoms  # periodic along three directions
    region: regions.Region
    fixed_mask: np.ndarray | None  # [n_atoms, 3] bool, components that hold still; None where all move


def load_system(
    settings: SystemSettings, extra_experts: Sequence[Expert] = (), log: Callable = lambda line: None
) -> LoadedSystem:
    """Read checkpoint and structure, and build the region.

    Args:
        settings: checkpoint, structure and region.
        extra_experts: further experts whose cutoffs the box must allow.
        log: takes lines of text.

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
    region, fixed = _region(settings, atoms, model, log), fixed_mask(atoms)
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


def _region(settings: SystemSettings, atoms: Atoms, model: Checkpoint, log: Callable) -> regions.Region:
    """The region that the settings choose: following atoms, by layer, by tag, by column, or by planes."""
    n_experts = len(model.experts)
    following = _following_region(settings, atoms, model, log)
    if following is not None:
        return following
    if settings.region_layers:
        return regions.fixed(
            selections.by_layer(settings.region_layers, settings.region_axis)(atoms), n_experts
        )
    if settings.region_tags:
        return regions.fixed(
            selections.by_tag(
                _whole_numbers("region_tags", settings.region_tags), missing=settings.region_missing
            )(atoms),
            n_experts,
        )
    if settings.region_lower is None and settings.region_upper is None:
        if "expert" in atoms.arrays:
            return regions.fixed(_whole(atoms.arrays["expert"]), n_experts)
        raise ValueError(
            "region_lower or region_upper (Å), region_around (species), region_indices, region_coordination,"
            " region_unfamiliar, region_layers or region_tags must be given, or the structure must have a"
            " column `expert` of integers."
        )
    lower = -np.inf if settings.region_lower is None else settings.region_lower
    upper = np.inf if settings.region_upper is None else settings.region_upper
    region = regions.slab(
        atoms.positions,
        lower=lower,
        upper=upper,
        axis=settings.region_axis,
        n_experts=n_experts,
        missing=settings.region_missing,
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


def _following_region(
    settings: SystemSettings, atoms: Atoms, model: Checkpoint, log: Callable
) -> regions.Region | None:
    """The region around species, around atoms or grown from atoms; None where none of them is chosen."""
    radii = (settings.region_core, settings.region_blend)
    if settings.region_around:
        seeds = _atoms_of(settings.region_around, atoms, settings.region_missing)
        return regions.around(seeds, *radii, missing=settings.region_missing)
    if settings.region_indices:
        return regions.around(_indices(settings.region_indices, len(atoms)), *radii)
    if settings.region_coordination:
        cutoff = max(expert.cutoff for expert in model.experts)
        return regions.grown(_coordination(settings.region_coordination, atoms, cutoff, log), *radii)
    if settings.region_unfamiliar:
        return regions.grown(regions.unfamiliar(model, *_distances(settings.region_unfamiliar)), *radii)
    return None


def _atoms_of(text: str, atoms: Atoms, missing: str) -> np.ndarray:
    """Indices of the atoms of species in a text such as "C,O"; each must be there, or missing is cheap."""
    found = atoms.get_chemical_symbols()
    symbols = [symbol.strip() for symbol in text.split(",")]
    absent = [symbol for symbol in symbols if symbol not in found]
    unknown = [symbol for symbol in symbols if symbol not in atomic_numbers]
    if unknown or (absent and missing == "error"):
        known, names = ", ".join(sorted(set(found))), " and ".join(unknown or absent)
        raise ValueError(
            f"region_around must name species of the structure, got {text!r}, and {names!r} is not among"
            f" {known}: write chemical symbols with commas between, such as C,O. With region_missing = cheap"
            " species may be absent."
        )
    return np.flatnonzero(np.isin(found, symbols))


def _indices(text: str, n_atoms: int) -> np.ndarray:
    """Atoms of a text such as "0,4,10-19", both ends of a range included; each must be in the structure."""
    bounds = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if ends is None:
            raise ValueError(
                f"region_indices must be atoms or ranges of them with commas between, got {text!r:.80}: "
                "write for example 0,4,10-19."
            )
        bounds.append((int(ends[1]), int(ends[2] or ends[1])))
    for first, last in bounds:
        if not first <= last < n_atoms:
            raise ValueError(
                f"region_indices must be atoms of the structure after repeat, 0 to {n_atoms - 1}, "
                f"the lower end of a range first, got {first if first == last else f'{first}-{last}'}."
            )
    return np.unique(np.concatenate([np.arange(first, last + 1) for first, last in bounds]))


def _coordination(text: str, atoms: Atoms, cutoff: float, log: Callable) -> regions.Descriptor:
    """Atoms with few neighbours, of a text LOW,HIGH or LOW,HIGH,R_FULL,R_NONE; `cutoff` of the lists, Å."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (2, 4) or not np.isfinite(values).all():
        raise ValueError(
            f"region_coordination must be LOW,HIGH or LOW,HIGH,R_FULL,R_NONE, got {text!r:.80}: write numbers"
            " of neighbours and distances in Å, such as 10,11.5 or 10,11.5,3.2,3.8."
        )
    low, high, *radii = values
    if low >= high or (radii and not 0 < radii[0] < radii[1] <= cutoff):
        raise ValueError(
            f"region_coordination must have LOW below HIGH, and R_FULL below R_NONE up to {cutoff:g} Å, the"
            f" longest cutoff of the experts, got {text!r:.80}."
        )
    if not radii:
        *radii, usual = first_shell(atoms, cutoff)
        log(
            f"a neighbour counts fully up to {radii[0]:.2f} Å and not from {radii[1]:.2f} Å on; half of the"
            f" atoms have {usual:g} neighbours or more"
        )
    return regions.coordination(low, high, r_full=radii[0], r_none=radii[1])


def _distances(text: str) -> tuple[float, float]:
    """The two numbers of a text LOW,HIGH."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not 0 <= low < high < np.inf:
        raise ValueError(
            f"region_unfamiliar must be LOW,HIGH, two numbers from 0 on, LOW below HIGH, got {text!r:.80}:"
            " write for example 0.6,0.9."
        )
    return low, high


def first_shell(atoms: Atoms, cutoff: float) -> tuple[float, float, float]:
    """Distances between which a structure has the fewest pairs, beyond its nearest neighbours.

    With d the median distance to the nearest neighbour, they are d / 4 apart, and their
    middle lies between 1.1 and 1.6 d: beyond the first shell of fcc, hcp and diamond, and
    beyond the second shell of bcc, which is near the first.

    Args:
        atoms: in any cell.
        cutoff: Å, the upper distance is at most this.

    Returns:
        The two distances (Å), and the median number of neighbours up to their middle.

    Raises:
        ValueError: the atoms have no neighbours within the cutoff.

    >>> from ase.build import bulk
    >>> full, none, neighbors = first_shell(bulk("Cu", a=4.0), 5.0)
    >>> 4.0 / 2**0.5 < full < none < 4.0, neighbors
    (True, 12.0)
    """
    i, _, displacement = image_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    distance = np.linalg.norm(displacement, axis=1)
    nearest = np.full(len(atoms), np.inf)
    np.minimum.at(nearest, i, distance)
    nearest = nearest[np.isfinite(nearest)]
    spacing = float(np.median(nearest)) if len(nearest) else np.inf
    half = SHELL_GAP * spacing / 2
    if not 1.1 * spacing + half <= cutoff:
        raise ValueError(
            "region_coordination must have R_FULL and R_NONE (Å) where atoms have no neighbours within the"
            f" longest cutoff of the experts, {cutoff:g} Å: write LOW,HIGH,R_FULL,R_NONE."
        )
    middles = np.arange(1.1 * spacing, min(1.6 * spacing, cutoff - half) + 1e-9, 0.005 * spacing)
    ordered = np.sort(distance)
    counts = np.searchsorted(ordered, middles + half) - np.searchsorted(ordered, middles - half)
    fewest = np.flatnonzero(counts == counts.min())
    longest_run = max(np.split(fewest, np.flatnonzero(np.diff(fewest) > 1) + 1), key=len)
    middle = float(middles[longest_run].mean())
    usual = np.median(np.bincount(i[distance < middle], minlength=len(atoms)))
    return middle - half, middle + half, float(usual)


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

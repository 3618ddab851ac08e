"""The slab of the demonstration and of `moe-md bench`: CO on Pt(111) and its region."""

import numpy as np
from ase import Atoms

from moe_md import regions
from moe_md.checkpoint import Checkpoint
from moe_md.data.structures import co_covered_slab
from moe_md.experts.base import check_two_experts
from moe_md.neighbors.rows import image_pairs
from moe_md.settings import DemoSettings
from moe_md.timing import System

METAL = "Pt"
MARGIN = 0.6  # Å, atoms may move this far before the cheap expert meets C or O


def check_experts(model: Checkpoint) -> None:
    """Raise `ValueError` unless the checkpoint holds two experts for Pt, C and O."""
    check_two_experts(model.experts, "experts of the checkpoint")
    missing = [s for s in (METAL, "C", "O") if s not in model.experts[0].species]
    if missing:
        raise ValueError(f"checkpoint must know Pt, C and O, got species {model.experts[0].species}.")


def build(model: Checkpoint, settings: DemoSettings, lattice_constant: float, dtype=np.float32) -> System:
    """The slab of the demonstration and its region.

    Args:
        model: two experts for Pt, C and O.
        settings: size of the slab.
        lattice_constant: Å.
        dtype: of positions and box.

    Returns:
        The system; CO and the layers near it are on the expensive expert.

    Raises:
        ValueError: the checkpoint does not hold two experts, or lacks a species.
    """
    check_experts(model)
    atoms = co_covered_slab(
        METAL, lattice_constant, settings.columns, settings.rows, settings.layers, vacuum=settings.vacuum
    )
    species = np.array([model.experts[0].species.index(s) for s in atoms.symbols], np.int32)
    region = regions.slab(atoms.positions, lower=lower_plane(atoms, model.experts[1].cutoff))
    return System(atoms, atoms.positions.astype(dtype), atoms.cell.lengths().astype(dtype), species, region)


def lower_plane(atoms: Atoms, cutoff: float, margin: float = MARGIN) -> float:
    """Height between two layers above which all atoms are on the expensive expert.

    Args:
        atoms: from `co_covered_slab`.
        cutoff: Å, of the cheap expert.
        margin: Å, added to it.

    Returns:
        Å. Below the plane no atom has C or O within `cutoff + margin`.

    Raises:
        ValueError: every layer has C or O within that distance.
    """
    tags, is_metal = atoms.get_tags(), np.array(atoms.symbols) == METAL
    i, j, _ = image_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff + margin)
    layers = tags[i[is_metal[i] & ~is_metal[j]]]
    deepest = int(layers.max(initial=1))
    if deepest >= tags.max():
        raise ValueError(
            f"layers must be more than {deepest}, all of which have CO within {cutoff + margin:.2f} Å, got"
            f" {tags.max()}."
        )
    heights = [atoms.positions[tags == layer, 2].mean() for layer in (deepest, deepest + 1)]
    return float(np.mean(heights))

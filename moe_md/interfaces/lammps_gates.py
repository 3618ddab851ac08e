"""Gates of a region over the atoms that one rank of LAMMPS holds: its own, and ghosts.

Ghosts are images, so that displacements are differences, and a seed stands
wherever one of its images does.
"""

from dataclasses import replace

import numpy as np

from moe_md.interfaces.cached_rows import bucket_size
from moe_md.regions.combined import Complement, Nested, Union
from moe_md.regions.described import Descriptor
from moe_md.regions.following import Around
from moe_md.regions.protocol import Region
from moe_md.regions.static import Fixed, Weighted


def reach(region: Region) -> float:
    """Å, how far from an atom others lie that have a say in its weights.

    Raises:
        ValueError: a region that LAMMPS cannot hold.
    """
    match region:
        case Fixed() | Weighted():
            return 0.0
        case Around():
            return float(region.r_core) + float(region.r_blend)
        case Descriptor():
            return region.cutoff
        case Complement():
            return reach(region.region)
        case Union() | Nested():
            return max(map(reach, region.regions))
    raise ValueError(
        "region must be one of fixed, slab, sphere, around, coordination, "
        f"committee, descriptor, or a union, complement or nest of these, got {type(region).__name__}."
    )


def sight(region: Region) -> float:
    """Å, up to which a gate asks for the neighbours of each atom."""
    match region:
        case Descriptor():
            return region.cutoff
        case Complement():
            return sight(region.region)
        case Union() | Nested():
            return max(map(sight, region.regions))
    return 0.0


def check(region: Region, n_atoms: int, n_experts: int) -> None:
    """Raise `ValueError` where a region is not of so many atoms and experts."""
    found = _n_experts(region)
    if found != n_experts:
        raise ValueError(f"region must be of the {n_experts} experts of the checkpoint, got one of {found}.")
    _check_atoms(region, n_atoms)


def of_held(region: Region, index: np.ndarray) -> Region:
    """The region of a rank's atoms instead of the whole system's.

    Args:
        region: of the whole system.
        index: `[n]` int, the atom that each one is an image of, -1 for none;
            the last one is none, and far from all others.
    """
    match region:
        case Fixed():
            return replace(region, assignment=np.asarray(region.assignment)[index])
        case Weighted():
            return replace(region, weights=np.asarray(region.weights)[index])
        case Around():
            seeds = np.flatnonzero(np.isin(index, np.asarray(region.seeds))).astype(np.int32)
            spare = (0, bucket_size(len(seeds) + 1) - len(seeds))
            return replace(region, seeds=np.pad(seeds, spare, constant_values=len(index) - 1))
        case Complement():
            return replace(region, region=of_held(region.region, index))
        case Union() | Nested():
            return replace(region, regions=tuple(of_held(part, index) for part in region.regions))
    return region


def _n_experts(region: Region) -> int:
    match region:
        case Fixed():
            return region.n_experts
        case Weighted():
            return region.weights.shape[1]
        case Nested():
            return len(region.regions) + 1
    return 2


def _check_atoms(region: Region, n_atoms: int) -> None:
    match region:
        case Fixed() | Weighted():
            found = len(region.assignment if isinstance(region, Fixed) else region.weights)
            if found != n_atoms:
                raise ValueError(f"region must assign each of the {n_atoms} atoms, got a length of {found}.")
        case Around():
            if int(region.seeds.max()) >= n_atoms:
                raise ValueError(
                    f"region must have seeds below the number of atoms, {n_atoms}, "
                    f"got {int(region.seeds.max())}."
                )
        case Complement():
            _check_atoms(region.region, n_atoms)
        case Union() | Nested():
            for part in region.regions:
                _check_atoms(part, n_atoms)

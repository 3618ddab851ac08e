"""Environments of atoms, rules that assign atoms to experts, and distances to the expert boundary.

Atoms of the species of a crystal are classified by coordination: their number of neighbours of these
species, nearer than `bond_cutoff`, against that of their species in the perfect crystal.

    adsorbate    not a species of the crystal (on the surface or in the gas phase)
    surface      fewer neighbours than in the crystal (also at vacancies, steps and adatoms)
    subsurface   as many or more, at least one of them a surface atom
    bulk         as many or more, none of them a surface atom

A rule is a function of a frame that returns the owner of each atom: the number of its
expert, 0 for the expensive one.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from ase import Atoms
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped

from moe_md.data.reading import Frame
from moe_md.neighbors.rows import image_pairs
from moe_md.renamed import missing_attribute

ENVIRONMENTS = ("bulk", "subsurface", "surface", "adsorbate")
LONGEST_BOND = 1.6  # largest length of a bond, in distances of nearest neighbours
# Lengths in nearest-neighbour distances of the crystal.
LAYER_GAP_FACTOR = 0.35  # smallest difference in height of two layers
VACUUM_FACTOR = 2.5  # smallest height without atoms that separates two slabs

Rule = Callable[[Frame], Int[np.ndarray, " atoms"]]


def bond_cutoff(atoms: Atoms) -> float:
    """Distance below which two atoms of a crystal are neighbours, Å.

    The middle of the widest gap between distances of neighbours, among those from d to 1.6 d. Every
    atom has a neighbour within d: it is the largest of the atoms' nearest-neighbour distances. In fcc
    this is 1.21 d (12 neighbours), in bcc 1.38 d (14, of two shells), in diamond 1.30 d (4).

    Args:
        atoms: a perfect crystal, periodic in all directions.

    >>> from ase.build import bulk
    >>> round(bond_cutoff(bulk("Pt", a=3.98)) / 3.98 * 2**0.5, 2)
    1.21
    """
    d = _longest_nearest(atoms)
    _, _, D = image_pairs(atoms.positions, atoms.cell.array, atoms.pbc, LONGEST_BOND * d)
    length = np.sort(np.linalg.norm(D, axis=1))
    length = np.append(length[length > d * (1 - 1e-6)], LONGEST_BOND * d)
    widest = int(np.argmax(np.diff(length)))
    return float(length[widest : widest + 2].mean())


def coordination(atoms: Atoms, cutoff: float) -> dict[str, int]:
    """Number of neighbours of each species in a perfect crystal, the smallest among its sites.

    Args:
        atoms: a perfect crystal, periodic in all directions.
        cutoff: Å, from `bond_cutoff`.

    >>> from ase.build import bulk
    >>> silicon = bulk("Si")
    >>> coordination(silicon, bond_cutoff(silicon))
    {'Si': 4}
    """
    i, _, _ = image_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    counts = np.bincount(i, minlength=len(atoms))
    symbols = np.array(atoms.get_chemical_symbols())
    return {str(s): int(counts[symbols == s].min()) for s in np.unique(symbols)}


def bonds_per_area(atoms: Atoms, cutoff: float) -> float:
    """Number of bonds of a crystal that cross a plane, per area and averaged over its orientation, 1/Å^2.

    A bond b crosses a plane of normal n where it starts within |b.n| of it. With N bonds per volume
    these are N |b.n| per area, and |b.n| is |b| / 2 on average. So the number is half of the length of
    bonds per volume, the relation P_A = L_V / 2 of stereology. For fcc it is 3 sqrt(2) / d^2.

    Args:
        atoms: a perfect crystal, periodic in all directions.
        cutoff: Å, from `bond_cutoff`.

    Source:
        S. A. Saltykov, Stereometric Metallography (1958); E. E. Underwood, Quantitative Stereology (1970).

    >>> from ase.build import bulk
    >>> platinum = bulk("Pt", a=2**0.5)  # nearest-neighbour distance 1 Å
    >>> round(bonds_per_area(platinum, bond_cutoff(platinum)) / (3 * 2**0.5), 6)
    1.0
    """
    _, _, D = image_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    bond_length = 0.5 * np.linalg.norm(D, axis=1).sum()  # each bond is found from both of its atoms
    return float(0.5 * bond_length / atoms.get_volume())


def environments(
    frame: Frame, coordination: Mapping[str, int], bond_cutoff: float
) -> Shaped[np.ndarray, " atoms"]:
    """Classify each atom by its environment.

    Args:
        frame: any structure.
        coordination: number of neighbours of each species in the perfect crystal, from `coordination`.
            Other species are adsorbates.
        bond_cutoff: Å, from `bond_cutoff`: atoms of these species nearer than this are neighbours,
            images included.

    Returns:
        Strings, each one of `ENVIRONMENTS`.

    Raises:
        ValueError: `bond_cutoff` is not positive.

    >>> from moe_md.data.structures import fcc_slab
    >>> slab = fcc_slab("Pt", 3.98, (1, 1, 5))
    >>> environments(slab, {"Pt": 12}, 3.4).tolist()
    ['surface', 'subsurface', 'bulk', 'subsurface', 'surface']
    """
    if not 0 < bond_cutoff < np.inf:
        raise ValueError(f"bond_cutoff must be positive (Å), got {bond_cutoff}.")
    of_crystal = np.isin(frame.symbols, list(coordination))
    expected = np.array([coordination.get(symbol, 0) for symbol in frame.symbols])
    i, j, _ = image_pairs(frame.positions, frame.cell, frame.pbc, bond_cutoff)
    both = of_crystal[i] & of_crystal[j]
    i, j = i[both], j[both]
    at_surface = np.bincount(i, minlength=len(of_crystal)) < expected
    next_to_surface = np.zeros(len(of_crystal), bool)
    next_to_surface[i[at_surface[j]]] = True
    return np.select(
        [~of_crystal, at_surface, next_to_surface], ["adsorbate", "surface", "subsurface"], "bulk"
    )


def near_other_species(domain: Sequence[str], distance: float) -> Rule:
    """Rule that gives the expensive expert all out-of-domain species and all atoms near them.

    Args:
        domain: species that the cheap expert may meet, its `allowed_species`.
        distance: Å from any other species within which atoms are the expensive
            expert's; the cheap expert's cutoff and a margin for moving atoms.
    """

    def rule(frame: Frame) -> Int[np.ndarray, " atoms"]:
        out_of_domain = ~np.isin(frame.symbols, list(domain))
        owner = np.where(out_of_domain, 0, 1)
        if out_of_domain.any():
            i, j, _ = image_pairs(frame.positions, frame.cell, frame.pbc, distance)
            owner[i[out_of_domain[j]]] = 0
        return owner

    return rule


def top_layers(domain: Sequence[str], n_layers: int, nearest: float) -> Rule:
    """Rule that gives the expensive expert all out-of-domain species and the uppermost layers of a slab.

    A frame is a slab where at least `VACUUM_FACTOR` nearest-neighbour distances
    along its third axis contain no atom of these species. Two layers differ in height by more than
    `LAYER_GAP_FACTOR` such distances. In other frames the cheap expert owns all
    atoms of its species.

    Args:
        domain: species that the cheap expert may meet, its `allowed_species`.
        n_layers: number of layers on the expensive expert, from the top.
        nearest: Å, nearest-neighbour distance of the crystal.
    """

    def rule(frame: Frame) -> Int[np.ndarray, " atoms"]:
        out_of_domain = ~np.isin(frame.symbols, list(domain))
        owner, own = np.where(out_of_domain, 0, 1), np.flatnonzero(~out_of_domain)
        height = _heights_in_slab(frame, own, nearest)
        if height is not None and n_layers > 0:
            order = np.argsort(-height)
            layer = np.cumsum(np.append(0, -np.diff(height[order]) > LAYER_GAP_FACTOR * nearest))
            owner[own[order[layer < n_layers]]] = 0
        return owner

    return rule


def _heights_in_slab(frame: Frame, own: np.ndarray, nearest: float) -> np.ndarray | None:
    """Heights of some atoms above the vacuum below the slab, `[n]` Å; None where there is no vacuum."""
    if len(own) == 0 or not np.any(frame.cell[2]):
        return None
    normal = np.cross(frame.cell[0], frame.cell[1])
    if not np.any(normal):
        normal = frame.cell[2]
    normal = normal / np.linalg.norm(normal)
    height = frame.positions[own] @ normal
    if not frame.pbc[2]:
        return height
    period = abs(frame.cell[2] @ normal)
    sorted_height = np.sort(height % period)
    gaps = np.diff(sorted_height, append=sorted_height[0] + period)
    widest = int(np.argmax(gaps))
    if gaps[widest] < VACUUM_FACTOR * nearest:
        return None
    return (height - sorted_height[(widest + 1) % len(sorted_height)] + 1e-6) % period


def boundary_distance(
    frame: Frame, owner: Int[ArrayLike, " atoms"] | Sequence, *, max_distance: float = 12.0
) -> Float[np.ndarray, " atoms"]:
    """Signed distance of each atom to the nearest atom of the other expert, images included.

    Args:
        frame: the structure.
        owner: 0 inside the region.
        max_distance: Å, distances are searched up to this one.

    Returns:
        Å: positive inside the region, negative outside, infinite
        (with that sign) where no atom of the other expert is within `max_distance`.

    Raises:
        ValueError: `owner` is not one number per atom.
    """
    owner = _checked_owner(owner, frame)
    i, j, D = image_pairs(frame.positions, frame.cell, frame.pbc, max_distance)
    across = owner[i] != owner[j]
    nearest = np.full(len(owner), np.inf)
    np.minimum.at(nearest, i[across], np.linalg.norm(D[across], axis=1))
    return np.where(owner == 0, nearest, -nearest)


def bonds_across(frame: Frame, owner: Int[ArrayLike, " atoms"] | Sequence, bond_cutoff: float) -> int:
    """Number of bonds between atoms of different experts.

    Args:
        frame: the structure.
        owner: the expert of each atom.
        bond_cutoff: Å, atoms nearer than this are bonded, images included.

    Raises:
        ValueError: `owner` is not one number per atom.
    """
    owner = _checked_owner(owner, frame)
    i, j, _ = image_pairs(frame.positions, frame.cell, frame.pbc, bond_cutoff)
    return int(np.sum(owner[i] != owner[j])) // 2


def _longest_nearest(atoms: Atoms) -> float:
    """Largest of the atoms' distances to their nearest neighbour, images included, Å."""
    cutoff = 2.0 * (atoms.get_volume() / len(atoms)) ** (1 / 3)
    while True:
        i, _, D = image_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
        if len(np.unique(i)) == len(atoms):
            nearest = np.full(len(atoms), np.inf)
            np.minimum.at(nearest, i, np.linalg.norm(D, axis=1))
            return float(nearest.max())
        cutoff *= 1.5


def _checked_owner(owner, frame: Frame) -> np.ndarray:
    """`owner` as an array; raises `ValueError` unless it holds one number per atom."""
    owner = np.asarray(owner)
    if owner.shape != (len(frame.symbols),):
        raise ValueError(f"owner must have shape [{len(frame.symbols)}], one per atom, got {owner.shape}.")
    return owner


def __getattr__(name: str):
    raise missing_attribute(__name__, name)

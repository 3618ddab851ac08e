"""Environments of atoms, rules that assign atoms to experts, and distances to the expert boundary.

Metal atoms are classified by coordination. Two are neighbours where their distance
is below `bond_cutoff`, usually 1.2 times the nearest-neighbour distance: half way
between the first two neighbour shells of an fcc crystal.

    adsorbate    not a metal atom (on the surface or in the gas phase)
    surface      fewer than 12 neighbours (also at vacancies, steps and adatoms)
    subsurface   12 or more neighbours, at least one of them a surface atom
    bulk         12 or more neighbours, none of them a surface atom

A rule is a function of a frame that returns the owner of each atom: the number of its
expert, 0 for the expensive one.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Shaped

from moe_md.data.reading import Frame
from moe_md.neighbors.rows import image_pairs

ENVIRONMENTS = ("bulk", "subsurface", "surface", "adsorbate")
# Lengths in nearest-neighbour distances of the metal.
BOND_CUTOFF_FACTOR = 1.2  # largest length of a bond
LAYER_GAP_FACTOR = 0.35  # smallest difference in height of two layers
VACUUM_FACTOR = 2.5  # smallest height without atoms that separates two slabs
FCC_COORDINATION = 12

Rule = Callable[[Frame], Int[np.ndarray, " atoms"]]


def environments(frame: Frame, metal: Sequence[str], bond_cutoff: float) -> Shaped[np.ndarray, " atoms"]:
    """Classify each atom by its environment.

    Args:
        frame: any structure.
        metal: chemical symbols of the metals.
        bond_cutoff: Å, metal atoms nearer than this are neighbours, images included.

    Returns:
        Strings, each one of `ENVIRONMENTS`.

    Raises:
        ValueError: `bond_cutoff` is not positive.

    >>> from moe_md.data.structures import fcc_slab
    >>> slab = fcc_slab("Pt", 3.98, (1, 1, 5))
    >>> environments(slab, ("Pt",), BOND_CUTOFF_FACTOR * 3.98 / 2**0.5).tolist()
    ['surface', 'subsurface', 'bulk', 'subsurface', 'surface']
    """
    if not 0 < bond_cutoff < np.inf:
        raise ValueError(f"bond_cutoff must be positive (Å), got {bond_cutoff}.")
    is_metal = np.isin(frame.symbols, list(metal))
    i, j, _ = image_pairs(frame.positions, frame.cell, frame.pbc, bond_cutoff)
    both_metal = is_metal[i] & is_metal[j]
    i, j = i[both_metal], j[both_metal]
    at_surface = np.bincount(i, minlength=len(is_metal)) < FCC_COORDINATION
    next_to_surface = np.zeros(len(is_metal), bool)
    next_to_surface[i[at_surface[j]]] = True
    return np.select([~is_metal, at_surface, next_to_surface], ["adsorbate", "surface", "subsurface"], "bulk")


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
    along its third axis contain no metal. Two layers differ in height by more than
    `LAYER_GAP_FACTOR` such distances. In other frames the cheap expert owns all
    atoms of its species.

    Args:
        domain: species that the cheap expert may meet, its `allowed_species`.
        n_layers: number of metal layers on the expensive expert, from the top.
        nearest: Å, nearest-neighbour distance of the metal.
    """

    def rule(frame: Frame) -> Int[np.ndarray, " atoms"]:
        out_of_domain = ~np.isin(frame.symbols, list(domain))
        owner, metal = np.where(out_of_domain, 0, 1), np.flatnonzero(~out_of_domain)
        height = _heights_in_slab(frame, metal, nearest)
        if height is not None and n_layers > 0:
            order = np.argsort(-height)
            layer = np.cumsum(np.append(0, -np.diff(height[order]) > LAYER_GAP_FACTOR * nearest))
            owner[metal[order[layer < n_layers]]] = 0
        return owner

    return rule


def _heights_in_slab(frame: Frame, metal: np.ndarray, nearest: float) -> np.ndarray | None:
    """Heights of metal atoms above the vacuum below the slab, `[n]` Å; None where there is no vacuum."""
    if len(metal) == 0 or not np.any(frame.cell[2]):
        return None
    normal = np.cross(frame.cell[0], frame.cell[1])
    if not np.any(normal):
        normal = frame.cell[2]
    normal = normal / np.linalg.norm(normal)
    height = frame.positions[metal] @ normal
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


def _checked_owner(owner, frame: Frame) -> np.ndarray:
    """`owner` as an array; raises `ValueError` unless it holds one number per atom."""
    owner = np.asarray(owner)
    if owner.shape != (len(frame.symbols),):
        raise ValueError(f"owner must have shape [{len(frame.symbols)}], one per atom, got {owner.shape}.")
    return owner

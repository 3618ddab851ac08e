"""What the atoms of a frame are, which expert a rule gives them to, and how far they are from the seam.

Metal atoms are told apart by coordination. Two are neighbours where they are
nearer than `bond`, by custom 1.2 times the nearest-neighbour distance: half way
between the first two shells of an fcc crystal.

    adsorbate    any atom that is not metal, gas-phase molecules too
    surface      fewer than 12 neighbours (vacancies, steps and adatoms have such atoms too)
    subsurface   12 or more, one of them a surface atom
    bulk         12 or more, none of them a surface atom

A rule is a function of a frame that returns the expert of each atom, `[n_atoms]`
int, 0 for the expensive one.
"""

from collections.abc import Callable, Sequence

import numpy as np

from moe_md.data.reading import Frame
from moe_md.neighbors.rows import image_pairs

ENVIRONMENTS = ("bulk", "subsurface", "surface", "adsorbate")
SHELL = 1.2  # of the nearest-neighbour distance: what counts as a bond
FULL = 12  # neighbours of an fcc atom
LAYER_GAP = 0.35  # of the nearest-neighbour distance: parts two layers
VACUUM = 2.5  # nearest-neighbour distances without atoms: a slab ends

Rule = Callable[[Frame], np.ndarray]


def environments(frame: Frame, metal: Sequence[str], bond: float) -> np.ndarray:
    """The environment of each atom.

    Args:
        frame: any structure.
        metal: chemical symbols of what counts as metal.
        bond: Å, metal atoms nearer than this are neighbours, images included.

    Returns:
        `[n_atoms]` of `ENVIRONMENTS`.

    Raises:
        ValueError: `bond` is not positive.

    >>> from moe_md.data.structures import fcc_slab
    >>> slab = fcc_slab("Pt", 3.98, (1, 1, 5))
    >>> environments(slab, ("Pt",), SHELL * 3.98 / 2**0.5).tolist()
    ['surface', 'subsurface', 'bulk', 'subsurface', 'surface']
    """
    if not 0 < bond < np.inf:
        raise ValueError(f"bond must be positive (Å), got {bond}.")
    is_metal = np.isin(frame.symbols, list(metal))
    i, j, _ = image_pairs(frame.positions, frame.cell, frame.pbc, bond)
    both = is_metal[i] & is_metal[j]
    i, j = i[both], j[both]
    exposed = np.bincount(i, minlength=len(is_metal)) < FULL
    beside = np.zeros(len(is_metal), bool)
    beside[i[exposed[j]]] = True
    return np.select([~is_metal, exposed, beside], ["adsorbate", "surface", "subsurface"], "bulk")


def near_other_species(domain: Sequence[str], distance: float) -> Rule:
    """The expensive expert owns what the cheap one may not meet, and all atoms near it.

    Args:
        domain: species that the cheap expert may meet.
        distance: Å, from any other species; the cheap expert's cutoff and some
            room for atoms to move.
    """

    def rule(frame: Frame) -> np.ndarray:
        out_of_domain = ~np.isin(frame.symbols, list(domain))
        owner = np.where(out_of_domain, 0, 1)
        if out_of_domain.any():
            i, j, _ = image_pairs(frame.positions, frame.cell, frame.pbc, distance)
            owner[i[out_of_domain[j]]] = 0
        return owner

    return rule


def top_layers(domain: Sequence[str], n_layers: int, nearest: float) -> Rule:
    """The expensive expert owns what the cheap one may not meet, and the uppermost layers of a slab.

    A frame is a slab where `VACUUM` nearest-neighbour distances along its third
    axis hold no metal; its layers are parted by gaps of `LAYER_GAP` such
    distances. In other frames the cheap expert owns all that it may meet.

    Args:
        domain: species that the cheap expert may meet.
        n_layers: layers of metal of the expensive expert, from the top.
        nearest: Å, nearest-neighbour distance of the metal.
    """

    def rule(frame: Frame) -> np.ndarray:
        out_of_domain = ~np.isin(frame.symbols, list(domain))
        owner, metal = np.where(out_of_domain, 0, 1), np.flatnonzero(~out_of_domain)
        height = _heights_in_slab(frame, metal, nearest)
        if height is not None and n_layers > 0:
            order = np.argsort(-height)
            layer = np.cumsum(np.append(0, -np.diff(height[order]) > LAYER_GAP * nearest))
            owner[metal[order[layer < n_layers]]] = 0
        return owner

    return rule


def _heights_in_slab(frame: Frame, metal: np.ndarray, nearest: float) -> np.ndarray | None:
    """Heights of metal atoms over the vacuum below them, `[n]` Å; None where there is no vacuum."""
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
    ladder = np.sort(height % period)
    gaps = np.diff(ladder, append=ladder[0] + period)
    widest = int(np.argmax(gaps))
    if gaps[widest] < VACUUM * nearest:
        return None
    return (height - ladder[(widest + 1) % len(ladder)] + 1e-6) % period


def boundary_distance(frame: Frame, owner: np.ndarray, *, reach: float = 12.0) -> np.ndarray:
    """Signed distance of each atom to the nearest atom of the other expert, images included.

    Args:
        frame: the structure.
        owner: `[n_atoms]` int, 0 inside the region.
        reach: Å, how far to look.

    Returns:
        `[n_atoms]` Å: positive inside the region, negative outside, infinite
        (with that sign) where no atom of the other expert is within `reach`.

    Raises:
        ValueError: `owner` is not one number per atom.
    """
    owner = _checked(owner, frame)
    i, j, D = image_pairs(frame.positions, frame.cell, frame.pbc, reach)
    across = owner[i] != owner[j]
    nearest = np.full(len(owner), np.inf)
    np.minimum.at(nearest, i[across], np.linalg.norm(D[across], axis=1))
    return np.where(owner == 0, nearest, -nearest)


def bonds_across(frame: Frame, owner: np.ndarray, bond: float) -> int:
    """Bonds that join atoms of different experts.

    Args:
        frame: the structure.
        owner: `[n_atoms]` int.
        bond: Å, atoms nearer than this are bonded, images included.

    Raises:
        ValueError: `owner` is not one number per atom.
    """
    owner = _checked(owner, frame)
    i, j, _ = image_pairs(frame.positions, frame.cell, frame.pbc, bond)
    return int(np.sum(owner[i] != owner[j])) // 2


def _checked(owner, frame: Frame) -> np.ndarray:
    owner = np.asarray(owner)
    if owner.shape != (len(frame.symbols),):
        raise ValueError(f"owner must have shape [{len(frame.symbols)}], one per atom, got {owner.shape}.")
    return owner

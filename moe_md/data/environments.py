"""Unlabelled environments, drawn at random during training from reference structures.

An environment is a row: an atom with its neighbours. Training asks the experts to agree on rows
wherever the cheap one may own atoms: in strained and hot crystals, at vacancies, interstitials and
antisites, at surfaces, steps and adatoms, and in perfect crystals under strain. Of each reference all
atoms around one of its atoms are taken, as a cluster without periodic images; something is changed at
its centre; atoms are displaced at random; and the rows of a few atoms near the change are listed.
Structures of any size therefore cost the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.geometry import minkowski_reduce
from jaxtyping import Bool, Float, Int

from moe_md.data.planes import plane_normal, plane_spacing, widest_planes
from moe_md.data.reading import Frame, frame_from_atoms
from moe_md.data.references import Reference
from moe_md.neighbors.rows import Neighborhood, image_pairs
from moe_md.settings import EnvironmentSettings

ROWS_PER_CLUSTER = 4
KINDS = ("vacancies", "interstitials", "antisites", "surfaces")  # shares of `EnvironmentSettings`
PLANES = 4  # lattice planes of largest spacing along which surfaces are cut
NEAR_CHANGE = 0.5  # of the cutoff, standard deviation of the distance of rows from a change
FAR_ROWS = 0.02  # probability of rows far from a change, relative to those at it
TRIALS = 24  # random points around an atom, of which an interstitial takes the one farthest from all atoms
LONGEST_RATTLE = 4.0  # standard deviations, of one displacement
WIDEST = 8.0  # Å, search for the nearest atom


class Lattice(NamedTuple):
    """A reference with all atoms around its cell: atoms of the cell come first."""

    reference: Reference
    position: Float[np.ndarray, "points 3"]  # Å, every atom within `reach` of an atom of the cell
    species: Int[np.ndarray, " points"]  # index into the experts' species
    n_cell: int  # atoms of the cell
    reach: float  # Å, radius of clusters
    nearest: float  # Å, distance of nearest atoms
    planes: tuple[tuple[np.ndarray, float], ...]  # normal and spacing (Å); none where disordered


class Cluster(NamedTuple):
    """Atoms around the origin, one of which is changed or not."""

    position: Float[np.ndarray, "atoms 3"]  # Å
    species: Int[np.ndarray, " atoms"]
    far: Float[np.ndarray, " atoms"]  # Å, distance of each atom from what was changed; zero without a change


def lattice(
    reference: Reference, species: Sequence[str], cutoff: float, settings: EnvironmentSettings
) -> Lattice:
    """Make a reference ready.

    Args:
        reference: a crystal or a disordered structure.
        species: as `Expert.species`.
        cutoff: Å, the largest of the experts'.
        settings: for the largest strain and displacement.

    Raises:
        ValueError: an element is not among `species`.
    """
    atoms = reference.atoms
    for symbol in sorted(set(atoms.symbols) - set(species)):
        raise ValueError(
            f"references must have species of the experts, {', '.join(species)}, got {reference.formula} with"
            f" {symbol}."
        )
    numbers = np.array([list(species).index(symbol) for symbol in atoms.symbols])
    nearest = _nearest(atoms)
    spread = 2 * LONGEST_RATTLE * settings.max_rattle * nearest  # of two atoms against each other
    reach = (_row_radius(cutoff, nearest) + cutoff + spread) / (1 - 2 * settings.max_strain)
    cell, _ = minkowski_reduce(atoms.cell.array)
    cell = np.asarray(cell)
    # Of all images, those near any atom of the cell.
    wrapped = atoms.positions - atoms.positions[0]
    width = reach + np.linalg.norm(wrapped, axis=1).max()
    counts = np.ceil(width / (1 / np.linalg.norm(np.linalg.inv(cell), axis=0))).astype(int) + 1
    shifts = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in counts), indexing="ij"), -1).reshape(-1, 3)
    shifts = shifts[np.argsort(np.abs(shifts).sum(axis=1), kind="stable")]  # the cell itself first
    points = (wrapped[None] + (shifts @ cell)[:, None]).reshape(-1, 3)
    within = np.linalg.norm(points, axis=1) < width
    within[: len(atoms)] = True
    primitive = atoms.cell.array
    planes = widest_planes(primitive, PLANES) if reference.is_crystal else []
    return Lattice(
        reference,
        points[within],
        np.tile(numbers, len(shifts))[within],
        len(atoms),
        reach,
        nearest,
        tuple((plane_normal(primitive, hkl), plane_spacing(primitive, hkl)) for hkl in planes),
    )


def _nearest(atoms: Atoms) -> float:
    """Å, median over atoms of the distance to the nearest atom or image."""
    cutoff = WIDEST
    while True:
        i, _, displacement = image_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
        shortest = np.full(len(atoms), np.inf)
        np.minimum.at(shortest, i, np.linalg.norm(displacement, axis=1))
        if np.isfinite(shortest).all():
            return float(np.median(shortest))
        cutoff *= 2


def _row_radius(cutoff: float, nearest: float) -> float:
    """Å, distance from the origin within which atoms of a cluster may be centres."""
    return max(0.8 * cutoff, 1.5 * nearest)


def random_rows(
    rng: np.random.Generator, lattice: Lattice, settings: EnvironmentSettings, cutoff: float, n: int
) -> Neighborhood:
    """Rows of one random environment of a reference.

    Args:
        rng: random number generator.
        lattice: the reference, from `lattice`.
        settings: shares of the kinds, largest strain and displacement.
        cutoff: Å.
        n: number of rows, small: they are drawn near the change, with replacement where there are fewer.

    Returns:
        `n` rows, float32; `neighbor` is `n`, as the neighbours' own rows are not made.
    """
    cluster = _CHANGES[_kind(rng, lattice, settings)](rng, lattice, _around_an_atom(rng, lattice))
    near = np.flatnonzero(np.linalg.norm(cluster.position, axis=1) < _row_radius(cutoff, lattice.nearest))
    weight = np.exp(-0.5 * (cluster.far[near] / (NEAR_CHANGE * cutoff)) ** 2) + FAR_ROWS
    centers = rng.choice(near, n, replace=len(near) < n, p=weight / weight.sum())
    position = cluster.position @ (np.eye(3) + random_strain(rng, settings.max_strain, volume=True))
    sigma = rng.uniform(0.0, settings.max_rattle) * lattice.nearest
    position = position + sigma * rng.standard_normal(position.shape)
    return _rows(position, cluster.species, centers, cutoff)


def _kind(rng: np.random.Generator, lattice: Lattice, settings: EnvironmentSettings) -> str:
    """Kind of a random environment; strained where another is not possible."""
    draw = rng.random()
    for kind in KINDS:
        draw -= getattr(settings, kind)
        if draw < 0:
            one_species = kind == "antisites" and np.ptp(lattice.species) == 0
            return "strained" if one_species or not lattice.reference.is_crystal else kind
    return "strained"


def _around_an_atom(rng: np.random.Generator, lattice: Lattice) -> Cluster:
    """All atoms within reach of a random atom of the cell, which comes first, at the origin."""
    position = lattice.position - lattice.position[int(rng.integers(lattice.n_cell))]
    distance = np.linalg.norm(position, axis=1)
    within = np.flatnonzero(distance < lattice.reach)
    order = within[np.argsort(distance[within], kind="stable")]
    return Cluster(position[order], lattice.species[order], np.zeros(len(order)))


def _strained(rng: np.random.Generator, lattice: Lattice, cluster: Cluster) -> Cluster:
    return cluster


def _vacancy(rng: np.random.Generator, lattice: Lattice, cluster: Cluster) -> Cluster:
    """Without the atom at the origin."""
    distance = np.linalg.norm(cluster.position, axis=1)
    return Cluster(cluster.position[1:], cluster.species[1:], distance[1:])


def _interstitial(rng: np.random.Generator, lattice: Lattice, cluster: Cluster) -> Cluster:
    """With an atom of a random species of the crystal between the others."""
    trials = lattice.nearest * rng.uniform(-1.0, 1.0, (TRIALS, 3))
    distance = np.linalg.norm(trials[:, None] - cluster.position[None], axis=2).min(axis=1)
    spot = trials[int(np.argmax(distance))]
    added = rng.choice(cluster.species)
    position = np.concatenate([cluster.position, spot[None]])
    far = np.linalg.norm(position - spot, axis=1)
    return Cluster(position, np.append(cluster.species, added), far)


def _antisite(rng: np.random.Generator, lattice: Lattice, cluster: Cluster) -> Cluster:
    """The atom at the origin and a near one of another species have changed places."""
    distance = np.linalg.norm(cluster.position, axis=1)
    unlike = np.flatnonzero(cluster.species != cluster.species[0])[:ROWS_PER_CLUSTER]
    other = int(rng.choice(unlike))
    species = cluster.species.copy()
    species[[0, other]] = species[[other, 0]]
    return Cluster(cluster.position, species, distance)


def _surface(rng: np.random.Generator, lattice: Lattice, cluster: Cluster) -> Cluster:
    """Half of the crystal, cut at a random height: flat, with a step, or with an adatom on a lattice site."""
    normal, spacing = lattice.planes[int(rng.integers(len(lattice.planes)))]
    normal = normal * rng.choice([-1.0, 1.0])
    height = cluster.position @ normal
    cut = spacing * rng.random()
    keep = height <= cut
    draw = rng.random()
    if draw < 1 / 3:
        keep |= _step(rng, cluster, normal, (height > cut) & (height <= cut + spacing))
    elif draw < 2 / 3:
        keep |= _adatom(cluster, normal, height, height > cut)
    return Cluster(cluster.position[keep], cluster.species[keep], np.maximum(cut - height[keep], 0.0))


def _step(rng, cluster: Cluster, normal: np.ndarray, layer: np.ndarray) -> Bool[np.ndarray, " atoms"]:
    """Atoms of a layer on one side of a line through the origin, along a bond's projection on the layer."""
    for bond in cluster.position[1 + rng.permutation(min(12, len(cluster.position) - 1))]:
        across = np.cross(normal, bond)
        if np.linalg.norm(across) > 0.3 * np.linalg.norm(bond):
            return layer & (cluster.position @ across <= 1e-6)
    return np.zeros(len(layer), bool)


def _adatom(
    cluster: Cluster, normal: np.ndarray, height: np.ndarray, removed: np.ndarray
) -> Bool[np.ndarray, " atoms"]:
    """The removed atom that lies lowest near the origin."""
    lateral = np.linalg.norm(cluster.position - height[:, None] * normal, axis=1)
    score = np.where(removed, height + 0.1 * lateral, np.inf)
    return np.arange(len(height)) == int(np.argmin(score))


_CHANGES = {
    "strained": _strained,
    "vacancies": _vacancy,
    "interstitials": _interstitial,
    "antisites": _antisite,
    "surfaces": _surface,
}


def _rows(
    position: Float[np.ndarray, "atoms 3"],
    species: Int[np.ndarray, " atoms"],
    centers: Int[np.ndarray, " n"],
    cutoff: float,
) -> Neighborhood:
    """Rows of some atoms of a cluster."""
    displacement = position[None] - position[centers][:, None]
    near = np.sum(displacement**2, axis=2) < cutoff**2
    near[np.arange(len(centers)), centers] = False
    n, width = len(centers), max(int(near.sum(axis=1).max()), 1)
    order = np.argsort(~near, axis=1, kind="stable")[:, :width]
    mask = np.take_along_axis(near, order, axis=1)
    chosen = np.take_along_axis(displacement, order[..., None], axis=1)
    return Neighborhood(
        displacement=np.where(mask[..., None], chosen, 1.0).astype(np.float32),
        mask=mask,
        center_species=species[centers].astype(np.int32),
        neighbor_species=np.where(mask, species[order], 0).astype(np.int32),
        neighbor=np.full((n, width), n, np.int32),
    )


def perfect_crystal(
    rng: np.random.Generator, lattice: Lattice, isotropic: float, settings: EnvironmentSettings
) -> Frame:
    """The cell of a crystal under strain, its sublattices displaced against each other.

    Positions of strained cells whose atoms have relaxed lie among those drawn.

    Args:
        rng: random number generator.
        lattice: the crystal.
        isotropic: relative change of all lengths. A symmetric strain is added whose components are at
            most half of `max_perfect_strain`, times a factor uniform between 0 and 1. Each coordinate of
            a sublattice moves by a normal deviate times the same share of the nearest distance.
        settings: for `max_perfect_strain`.

    Returns:
        A frame without labels.
    """
    largest = 0.5 * settings.max_perfect_strain
    strain = random_strain(rng, largest * rng.random()) + isotropic * np.eye(3)
    atoms = lattice.reference.atoms.copy()
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    if len(atoms) > 1:
        shift = largest * rng.random() * lattice.nearest
        atoms.positions += shift * rng.standard_normal(atoms.positions.shape)
    return frame_from_atoms(atoms)._replace(kind="perfect", group="perfect")


def random_strain(rng: np.random.Generator, largest: float, *, volume: bool = False) -> np.ndarray:
    """A symmetric `[3, 3]` strain, each component at most `largest`; `volume` adds a change of volume."""
    strain = rng.uniform(-largest, largest, (3, 3))
    strain = 0.5 * (strain + strain.T)
    return strain + rng.uniform(-largest, largest) / 3.0 * np.eye(3) if volume else strain

"""Gates of a region over the atoms that one rank of LAMMPS holds: its own, and ghosts.

Ghosts are images, so that displacements are differences, and a seed stands
wherever one of its images does. With E = sum_i sum_e w_ie E_ie the gates' part
of the force on an owned atom is -sum_ie E_ie dw_ie/dR, over owned atoms and
ghosts, and of the virial sum_ie E_ie dw_ie/d strain, over owned ones.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.spatial import cKDTree

from moe_md.interfaces.ase import _roomy
from moe_md.neighbor_list import NeighborList
from moe_md.neighborhood import image_pairs
from moe_md.regions.combined import Complement, Nested, Union
from moe_md.regions.described import Descriptor
from moe_md.regions.following import Around
from moe_md.regions.protocol import Region, Sphere, Surroundings
from moe_md.regions.static import Fixed, Weighted


class Held(NamedTuple):
    """What gates are asked about: all atoms of a rank, and some far away that fill the arrays."""

    region: Region  # of these atoms
    position: np.ndarray  # [n, 3] Å
    species: np.ndarray  # [n] int
    idx: np.ndarray  # [n, K] int, neighbours, n where none
    others: tuple  # [n_centers, K] int for each sphere that the region wants, n where none


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
        "region must be one of fixed, slab, sphere, around, coordination, committee, descriptor, or a union, complement or nest of these, "
        f"got {type(region).__name__}."
    )


def check_atoms(region: Region, n_atoms: int) -> None:
    """Raise `ValueError` where a region is not of so many atoms."""
    match region:
        case Fixed() | Weighted():
            found = len(region.assignment if isinstance(region, Fixed) else region.weights)
            if found != n_atoms:
                raise ValueError(f"region must assign each of the {n_atoms} atoms, got a length of {found}.")
        case Around():
            if int(region.seeds.max()) >= n_atoms:
                raise ValueError(f"region must have seeds below the number of atoms, {n_atoms}, got {int(region.seeds.max())}.")
        case Complement():
            check_atoms(region.region, n_atoms)
        case Union() | Nested():
            for part in region.regions:
                check_atoms(part, n_atoms)


def hold(region: Region, position: np.ndarray, index: np.ndarray, species: np.ndarray, dtype) -> Held:
    """Arrays of roomy sizes, so that few programs are compiled.

    Args:
        region: of the whole system.
        position: `[n_held, 3]` Å.
        index: `[n_held]` int, the atom of the region that each one is an image of.
        species: `[n_held]` int.
        dtype: of the positions.
    """
    n_held = len(position)
    n = _roomy(n_held + 1)
    far = np.zeros((n - n_held, 3))
    far[:, 0] = np.max(position, initial=0.0) + 1e3 * np.arange(1, n - n_held + 1)
    position = np.concatenate([position, far])
    index, species = (np.pad(x, (0, n - n_held)) for x in (index, species))
    index[n_held:] = -1
    local = _of_held(region, index)
    tree = cKDTree(position)
    others = tuple(_near(tree, position, s, n) for s in jax.tree.leaves(local.spheres(0.0), is_leaf=_is_sphere))
    idx = np.full((n, 1), n, np.int32)
    seen = _sight(region)
    if seen:
        i, j, _ = image_pairs(position, np.zeros((3, 3)), np.zeros(3, bool), seen)
        count = np.bincount(i, minlength=n)
        idx = np.full((n, _roomy(int(count.max(initial=1)))), n, np.int32)
        idx[i, np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)] = j
    return Held(local, position.astype(dtype), species.astype(np.int32), idx, others)


@partial(jax.jit, static_argnames="cutoff")
def weights(held: Held, *, cutoff: float) -> Array:
    """`[n, n_experts]`; those of atoms at the rim of what is held mean nothing."""
    return _gate(held, held.position, None, cutoff)


@partial(jax.jit, static_argnames="cutoff")
def pull(held: Held, energies: Array, owned: Array, *, cutoff: float) -> tuple[Array, Array]:
    """The gates' part of forces, `[n, 3]` eV/Å, and of the virial of owned atoms, `[3, 3]` eV.

    Args:
        held: the atoms.
        energies: `[n, n_experts]` eV, zero where weights have no slope.
        owned: `[n]` bool.
        cutoff: Å, of the neighbours in `held`.
    """

    def total(position, strain, counted):
        return jnp.sum(jnp.where(counted[:, None], _gate(held, position, strain, cutoff) * energies, 0.0))

    still = jnp.eye(3, dtype=held.position.dtype)
    force = -jax.grad(total)(held.position, None, jnp.ones_like(owned))
    slope = jax.grad(total, argnums=1)(held.position, still, owned)
    return force, 0.5 * (slope + slope.T)


def _gate(held: Held, position: Array, strain: Array | None, cutoff: float) -> Array:
    n = position.shape[0]

    def displacement(a, b):
        return a - b if strain is None else (a - b) @ strain.T

    wishes, shape = jax.tree.flatten(held.region.spheres(0.0), is_leaf=_is_sphere)
    lists = [
        NeighborList((idx,), position, jnp.eye(3), jnp.asarray(wish.reach)[None], wish.centers, jnp.zeros((), bool), (1, 1, 1), n)
        for wish, idx in zip(wishes, held.others, strict=True)
    ]
    return held.region.gate(position, displacement, Surroundings(held.species, held.idx, cutoff, jax.tree.unflatten(shape, lists)))


def _of_held(region: Region, index: np.ndarray) -> Any:
    """The region of these atoms instead of the whole system's."""
    match region:
        case Fixed():
            return replace(region, assignment=np.asarray(region.assignment)[index])
        case Weighted():
            return replace(region, weights=np.asarray(region.weights)[index])
        case Around():
            seeds = np.flatnonzero(np.isin(index, np.asarray(region.seeds))).astype(np.int32)
            # The last atom is far from all others.
            return replace(region, seeds=np.pad(seeds, (0, _roomy(len(seeds) + 1) - len(seeds)), constant_values=len(index) - 1))
        case Complement():
            return replace(region, region=_of_held(region.region, index))
        case Union() | Nested():
            return replace(region, regions=tuple(_of_held(part, index) for part in region.regions))
    return region


def _sight(region: Region) -> float:
    """Å, up to which neighbours are asked for."""
    match region:
        case Descriptor():
            return region.cutoff
        case Complement():
            return _sight(region.region)
        case Union() | Nested():
            return max(map(_sight, region.regions))
    return 0.0


def _near(tree: cKDTree, position: np.ndarray, wish: Sphere, n: int) -> np.ndarray:
    centers = np.asarray(wish.centers)
    found = tree.query_ball_point(position[centers], float(wish.reach) + 1e-6)
    found = [[j for j in atoms if j != center] for center, atoms in zip(centers, found)]
    out = np.full((len(centers), _roomy(max([1, *map(len, found)]))), n, np.int32)
    for row, atoms in zip(out, found):
        row[: len(atoms)] = atoms
    return out


def _is_sphere(x) -> bool:
    return isinstance(x, Sphere)

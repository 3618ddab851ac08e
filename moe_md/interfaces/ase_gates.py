"""Weights of a region over ASE's atoms, in any cell, and what their change adds to forces and stress.

With E = sum_i sum_e w_ie E_ie the gates' part of the force is -sum_ie E_ie dw_ie/dR,
and of the virial sum_ie E_ie dw_ie/d strain.
"""

from functools import partial
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moe_md.interfaces.cached_rows import When
from moe_md.mixture.checks import warn_of_wide_requests
from moe_md.neighbors.neighbor_list import NeighborList, perpendicular_widths
from moe_md.neighbors.rows import closer
from moe_md.regions.protocol import NeighborRequest, Region, RegionNeighbors

Leaf = TypeVar("Leaf", Array, np.ndarray)  # under jit; on the host


class Place(NamedTuple, Generic[Leaf]):
    """What gates are asked about."""

    position: Leaf  # [n_atoms, 3] Å
    cell: Leaf  # [3, 3] Å, lattice vectors as rows
    pbc: Leaf  # [3] bool
    species: Leaf  # [n_atoms] int
    idx: Leaf  # [n_atoms, K] int, neighbours of every atom, n_atoms where none


def neighbors_of_all(at: When, pairs, cutoff: float, skin: float) -> tuple[np.ndarray, float]:
    """`Place.idx`, and up to which distance it stays whole while the skin lasts.

    `pairs` are those that `image_pairs` lists up to `cutoff + skin`. A displacement is that to the nearest
    image: in narrow cells neighbours are whole no further than half of the least width (in tenths of Å),
    and a region that must see further says so.
    """
    half = half_width(at)
    cutoff = cutoff if cutoff <= half else float(np.floor(10 * half) / 10)
    i, j, _ = closer(pairs, cutoff + skin)
    n_atoms = len(at.position)
    # With the skin two images of an atom may be near, one of them, or one's own.
    i, j = np.divmod(np.unique(i * n_atoms + j), n_atoms)
    i, j = i[i != j], j[i != j]
    count = np.bincount(i, minlength=n_atoms)
    max_neighbors = 8 * -(-int(count.max(initial=1)) // 8)  # in eights, so that few programs are compiled
    idx = np.full((n_atoms, max_neighbors), n_atoms, np.int32)
    idx[i, np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)] = j
    return idx, cutoff


def half_width(at: When) -> float:
    """Å, up to which the nearest image of an atom is its only one; without end where nothing is periodic."""
    return float(0.5 * perpendicular_widths(at.cell.T)[at.pbc].min(initial=np.inf))


def check_reach(region: Region, place: Place) -> None:
    """Warn where a sphere about an atom is wider than half the cell."""
    widths = perpendicular_widths(place.cell.T)[place.pbc]
    for sphere in jax.tree.leaves(region.required_neighbors(0.0), is_leaf=_is_request):
        if len(widths):
            warn_of_wide_requests(float(sphere.cutoff), widths.min())


@partial(jax.jit, static_argnames=("cutoff", "margin"))
def support(region: Region, place: Place, *, cutoff: float, margin: float) -> Array:
    """`[n_atoms, n_experts]` bool, atoms that may get weight.

    It holds while none moves by more than half the margin, Å.
    """
    displacement, near = _region_neighbors(region, place, place.position, None, cutoff, margin)
    return region.support(place.position, displacement, margin, near)


@partial(jax.jit, static_argnames="cutoff")
def weights(region: Region, place: Place, *, cutoff: float) -> Array:
    """`[n_atoms, n_experts]`."""
    return _gate(region, place, place.position, None, cutoff)


@partial(jax.jit, static_argnames="cutoff")
def pull(region: Region, place: Place, energies: Array, *, cutoff: float) -> tuple[Array, Array]:
    """The gates' part of forces, `[n_atoms, 3]` eV/Å, and of each atom's virial, `[n_atoms, 3, 3]` eV.

    `energies` are `[n_atoms, n_experts]` eV.
    """

    def of_atoms(position, strain):
        return jnp.sum(_gate(region, place, position, strain, cutoff) * energies, axis=1)

    still = jnp.eye(3, dtype=place.position.dtype)
    force = -jax.grad(lambda R: jnp.sum(of_atoms(R, still)))(place.position)
    virial = jax.jacfwd(of_atoms, argnums=1)(place.position, still)
    return force, 0.5 * (virial + virial.swapaxes(1, 2))


def _gate(region: Region, place: Place, position: Array, strain: Array | None, cutoff: float) -> Array:
    """With displacements times `strain`, `[3, 3]`."""
    return region.gate(position, *_region_neighbors(region, place, position, strain, cutoff, 0.0))


def _region_neighbors(
    region: Region, place: Place, position: Array, strain: Array | None, cutoff: float, margin: float
):
    """A displacement function, and what lists know."""
    inverse, n_atoms = jnp.linalg.inv(place.cell), position.shape[0]

    def displacement(a, b):
        fraction = (a - b) @ inverse
        fraction = fraction - jnp.where(place.pbc, jnp.round(jax.lax.stop_gradient(fraction)), 0.0)
        D = fraction @ place.cell
        return D if strain is None else D @ strain.T

    def everyone_else(wish: NeighborRequest) -> NeighborList:
        others = jnp.broadcast_to(jnp.arange(n_atoms, dtype=jnp.int32), (wish.centers.shape[0], n_atoms))
        others = jnp.where(others == wish.centers[:, None], n_atoms, others)
        return NeighborList(
            (others,),
            position,
            place.cell,
            jnp.asarray(wish.cutoff)[None],
            wish.centers,
            jnp.zeros((), bool),
            (1, 1, 1),
            n_atoms,
        )

    requested = jax.tree.map(everyone_else, region.required_neighbors(margin), is_leaf=_is_request)
    return displacement, RegionNeighbors(place.species, place.idx, cutoff, requested)


def _is_request(x) -> bool:
    return isinstance(x, NeighborRequest)

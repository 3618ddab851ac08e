"""Gates of a region over ASE's atoms, in any cell, with their part of forces and virials.

With E = sum_i sum_e w_ie E_ie, w_ie the gate of expert e on atom i, the gates add
-sum_ie E_ie dw_ie/dR to the force and sum_ie E_ie dw_ie/d strain to the virial.
"""

from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Real

from moe_md.interfaces.cached_rows import Pairs, ReferenceGeometry
from moe_md.mixture.checks import warn_of_wide_requests
from moe_md.neighbors.capacity import bucket_size
from moe_md.neighbors.neighbor_list import NeighborList, perpendicular_widths
from moe_md.neighbors.rows import closer
from moe_md.regions.protocol import (
    NeighborRequest,
    Region,
    RegionNeighbors,
    SupportNeighbors,
    SupportRequest,
    flat_requests,
    map_requests,
    two_columns,
)

MIN_CENTERS = 8  # of the lists of a `SupportRequest`, so that few programs compile

Leaf = TypeVar("Leaf", Array, np.ndarray)  # under jit; on the host


class GateInputs(NamedTuple, Generic[Leaf]):
    """The geometry and the neighbours that gates are computed from."""

    position: Float[Leaf, "atoms 3"]  # Å
    cell: Float[Leaf, "3 3"]  # Å, lattice vectors as rows
    pbc: Bool[Leaf, "3"]
    species: Int[Leaf, " atoms"]
    idx: Int[Leaf, "atoms K"]  # neighbours of every atom; n_atoms where padded
    centers: Any = None  # `_RequestedCenters` in place of each `SupportRequest`; the functions below set it


class _RequestedCenters(NamedTuple):
    """Centres of the list that a `SupportRequest` asks for."""

    centers: Int[np.ndarray, " n"]  # atoms; the number of atoms where padded
    nested: Any  # the same for the requests inside it


def gate_neighbors(
    geometry: ReferenceGeometry, pairs: Pairs, cutoff: float, skin: float
) -> tuple[Int[np.ndarray, "atoms K"], float]:
    """`GateInputs.idx`, and the distance (Å) within which it is complete until atoms move by half the skin.

    Gates use displacements to the nearest image. In a narrow cell the list is
    therefore complete only up to half of the smallest perpendicular width, rounded
    down to 0.1 Å. A region that needs more raises an error.

    Args:
        geometry: positions and cell.
        pairs: from `image_pairs`, up to `cutoff + skin`.
        cutoff, skin: Å.
    """
    half = minimum_image_range(geometry)
    cutoff = cutoff if cutoff <= half else float(np.floor(10 * half) / 10)
    i, j, _ = closer(pairs, cutoff + skin)
    n_atoms = len(geometry.position)
    # Within the skin an atom may meet two images of another atom, or an image of itself.
    i, j = np.divmod(np.unique(i * n_atoms + j), n_atoms)
    i, j = i[i != j], j[i != j]
    count = np.bincount(i, minlength=n_atoms)
    max_neighbors = 8 * -(-int(count.max(initial=1)) // 8)  # a multiple of 8, so that few programs compile
    idx = np.full((n_atoms, max_neighbors), n_atoms, np.int32)
    idx[i, np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)] = j
    return idx, cutoff


def minimum_image_range(geometry: ReferenceGeometry) -> float:
    """Half of the smallest perpendicular width, Å; infinite without periodic directions.

    Within it an atom has at most one image of each other atom.
    """
    return float(0.5 * perpendicular_widths(geometry.cell.T)[geometry.pbc].min(initial=np.inf))


def warn_of_wide_spheres(region: Region, inputs: GateInputs) -> None:
    """Warn where a sphere of the region is wider than half of the cell."""
    widths = perpendicular_widths(inputs.cell.T)[inputs.pbc]
    for request in flat_requests(region.required_neighbors(0.0)):
        if len(widths):
            warn_of_wide_requests(float(request.cutoff), widths.min())


def support(
    region: Region, inputs: GateInputs, *, cutoff: float, margin: float
) -> Bool[Array, "atoms experts"]:
    """Whether each expert's gate on each atom may be above zero.

    Valid while no atom has moved by more than half of `margin`, Å.
    """
    return _support(region, _with_centers(region, inputs, cutoff, margin), cutoff=cutoff, margin=margin)


def gate(region: Region, inputs: GateInputs, *, cutoff: float) -> Float[Array, "atoms experts"]:
    """Each expert's share of each atom's energy."""
    return _gate(region, _with_centers(region, inputs, cutoff, 0.0), cutoff=cutoff)


def gate_forces_and_virials(
    region: Region, inputs: GateInputs, energies: Float[Array | np.ndarray, "atoms experts"], *, cutoff: float
) -> tuple[Float[Array, "atoms 3"], Float[Array, "atoms 3 3"]]:
    """The gates' part of forces, eV/Å, and of each atom's virial, eV.

    Args:
        region: must be differentiable.
        inputs: geometry and neighbours.
        energies: eV, of each atom by each expert.
        cutoff: Å, distance within which `inputs.idx` is complete.
    """
    inputs = _with_centers(region, inputs, cutoff, 0.0)
    return _gate_forces_and_virials(region, inputs, energies, cutoff=cutoff)


def _with_centers(region: Region, inputs: GateInputs, cutoff: float, margin: float) -> GateInputs:
    """The inputs with the centres that the region requests at these positions."""
    n_atoms = len(inputs.position)

    def choose(request: NeighborRequest | SupportRequest) -> _RequestedCenters | tuple[()]:
        if isinstance(request, NeighborRequest):
            return ()
        inner = inputs._replace(centers=map_requests(choose, request.requests))
        owned = np.asarray(_support(request.region, inner, cutoff=cutoff, margin=margin))[:, 0]
        atoms = np.flatnonzero(owned).astype(np.int32)
        padding = (0, bucket_size(max(MIN_CENTERS, len(atoms))) - len(atoms))
        return _RequestedCenters(np.pad(atoms, padding, constant_values=n_atoms), inner.centers)

    return inputs._replace(centers=map_requests(choose, region.required_neighbors(margin)))


@partial(jax.jit, static_argnames=("cutoff", "margin"))
def _support(region: Region, inputs: GateInputs, *, cutoff: float, margin: float) -> Array:
    displacement, neighbors = _region_neighbors(region, inputs, inputs.position, None, cutoff, margin)
    return region.support(inputs.position, displacement, margin, neighbors)


@partial(jax.jit, static_argnames="cutoff")
def _gate(region: Region, inputs: GateInputs, *, cutoff: float) -> Array:
    return _strained_gate(region, inputs, inputs.position, None, cutoff)


@partial(jax.jit, static_argnames="cutoff")
def _gate_forces_and_virials(
    region: Region, inputs: GateInputs, energies: Array, *, cutoff: float
) -> tuple[Array, Array]:
    def gated_energies(position, deformation):
        return jnp.sum(_strained_gate(region, inputs, position, deformation, cutoff) * energies, axis=1)

    identity = jnp.eye(3, dtype=inputs.position.dtype)
    force = -jax.grad(lambda R: jnp.sum(gated_energies(R, identity)))(inputs.position)
    virial = jax.jacfwd(gated_energies, argnums=1)(inputs.position, identity)
    return force, 0.5 * (virial + virial.swapaxes(1, 2))


def _strained_gate(
    region: Region, inputs: GateInputs, position: Array, deformation: Array | None, cutoff: float
) -> Array:
    """The gate where `deformation`, `[3, 3]`, identity plus strain, multiplies all displacements."""
    return region.gate(position, *_region_neighbors(region, inputs, position, deformation, cutoff, 0.0))


def _region_neighbors(
    region: Region,
    inputs: GateInputs,
    position: Array,
    deformation: Array | None,
    cutoff: float,
    margin: float,
):
    """The displacement function and the `RegionNeighbors` that a region's methods take."""
    inverse, n_atoms = jnp.linalg.inv(inputs.cell), position.shape[0]

    def displacement(
        a: Real[Array | np.ndarray, "... 3"], b: Real[Array | np.ndarray, "... 3"]
    ) -> Float[Array, "... 3"]:
        fraction = (a - b) @ inverse
        fraction = fraction - jnp.where(inputs.pbc, jnp.round(jax.lax.stop_gradient(fraction)), 0.0)
        D = fraction @ inputs.cell
        return D if deformation is None else D @ deformation.T

    def all_other_atoms(centers: Array | np.ndarray, cutoff: Array) -> NeighborList:
        others = jnp.broadcast_to(jnp.arange(n_atoms, dtype=jnp.int32), (centers.shape[0], n_atoms))
        others = jnp.where(others == centers[:, None], n_atoms, others)
        overflow = jnp.zeros((), bool)
        cutoffs = jnp.asarray(cutoff)[None]
        return NeighborList((others,), position, inputs.cell, cutoffs, centers, overflow, (1, 1, 1), n_atoms)

    def answer(request, chosen) -> NeighborList | SupportNeighbors:
        if isinstance(request, NeighborRequest):
            return all_other_atoms(request.centers, request.cutoff)
        requested = map_requests(answer, request.requests, chosen.nested)
        neighbors = RegionNeighbors(inputs.species, inputs.idx, cutoff, requested)
        owned = request.region.support(position, displacement, margin, neighbors)
        listed = all_other_atoms(chosen.centers, request.cutoff)
        return SupportNeighbors(listed, two_columns(owned), requested)

    requested = map_requests(answer, region.required_neighbors(margin), inputs.centers)
    return displacement, RegionNeighbors(inputs.species, inputs.idx, cutoff, requested)

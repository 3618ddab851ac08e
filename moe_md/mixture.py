"""One energy, many experts.

    E(R) = sum_i sum_e w_ie(R) E_i^e(row i)

Rows of centres are gathered per expert at a fixed capacity and only those are
computed: an expert costs what its own atoms cost. The result is one function
of the positions, so its gradient conserves energy and momentum.
"""

import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax_md import partition

from moe_md.experts import Expert, Params, chunked_atom_energies
from moe_md.neighborhood import rows_from_neighbor_list
from moe_md.regions import Region

ALL_PAIRS_LIMIT = 20_000  # atoms; jax-md without a cell list needs O(n^2) memory


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MixtureNeighbors:
    """Neighbours of every atom, and the rows of every expert."""

    list: partition.NeighborList  # jax-md's dense list of all atoms
    centers: tuple[Array, ...]  # per expert [capacity] int, the atoms it computes, n_atoms where none
    centers_overflow: Array  # bool, an expert was given more atoms than it holds rows
    select: Callable = field(metadata={"static": True})

    def update(self, position: Array, *, region: Region | None = None, **kwargs) -> "MixtureNeighbors":
        """The same capacities at new positions; safe under jit.

        Args:
            position: `[n_atoms, 3]`.
            region: default the builder's.
            **kwargs: `box`, `perturbation`.
        """
        centers, overflow = self.select(position, region, tuple(c.shape[0] for c in self.centers), **kwargs)
        updated = self.list.update(position, **kwargs)
        return MixtureNeighbors(updated, centers, self.centers_overflow | overflow, self.select)

    @property
    def idx(self) -> Array:
        """`[n_atoms, K]` int, neighbours of every atom."""
        return self.list.idx

    @property
    def did_buffer_overflow(self) -> Array:
        """Results are wrong: allocate again, larger, and go back to the last good state."""
        return jnp.asarray(self.list.did_buffer_overflow, bool) | self.centers_overflow

    @property
    def error(self) -> Array:
        """Bits: jax-md's error code, and 256 where an expert ran out of rows."""
        code = jnp.asarray(self.list.error.code, jnp.int32)
        return code | jnp.where(self.centers_overflow, 256, 0)


class MixtureNeighborFns(NamedTuple):
    """Host-side allocation and jitted update, as jax-md's `NeighborListFns`."""

    allocate: Callable  # (position, extra_capacity=0, *, region=None, **kwargs) -> MixtureNeighbors
    update: Callable  # (position, neighbors, *, region=None, **kwargs) -> MixtureNeighbors


def mixture_neighbor_list(
    displacement_fn: Callable,
    box,
    experts: Sequence[Expert],
    params: Sequence[Params],
    species,
    region: Region,
    *,
    dr_threshold: float = 0.4,
    capacity_multiplier: float = 1.25,
    per_particle: bool = False,
    fractional_coordinates: bool = False,
    chunk_size: int = 64,
) -> tuple[MixtureNeighborFns, Callable]:
    """A mixture of experts as jax-md's `(neighbor_fn, energy_fn)`.

    Args:
        displacement_fn: from `jax_md.space`.
        box: Å, a number, `[3]` edges or `[3, 3]` columns.
        experts: two or more (one works too), the most expensive first.
        params: one parameter tree per expert.
        species: `[n_atoms]` int, index into `Expert.species`.
        region: who owns what; expert 0 is inside.
        dr_threshold: Å, skin of the neighbour list.
        capacity_multiplier: slots allocated over slots needed; also rows of an
            expert whose region moves.
        per_particle: return `[n_atoms]` energies instead of their sum.
        fractional_coordinates: positions are fractions of the box.
        chunk_size: rows computed at a time.

    Returns:
        neighbor_fn: `allocate(R)` on the host, then `nbrs.update(R)` under jit.
        energy_fn: `energy_fn(R, neighbor, *, params=, region=, box=,
        perturbation=)` in eV, the builder's values as defaults. Differentiable
        in positions, parameters, region and perturbation. Rows that the list
        does not hold make it NaN: never a silently wrong energy.

    Raises:
        ValueError: experts disagree on species, lengths or shapes do not match,
            a species index is unknown, or the cutoff does not fit the box.
    """
    experts, params = tuple(experts), tuple(params)
    species = _checked_species(experts, params, species)
    n_atoms = species.shape[0]
    cutoff = max(e.cutoff for e in experts)
    _check_box(box, cutoff, dr_threshold, n_atoms)
    builder_region, builder_params = region, params
    energies_of = [chunked_atom_energies(e, chunk_size) for e in experts]
    list_fns = partition.neighbor_list(
        displacement_fn,
        box,
        r_cutoff=cutoff,
        dr_threshold=dr_threshold,
        capacity_multiplier=capacity_multiplier,
        fractional_coordinates=fractional_coordinates,
        format=partition.NeighborListFormat.Dense,
    )

    def select(position, new_region, capacities, **kwargs):
        owner = builder_region if new_region is None else new_region
        held = owner.support(position, partial(displacement_fn, **kwargs), dr_threshold)
        centers = tuple(
            jnp.nonzero(held[:, e], size=size, fill_value=n_atoms)[0].astype(jnp.int32)
            for e, size in enumerate(capacities)
        )
        overflow = jnp.any(jnp.sum(held, axis=0) > jnp.asarray(capacities))
        return centers, overflow

    def allocate(position, extra_capacity: int = 0, *, region: Region | None = None, **kwargs):
        _check_position(position, n_atoms)
        owner = builder_region if region is None else region
        moved = partial(displacement_fn, **kwargs)
        held = np.asarray(owner.support(position, moved, dr_threshold))
        _check_region(held, n_atoms, len(experts))
        full_list = list_fns.allocate(position, extra_capacity=extra_capacity, **kwargs)
        slack = capacity_multiplier if owner.moves else 1.0
        capacities = tuple(min(int(np.ceil(n * slack)), n_atoms) for n in held.sum(0))
        centers, overflow = select(position, owner, capacities, **kwargs)
        neighbors = MixtureNeighbors(full_list, centers, overflow, select)
        _warn_outside_domain(experts, neighbors, position, species, moved)
        return neighbors

    def energy_fn(R, neighbor: MixtureNeighbors, *, params=None, region=None, box=None, perturbation=None, **_):
        params = builder_params if params is None else params
        region = builder_region if region is None else region
        kwargs = {k: v for k, v in (("box", box), ("perturbation", perturbation)) if v is not None}
        moved = partial(displacement_fn, **kwargs) if kwargs else displacement_fn
        gate = region.gate(R, moved)
        energies = jnp.zeros(n_atoms, R.dtype)
        missing = jnp.zeros((), bool)  # an atom with weight, outside the rows held
        for e, centers in enumerate(neighbor.centers):
            wanted = jnp.sum(gate[:, e] > 0)
            if centers.shape[0] == 0:
                missing = missing | (wanted > 0)
                continue
            rows = rows_from_neighbor_list(R, species, neighbor.idx, moved, centers)
            weight = jnp.where(centers < n_atoms, gate[jnp.minimum(centers, n_atoms - 1), e], 0.0)
            computed = energies_of[e](params[e], rows)
            contribution = jnp.where(weight > 0, weight * computed, 0.0)
            energies = energies.at[centers].add(contribution, mode="drop")
            missing = missing | (wanted > jnp.sum(weight > 0))
        # A product, so that the forces are NaN too: behind a `where` they would be zero.
        energies = energies * jnp.where(missing, jnp.nan, 1.0).astype(R.dtype)
        return energies if per_particle else jnp.sum(energies)

    def update(position, neighbors: MixtureNeighbors, **kwargs):
        return neighbors.update(position, **kwargs)

    return MixtureNeighborFns(allocate, update), energy_fn


def _checked_species(experts, params, species) -> Array:
    if len(experts) == 0 or len(experts) != len(params):
        raise ValueError(
            f"experts and params must be sequences of equal length, at least 1, got {len(experts)} and {len(params)}."
        )
    if len({e.species for e in experts}) > 1:
        raise ValueError(
            f"experts must share one species tuple, got {' and '.join(str(e.species) for e in experts)}."
        )
    values = np.asarray(species)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"species must be a vector of integers, one per atom, got shape {values.shape} and dtype {values.dtype}."
        )
    known = len(experts[0].species)
    if values.size and not (0 <= values.min() and values.max() < known):
        raise ValueError(
            f"species must index {experts[0].species}, 0 to {known - 1}, got {values.min()} to {values.max()}."
        )
    return jnp.asarray(values, jnp.int32)


def perpendicular_widths(box) -> np.ndarray:
    """Distances between opposite faces of a box: `[3]` Å, or all equal for a number."""
    box = np.asarray(box, float)
    if box.ndim < 2:
        return np.broadcast_to(box, (3,))
    inverse = np.linalg.inv(box)  # rows are the reciprocal vectors of the columns
    return 1.0 / np.linalg.norm(inverse, axis=1)


def _check_box(box, cutoff: float, dr_threshold: float, n_atoms: int) -> None:
    widths = perpendicular_widths(box)
    if not (widths > 2 * cutoff).all():
        raise ValueError(
            f"box must be wider than twice the cutoff, 2 x {cutoff} Å, in every direction for molecular dynamics, "
            f"got widths {np.round(widths, 3).tolist()} Å: repeat the cell."
        )
    if dr_threshold < 0:
        raise ValueError(f"dr_threshold must not be negative (Å), got {dr_threshold}.")
    if n_atoms > ALL_PAIRS_LIMIT and not (widths >= 3 * (cutoff + dr_threshold)).all():
        raise ValueError(
            f"box must be at least three times cutoff + dr_threshold = {cutoff + dr_threshold:.2f} Å wide for more than "
            f"{ALL_PAIRS_LIMIT} atoms (jax-md compares all pairs otherwise), got widths {np.round(widths, 3).tolist()} Å."
        )


def _check_position(position, n_atoms: int) -> None:
    if np.shape(position) != (n_atoms, 3):
        raise ValueError(f"position must have shape [{n_atoms}, 3], got {np.shape(position)}.")
    if not np.isfinite(np.asarray(position)).all():
        raise ValueError("position must be finite, got NaN or infinity.")


def _check_region(held: np.ndarray, n_atoms: int, n_experts: int) -> None:
    if held.shape != (n_atoms, n_experts):
        raise ValueError(
            f"region must speak of [n_atoms, n_experts] = [{n_atoms}, {n_experts}], got {list(held.shape)}."
        )
    if not held.any(axis=1).all():
        raise ValueError(
            f"region must give every atom to some expert, got none for {int(np.sum(~held.any(axis=1)))} of {n_atoms} atoms "
            f"(a seed that is no atom?)."
        )


def _warn_outside_domain(experts, neighbors: MixtureNeighbors, position, species, displacement_fn) -> None:
    for e, (expert, centers) in enumerate(zip(experts, neighbors.centers)):
        if centers.shape[0] == 0 or set(expert.domain) == set(expert.species):
            continue
        allowed = jnp.asarray([s in expert.domain for s in expert.species])
        rows = rows_from_neighbor_list(position, species, neighbors.idx, displacement_fn, centers)
        near = rows.mask & (jnp.linalg.norm(rows.displacement, axis=-1) < expert.cutoff)
        foreign = ~allowed[rows.center_species] | jnp.any(near & ~allowed[rows.neighbor_species], axis=1)
        count = int(jnp.sum(foreign & (centers < len(species))))
        if count:
            warnings.warn(
                f"region gives expert {e} {count} atoms that are or see species outside its domain {expert.domain}: "
                f"its energies there are untrained. Enlarge the region by its cutoff, {expert.cutoff} Å.",
                stacklevel=3,
            )

"""Neighbours of a mixture: allocation on the host, update under jit.

Every expert gets the list of its own cutoff, the atoms with a gate above zero
(`centers`) and, if it passes messages, the atoms around them (`halo`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from moe_md.experts.neighbor_sums import allowed_neighbors
from moe_md.mixture import checks
from moe_md.mixture.config import THERMAL_CAPACITY_FACTOR, MixtureConfig, MixtureNeighbors
from moe_md.mixture.requests import allocate_requests, stale_requests, update_requests
from moe_md.neighbors.capacity import first_true, padded_capacity
from moe_md.neighbors.neighbor_list import NeighborList, strained
from moe_md.neighbors.rows import max_occupancy, neighbors_of
from moe_md.regions import Region

LANES = 8  # a loop over neighbours takes so many at a time, in the vector instructions of XLA for CPU


def allocate(
    config: MixtureConfig,
    update_fn: Callable,
    stale_fn: Callable,
    check_domains: Callable,
    position: Float[Array | np.ndarray, "atoms 3"],
    extra_capacity: int = 0,
    *,
    region: Region | None = None,
    **kwargs,
) -> MixtureNeighbors:
    """Neighbours with the capacities that these positions need; must not be traced.

    Args:
        config: of the builder.
        update_fn, stale_fn, check_domains: of the builder, bound to `config`.
        position: in the coordinates of the mixture.
        extra_capacity: entries added to each row of neighbours.
        region: default the builder's.
        **kwargs: `box`, `perturbation`.

    Raises:
        ValueError: positions, box or region do not fit the mixture.
    """
    kwargs = config.box_arguments(**kwargs)
    frame = strained(kwargs.get("box", config.box), kwargs.get("perturbation"))
    checks.check_position(position, config.n_atoms)
    checks.check_box(frame, config.cutoffs[0])
    region_in_use = config.region if region is None else region
    full_list = config.list_fns.allocate(position, extra_capacity=extra_capacity, **kwargs)
    requests = region_in_use.required_neighbors(config.dr_threshold)
    requested = allocate_requests(config, position, full_list, requests, extra_capacity, kwargs)
    support = _support(config, position, region_in_use, full_list, requested, kwargs)
    checks.check_support(np.asarray(support), config.n_atoms, len(config.experts))
    halos = _halos(config, support, full_list)
    factor = config.capacity_multiplier
    sizes = [
        _capacity(n, factor if region_in_use.is_dynamic else 1.0, config.n_atoms)
        for n in np.sum(support, axis=0)
    ]
    halo_sizes = [_capacity(np.sum(mask), factor, config.n_atoms) for mask in halos]
    centers, halo, overflow = _select(support, halos, sizes, halo_sizes)
    factor = 1.0 + THERMAL_CAPACITY_FACTOR * (factor - 1.0)
    max_neighbors = tuple(
        _row_capacity(packed, listed, factor, extra_capacity)
        for packed, listed in zip(
            _max_occupancies(config, position, centers, full_list, kwargs),
            _listed_neighbors(config, centers, full_list),
        )
    )
    rows = _rows_of_sums(config, centers, full_list, max_neighbors)
    neighbors = MixtureNeighbors(
        full_list, centers, halo, rows, requested, overflow, max_neighbors, update_fn, stale_fn
    )
    check_domains(position, neighbors, region=region, **kwargs)
    return neighbors


def update(
    config: MixtureConfig,
    position: Float[Array | np.ndarray, "atoms 3"],
    neighbors: MixtureNeighbors,
    *,
    region: Region | None = None,
    renew: bool = False,
    **kwargs,
) -> MixtureNeighbors:
    """The neighbours at new positions, with the same capacities; see `MixtureNeighbors.update`."""
    kwargs = config.box_arguments(**kwargs)
    full_list = config.list_fns.update(position, neighbors.list, renew=renew, **kwargs)
    region = config.region if region is None else region
    requests = region.required_neighbors(config.dr_threshold)
    checks.check_requested(requests, neighbors.requested)
    requested = update_requests(config, position, full_list, requests, neighbors.requested, renew, kwargs)
    support = _support(config, position, region, full_list, requested, kwargs)
    sizes, halo_sizes = ([c.shape[0] for c in each] for each in (neighbors.centers, neighbors.halo))
    centers, halo, overflow = _select(support, _halos(config, support, full_list), sizes, halo_sizes)
    overflow = overflow | neighbors.centers_overflow
    occupancies = _max_occupancies(config, position, centers, full_list, kwargs)
    for n, size in zip(occupancies, neighbors.max_neighbors):
        overflow = overflow if n is None or size is None else overflow | (n > size)

    def made_anew() -> tuple[tuple[Array | None, ...], Array]:
        rows = _rows_of_sums(config, centers, full_list, neighbors.max_neighbors)
        is_short = jnp.zeros((), bool)
        for n, size in zip(_listed_neighbors(config, centers, full_list), neighbors.max_neighbors):
            is_short = is_short if n is None or size is None else is_short | (n > size)
        return rows, is_short

    rows, is_short = jax.lax.cond(
        _is_unchanged((full_list, centers), (neighbors.list, neighbors.centers)),
        lambda: (neighbors.rows_of_sums, jnp.zeros((), bool)),
        made_anew,
    )
    overflow = overflow | is_short
    return replace(
        neighbors,
        list=full_list,
        centers=centers,
        halo=halo,
        rows_of_sums=rows,
        requested=requested,
        centers_overflow=overflow,
    )


def stale(
    config: MixtureConfig,
    position: Float[Array | np.ndarray, "atoms 3"],
    neighbors: MixtureNeighbors,
    *,
    region: Region | None = None,
    **kwargs,
) -> Bool[Array, ""]:
    """Whether lists may miss pairs at these positions; see `MixtureNeighbors.stale`."""
    kwargs = config.box_arguments(**kwargs)
    requests = (config.region if region is None else region).required_neighbors(config.dr_threshold)
    checks.check_requested(requests, neighbors.requested)
    of_requests = stale_requests(config, position, requests, neighbors.requested, kwargs)
    return jnp.any(jnp.stack([config.list_fns.stale(position, neighbors.list, **kwargs), *of_requests]))


def _support(config: MixtureConfig, position, region: Region, full_list, requested, kwargs: dict) -> Array:
    """Atoms that each expert computes: `[n_atoms, n_experts]` bool."""
    neighbors = config.region_neighbors(full_list, requested)
    return region.support(position, config.displacement(**kwargs), config.dr_threshold, neighbors)


def _halos(config: MixtureConfig, support: Array, full_list: NeighborList) -> list[Array]:
    """For each expert the other atoms whose rows it needs: `[n_atoms]` bool."""
    return [
        _halo(support[:, e], full_list.idx[config.level[e]], expert.num_hops)
        for e, expert in enumerate(config.experts)
    ]


def _halo(owned: Array, idx: Array, num_hops: int) -> Array:
    """Atoms within `num_hops - 1` neighbours of the owned ones, without these: `[n_atoms]` bool."""
    reached = owned
    for _ in range(num_hops - 1):
        target = jnp.where(reached[:, None], idx, idx.shape[0])
        reached = reached.at[target].set(True, mode="drop")
    return reached & ~owned


def _select(
    support: Array, halos: Sequence[Array], sizes: Sequence[int], halo_sizes: Sequence[int]
) -> tuple[tuple[Array, ...], tuple[Array, ...], Array]:
    """Centres and halo of each expert at given capacities, and whether a capacity is too small."""
    centers = tuple(first_true(support[:, e], size) for e, size in enumerate(sizes))
    halo = tuple(first_true(mask, size) for mask, size in zip(halos, halo_sizes))
    needed = jnp.concatenate([jnp.sum(support, axis=0), jnp.stack([jnp.sum(mask) for mask in halos])])
    return centers, halo, jnp.any(needed > jnp.asarray([*sizes, *halo_sizes]))


def _max_occupancies(
    config: MixtureConfig,
    position: Array | np.ndarray,
    centers: Sequence[Array],
    full_list: NeighborList,
    kwargs: dict,
) -> list[Array | None]:
    """Largest number of neighbours within its cutoff of each potential; None where rows are not packed."""
    nearest_image = config.nearest_images(position.dtype, **kwargs)
    centers = [*centers, centers[0]]  # the inner potential computes the atoms of expert 0
    return [
        max_occupancy(position, full_list.idx[config.level[n]], nearest_image, centers[n], expert.cutoff)
        if config.is_packed(n)
        else None
        for n, expert in enumerate(config.potentials)
    ]


def _listed_neighbors(
    config: MixtureConfig, centers: Sequence[Array], full_list: NeighborList
) -> list[Array | None]:
    """Largest number of listed neighbours of each potential of sums over neighbours; None for others."""
    found: list[Array | None] = []
    for n, (expert, of_expert) in enumerate(zip(config.potentials, [*centers, centers[0]])):
        if expert.neighbor_sums is None:
            found.append(None)
            continue
        count = jnp.sum(full_list.idx[config.level[n]] < config.n_atoms, axis=1)
        found.append(jnp.max(count.at[of_expert].get(mode="fill", fill_value=0), initial=0))
    return found


def _is_unchanged(new: tuple[NeighborList, tuple], old: tuple[NeighborList, tuple]) -> Array:
    """Whether a list has been built for the same positions, box and cutoffs, and centres are the same."""
    built_for = [
        (at.reference_position, at.reference_frame, at.cutoffs, centers) for at, centers in (new, old)
    ]
    return jnp.all(jnp.stack(jax.tree.leaves(jax.tree.map(jnp.array_equal, *built_for))))


def _rows_of_sums(
    config: MixtureConfig,
    centers: Sequence[Array],
    full_list: NeighborList,
    max_neighbors: Sequence[int | None],
) -> tuple[Array | None, ...]:
    """Neighbours of the centres of each potential of sums over neighbours; None for other potentials."""
    rows: list[Array | None] = []
    of_potentials = zip(config.potentials, [*centers, centers[0]], max_neighbors)
    for n, (expert, of_expert, n_slots) in enumerate(of_potentials):
        if expert.neighbor_sums is None or n_slots is None:
            rows.append(None)
            continue
        neighbor = neighbors_of(of_expert, full_list.idx[config.level[n]][:, :n_slots])
        # A list may have fewer columns than whole vectors.
        spare = ((0, 0), (0, n_slots - neighbor.shape[1]))
        neighbor = jnp.pad(neighbor, spare, constant_values=config.n_atoms)
        neighbor = allowed_neighbors(neighbor, config.species, expert.species, expert.allowed_species)
        rows.append(neighbor.astype(jnp.int32))
    return tuple(rows)


def _row_capacity(packed: Array | None, listed: Array | None, factor: float, extra: int) -> int | None:
    """Columns of the rows of a potential with so many packed or listed neighbours; None for others."""
    if packed is not None:
        return max(1, padded_capacity(factor, extra, int(packed)))
    if listed is None:
        return None
    capacity = max(1, padded_capacity(factor, extra, int(listed)))
    return -(-capacity // LANES) * LANES


def _capacity(n, factor: float, largest: int) -> int:
    return min(padded_capacity(factor, 0, int(n)), largest)

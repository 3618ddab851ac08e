"""Lists that the region of a mixture requests: allocated on the host, updated under jit.

A `NeighborRequest` names its centres. For a `SupportRequest` the centres are the
atoms that a region may give to expert 0. They change during a run, so they have a
capacity, and the list overflows where there are more.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from moe_md.mixture import checks
from moe_md.mixture.config import MixtureConfig
from moe_md.neighbors.capacity import first_true, padded_capacity
from moe_md.neighbors.neighbor_list import NeighborList, perpendicular_widths, strained
from moe_md.regions import NeighborRequest, SupportNeighbors, SupportRequest
from moe_md.regions.protocol import map_requests, two_columns


def allocate_requests(
    config: MixtureConfig,
    position: Float[Array | np.ndarray, "atoms 3"],
    full_list: NeighborList,
    requests,
    extra_capacity: int,
    kwargs: dict,
):
    """The answers to a pytree of requests, with the capacities that these positions need; not under jit.

    Args:
        config: of the builder.
        position: in the coordinates of the mixture.
        full_list: neighbours of every atom.
        requests: from `required_neighbors` of a region.
        extra_capacity: entries added to each row of neighbours, and centres to those of a `SupportRequest`.
        kwargs: `box`, `perturbation`.
    """
    allocate = partial(config.list_fns.allocate, position, extra_capacity, **kwargs)
    min_width = perpendicular_widths(
        strained(kwargs.get("box", config.box), kwargs.get("perturbation"))
    ).min()

    def allocate_one(request: NeighborRequest | SupportRequest) -> NeighborList | SupportNeighbors:
        checks.warn_of_wide_requests(float(request.cutoff) - config.dr_threshold, min_width)
        if isinstance(request, NeighborRequest):
            checks.check_seeds(request.centers, config.n_atoms)
            return allocate(cutoffs=[request.cutoff], centers=request.centers)
        requested = map_requests(allocate_one, request.requests)
        support = _support(config, position, full_list, request, requested, kwargs)
        capacity = padded_capacity(config.capacity_multiplier, extra_capacity, int(jnp.sum(support[:, 0])))
        centers = first_true(support[:, 0], max(1, min(capacity, config.n_atoms)))
        return SupportNeighbors(allocate(cutoffs=[request.cutoff], centers=centers), support, requested)

    return map_requests(allocate_one, requests)


def update_requests(
    config: MixtureConfig,
    position: Float[Array | np.ndarray, "atoms 3"],
    full_list: NeighborList,
    requests,
    answers,
    renew: bool,
    kwargs: dict,
):
    """The answers at new positions, with the same capacities; arguments as of `allocate_requests`.

    The centres of a `SupportRequest` change when an atom comes in that is not yet
    among them, or with `renew`.
    """
    update = partial(config.list_fns.update, position, renew=renew, **kwargs)

    def update_one(request, old):
        if isinstance(request, NeighborRequest):
            return update(old, cutoffs=request.cutoff[None], centers=request.centers)
        requested = map_requests(update_one, request.requests, old.requested)
        support = _support(config, position, full_list, request, requested, kwargs)
        centers, is_full = _centers_of(support[:, 0], old.list.centers, renew)
        listed = update(old.list, cutoffs=request.cutoff[None], centers=centers)
        listed = replace(listed, did_buffer_overflow=listed.did_buffer_overflow | is_full)
        return SupportNeighbors(listed, support, requested)

    return map_requests(update_one, requests, answers)


def stale_requests(
    config: MixtureConfig,
    position: Float[Array | np.ndarray, "atoms 3"],
    requests,
    answers,
    kwargs: dict,
) -> list[Bool[Array, ""]]:
    """Whether each list may miss pairs at new positions; arguments as of `update_requests`.

    The centres of a `SupportRequest` hold the atoms that may be inside until atoms
    have moved by half the skin, so a list that is not stale has the right ones.
    """
    stale = partial(config.list_fns.stale, position, **kwargs)
    found = []

    def stale_one(request, old) -> None:
        if isinstance(request, NeighborRequest):
            found.append(stale(old, cutoffs=request.cutoff[None], centers=request.centers))
        else:
            map_requests(stale_one, request.requests, old.requested)
            found.append(stale(old.list, cutoffs=request.cutoff[None]))

    map_requests(stale_one, requests, answers)
    return found


def _support(
    config: MixtureConfig, position, full_list: NeighborList, request: SupportRequest, requested, kwargs: dict
) -> Array:
    """The support of the region of a request: `[n_atoms, 2]` bool."""
    neighbors = config.region_neighbors(full_list, requested)
    displacement_fn: Callable = config.displacement(**kwargs)
    support = request.region.support(
        jax.lax.stop_gradient(position), displacement_fn, config.dr_threshold, neighbors
    )
    return two_columns(support)


def _centers_of(needed: Array, old: Array, renew: bool) -> tuple[Array, Array]:
    """Centres of a list at the old capacity, and whether it is too small.

    The old ones are kept while they hold all atoms that are needed, so that the
    list is not rebuilt whenever an atom leaves.
    """
    listed = jnp.zeros(needed.shape[0], bool).at[old].set(True, mode="drop")
    is_new = jnp.any(needed & ~listed) | renew
    centers = jnp.where(is_new, first_true(needed, old.shape[0]), old)
    return centers, is_new & (jnp.sum(needed) > old.shape[0])

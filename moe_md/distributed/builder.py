"""The builder of a mixture on several devices."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Float, Integer, Real

from moe_md import lazy_jax_md as jax_md
from moe_md.checks import check_positive, check_value
from moe_md.compiler import fast_jit
from moe_md.distributed import device, host
from moe_md.distributed.device import DistributedConfig
from moe_md.distributed.host import Programs
from moe_md.distributed.partition import SUBDOMAIN, Partition
from moe_md.experts.base import Potential
from moe_md.experts.chunks import chunked_atom_energies
from moe_md.mixture import mixture_neighbor_list
from moe_md.neighbors import neighbor_list as lists
from moe_md.regions import Region, check_region


class DomainDecomposition(NamedTuple):
    """A mixture on several devices, each with a subdomain of the box."""

    scatter: Callable  # (position, masses=None, *, velocity=None, temperature_K=None, key=None) -> State
    gather: Callable  # (State) -> Atoms, all of them in their order, on the host, inside the box
    evaluate: Callable  # (State, params=None) -> State with energy and forces
    # (State, integrator, n_steps, params=None, max_reallocations=8, first=False) -> (State, n_reallocations)
    advance: Callable
    check_domains: Callable  # (State) -> bool, all atoms were in their experts' domains; warns


def mixture(
    box: Real[ArrayLike, "..."] | Sequence,
    potentials: Sequence[Potential],
    species: Integer[Array | np.ndarray, " atoms"] | Sequence,
    region: Region,
    *,
    devices: Sequence | None = None,
    axis: int | None = None,
    dr_threshold: float = 0.4,
    capacity_multiplier: float = 1.25,
    chunk_size: int = 64,
) -> DomainDecomposition:
    """A mixture of strictly local experts, with a subdomain of the box on each device.

    Every device allocates as many slots and rows as the fullest one. Rows without an
    atom are skipped, a chunk at a time. The slowest device sets the pace: choose an
    axis along which the expensive atoms are spread.

    Args:
        box: Å, a number, `[3]` edges, or columns of a right-angled box.
        potentials, species, capacity_multiplier, chunk_size: as in
            `mixture_neighbor_list`.
        region: static, or `around` few seeds: every device gets the position of each.
        devices: one subdomain each; default all of jax's.
        axis: 0, 1 or 2, normal to the faces between subdomains; default along the longest edge.
        dr_threshold: Å, the skin, positive.

    Returns:
        scatter: atoms to their devices, at rest, with a `velocity` (ASE's
            unit) or with a Maxwell-Boltzmann draw without total momentum.
        gather: all atoms in their order.
        evaluate: energy and forces.
        advance: steps of `nve` or `langevin`. With `first`, or where they are
            unknown, forces are evaluated before the first step.
        check_domains: as for `mixture_neighbor_list`, when lists were last built.

    Raises:
        ValueError: as `mixture_neighbor_list`; or the box is not right-angled,
            a subdomain is thinner than the longest cutoff and the skin, the region
            is dynamic but not `around`, or an expert passes messages. On use,
            shapes do not match, or the integrator is not supported.
    """
    edges, axis = _checked_edges(box, axis)
    mixture_neighbor_list(  # checks the arguments
        jax_md.space.periodic(edges)[0],  # ty: ignore[invalid-argument-type]  # numpy serves
        edges,
        potentials,
        species,
        region,
        dr_threshold=dr_threshold,
        capacity_multiplier=capacity_multiplier,
        chunk_size=chunk_size,
    )
    experts, params = (tuple(column) for column in zip(*potentials))
    devices = list(jax.devices() if devices is None else devices)
    check_positive("dr_threshold", dr_threshold)
    seeds = _checked_seeds(region, len(species), len(experts), dr_threshold)
    if any(expert.num_hops > 1 for expert in experts):
        raise ValueError("experts must be strictly local on several devices, got one that passes messages.")
    cutoffs = tuple(sorted({e.cutoff for e in experts}, reverse=True))
    partition = Partition(len(species), len(devices), axis, edges, cutoffs[0] + dr_threshold)
    local_displacement = _displacement(np.where(np.arange(3) == axis, np.inf, edges))
    config = DistributedConfig(
        partition=partition,
        species=np.asarray(species),
        region=region,
        seeds=seeds,
        experts=experts,
        params=params,
        energy_fns=tuple(chunked_atom_energies(e, chunk_size) for e in experts),
        cutoffs=cutoffs,
        level=tuple(cutoffs.index(e.cutoff) for e in experts),
        rows_fn=lists.neighbor_list(partition.local_box, cutoffs, dr_threshold=dr_threshold).rows,
        local_displacement=local_displacement,
        box_displacement=_displacement(edges),
        dr_threshold=dr_threshold,
        capacity_multiplier=capacity_multiplier,
    )
    programs = _programs(config, devices)
    return DomainDecomposition(
        scatter=partial(host.scatter, config, programs),
        gather=partial(host.gather, config),
        evaluate=partial(host.evaluate, config, programs),
        advance=partial(host.advance, config, programs),
        check_domains=partial(host.check_domains, config),
    )


def _programs(config: DistributedConfig, devices: Sequence) -> Programs:
    mesh, divided, replicated = (
        Mesh(np.array(devices), (SUBDOMAIN,)),
        PartitionSpec(SUBDOMAIN),
        PartitionSpec(),
    )
    # Branches of a `cond` differ in what varies over devices.
    on_devices = partial(jax.shard_map, mesh=mesh, check_vma=False)
    rebuild = on_devices(partial(device.rebuild, config), in_specs=divided, out_specs=divided)
    advance = on_devices(
        partial(device.advance, config),
        in_specs=(divided, replicated, replicated, replicated, replicated),
        out_specs=(divided, replicated, replicated),
    )
    return Programs(fast_jit(rebuild), fast_jit(advance), NamedSharding(mesh, divided))


def _displacement(sides: np.ndarray) -> Callable:
    """Displacement to the nearest image, as of `jax_md.space.periodic`; open along infinite sides."""
    periodic = np.isfinite(sides)
    side, inverse = np.where(periodic, sides, 0.0), np.where(periodic, 1.0 / sides, 0.0)

    def displacement_fn(
        Ra: Float[Array | np.ndarray, "*#batch 3"], Rb: Float[Array | np.ndarray, "*#batch 3"], **_
    ) -> Float[Array, "... 3"]:
        dR = Ra - Rb
        return dR - side.astype(dR.dtype) * jnp.round(dR * inverse.astype(dR.dtype))

    return displacement_fn


def _checked_edges(box, axis: int | None) -> tuple[np.ndarray, int]:
    columns = np.asarray(lists.box_matrix(box), float)
    if columns.shape != (3, 3) or (columns != np.diag(np.diag(columns))).any():
        raise ValueError(
            "box must be right-angled on several devices (Å, a number, 3 edges or a diagonal), "
            f"got {box!r:.200}."
        )
    edges = np.diag(columns)
    axis = int(np.argmax(edges)) if axis is None else axis
    check_value("axis", axis, int)
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0, 1 or 2, got {axis}.")
    return edges, axis


def _checked_seeds(region: Region, n_atoms: int, n_experts: int, margin: float) -> np.ndarray:
    """Atoms that a region follows, `[n_seeds]` int; none for a static one."""
    check_region(region, "with_centers", "check_size")
    seeds = np.zeros(0, np.int32)
    if region.is_dynamic:
        region.with_centers(jnp.asarray(seeds))  # raises for a region of more than some centres
        seeds = np.asarray(region.required_neighbors(margin).centers)
    region.check_size(n_atoms, n_experts)
    return seeds

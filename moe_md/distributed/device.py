"""The mixture in one subdomain: what each device computes.

All functions take the static `DistributedConfig` first and run inside `jax.shard_map`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Integer

from moe_md import lazy_jax_md as jax_md
from moe_md.distributed.partition import SUBDOMAIN, Atoms, Lists, Partition, State
from moe_md.experts.base import Expert, Params
from moe_md.experts.neighbor_sums import BEYOND, allowed_neighbors
from moe_md.mixture.energy import active_first, gate_of, n_out_of_domain
from moe_md.neighbors.capacity import first_true
from moe_md.neighbors.components import RowComponents, components_from_positions
from moe_md.neighbors.images import nearest_images
from moe_md.neighbors.neighbor_list import NeighborList
from moe_md.neighbors.rows import Neighborhood, rows_from_neighbor_list
from moe_md.regions import Region, RegionNeighbors
from moe_md.simulate.integrators.base import Evaluation
from moe_md.simulate.step import md_step

OVERFLOW, TOO_FAST, NOT_FINITE = 1, 2, 4  # bits, why a loop stopped


@dataclass(frozen=True, eq=False)  # hashed by identity
class DistributedConfig:
    """Static arguments of the functions of a mixture on several devices."""

    partition: Partition
    species: Integer[np.ndarray, " atoms"]
    region: Region
    seeds: Int[np.ndarray, " seeds"]  # atoms that a dynamic region follows
    experts: tuple[Expert, ...]
    params: tuple[Params, ...]  # of the experts, the builder's
    energy_fns: tuple[Callable, ...]  # per expert (params, rows, wanted=None) -> [n] eV
    cutoffs: tuple[float, ...]  # Å, longest first
    level: tuple[int, ...]  # per expert, the place of its cutoff in `cutoffs`
    rows_fn: Callable  # of `neighbor_list`, in a subdomain with its halos
    local_displacement: Callable  # periodic but for the axis of the partition
    box_displacement: Callable  # periodic in all directions
    dr_threshold: float  # Å, skin
    capacity_multiplier: float

    @property
    def n_atoms(self) -> int:
        """Number of atoms on all devices."""
        return self.partition.n_atoms


def rebuild(config: DistributedConfig, state: State) -> State:
    """Atoms on the devices that own them, and new lists."""
    partition, capacities = config.partition, state.capacities
    atoms, passing, n_here = partition.migrate(state.atoms, capacities.halo)
    near_faces = partition.near_faces(atoms)
    before, after = (first_true(mask, capacities.halo) for mask in near_faces)
    is_real = atoms.index < config.n_atoms
    position = partition.local_positions(atoms.position, before, after)
    is_local = partition.with_halo(atoms.index, before, after, config.n_atoms) < config.n_atoms
    n_local = len(is_local)
    idx, occupancy, fullest_cell = config.rows_fn(
        jnp.where(is_local[:, None], position, jnp.nan),
        jnp.where(is_real, jnp.arange(capacities.atoms), n_local),
        capacities.cell,
        capacities.max_neighbors,
    )
    species, n_near = partition.with_halo(atoms.species, before, after), jnp.zeros((), int)
    none = jnp.zeros(0, jnp.int32)
    lists = Lists(before, after, species, idx, (), none, none, atoms.position, none, none, none)
    support = atoms.gate > 0
    if config.region.is_dynamic:
        lists, n_near = _list_near_seeds(config, atoms, lists, capacities.near_seeds)
        arguments, region, neighbors = _around_seeds(config, atoms.position, lists)
        support = region.support(arguments, config.box_displacement, config.dr_threshold, neighbors)
        support = support[: capacities.atoms]
    support = support & is_real[:, None]
    lists = lists._replace(
        centers=tuple(first_true(support[:, e], size, n_local) for e, size in enumerate(capacities.centers))
    )
    n_halo = jnp.maximum(passing, jnp.max(jnp.stack([jnp.sum(mask) for mask in near_faces])))
    needed = jnp.stack([n_here, n_halo, fullest_cell, n_near, *occupancy, *jnp.sum(support, axis=0)])
    gates = gate(config, atoms.position, atoms, lists)
    out_of_domain = _count_out_of_domain(config, gates, position, lists)
    n_found, out_of_domain = jax.lax.psum((jnp.sum(is_real), out_of_domain), SUBDOMAIN)
    lists = lists._replace(
        needed=jax.lax.pmax(needed, SUBDOMAIN)[None],
        out_of_domain=out_of_domain[None],
        is_complete=(n_found == config.n_atoms)[None],
    )
    return replace(state, atoms=atoms, lists=lists)


def gate(
    config: DistributedConfig, position: Float[Array, "n 3"], atoms: Atoms, lists: Lists
) -> Float[Array, "n experts"]:
    """Gates of own atoms; zero in empty slots."""
    gates = atoms.gate
    if config.region.is_dynamic:
        position, region, neighbors = _around_seeds(config, position, lists)
        gates = region.gate(position, config.box_displacement, neighbors)[: len(atoms.index)]
    return jnp.where((atoms.index < config.n_atoms)[:, None], gates, 0.0)


def own_energy(
    config: DistributedConfig,
    position: Float[Array, "n 3"],
    atoms: Atoms,
    lists: Lists,
    params: Sequence[Params],
) -> Float[Array, ""]:
    """Energy of own atoms in eV; NaN where an atom with a gate above zero has no row."""
    gates = gate(config, position, atoms, lists)
    local = config.partition.local_positions(position, lists.before, lists.after)
    total, is_missing = jnp.zeros((), position.dtype), jnp.any(jnp.isnan(gates))
    for e, centers in enumerate(lists.centers):
        centers, of_centers, n_active = active_first(centers, gate_of(gates, centers, e))
        is_missing = is_missing | (jnp.sum(gates[:, e] > 0) > n_active)
        if len(centers):
            rows = _energy_rows(config, e, centers, local, lists)
            energies = config.energy_fns[e](params[e], rows, wanted=n_active)
            total = total + jnp.sum(jnp.where(of_centers > 0, of_centers * energies, 0.0))
    # The product with all positions makes all forces NaN too.
    return total + jnp.where(is_missing, jnp.nan, 0.0).astype(position.dtype) * jnp.sum(position)


def advance(
    config: DistributedConfig,
    state: State,
    integrator: Any,
    params: Sequence[Params],
    n_steps: Int[Array, ""],
    evaluate_first: Bool[Array, ""],
) -> tuple[State, Int[Array, ""], Int[Array, ""]]:
    """Up to `n_steps` steps; fewer where something stops them.

    With `evaluate_first`, step 0 evaluates the forces at the start and moves nothing.

    Returns:
        The state, the number of the last step, and why the loop stopped: bits of
        `OVERFLOW`, `TOO_FAST` and `NOT_FINITE`, 0 where it did not.
    """

    def goes_on(carry):
        _, step, stop = carry
        return (step < n_steps) & (stop == 0)

    start = (state, jnp.where(evaluate_first, -1, 0), jnp.zeros((), int))
    return jax.lax.while_loop(
        goes_on, lambda carry: _step(config, integrator, params, carry[0], carry[1] + 1), start
    )


def _step(config: DistributedConfig, integrator, params, state: State, step: Array):
    """One step: lists where they are needed, forces at the new positions, and the integrator."""
    # A rebuild moves atoms between devices, so it happens before the step, at the old positions.
    ahead = integrator.before_force(_dynamics(integrator, state), None).position
    ahead = jnp.where(step == 0, state.atoms.position, ahead.astype(state.atoms.position.dtype))
    has_left = _left_lists(config, ahead, state)
    state = jax.lax.cond(has_left, lambda old: rebuild(config, old), lambda old: old, state)
    atoms, lists = state.atoms, state.lists

    def evaluate(position: Array, box) -> tuple[Evaluation, None]:
        del box
        energy, gradient = jax.value_and_grad(lambda R: own_energy(config, R, atoms, lists, params))(position)
        return Evaluation(energy, -gradient, -gradient, None), None

    dynamics = _dynamics(integrator, state)
    after, _, evaluation, _ = md_step(integrator, dynamics, None, evaluate, only_evaluate=step == 0)
    atoms = atoms._replace(position=after.position, momentum=after.momentum, force=after.force)
    rng = getattr(after, "rng", None)
    energy, force = evaluation.energy, evaluation.force
    is_finite = jnp.isfinite(energy) & jnp.all(jnp.isfinite(force)) & jnp.all(jnp.isfinite(atoms.position))
    capacities = jnp.asarray(jax.tree.leaves(state.capacities))
    is_too_fast = _left_lists(config, atoms.position, state) | ~lists.is_complete[0]
    stop = jnp.where(jnp.any(lists.needed[0] > capacities), OVERFLOW, 0)
    stop = stop | jnp.where(is_too_fast, TOO_FAST, 0)
    stop = stop | jnp.where(jax.lax.pmin(is_finite, SUBDOMAIN), 0, NOT_FINITE)
    new = replace(
        state,
        atoms=atoms,
        energy=energy.astype(state.energy.dtype)[None],
        key=state.key if rng is None else rng[None],
        n_steps=state.n_steps + jnp.where(step == 0, 0, 1),
    )
    return new, step, stop


def _dynamics(integrator, state: State):
    """The integrator's state."""
    atoms, key = state.atoms, None if state.key is None else state.key[0]
    dynamics = integrator.init(atoms.position, atoms.momentum, atoms.mass[:, 0], key, None)
    return dynamics.set(force=atoms.force)


def _left_lists(config: DistributedConfig, position: Array, state: State) -> Array:
    """Whether an atom, on any device, has moved by more than half the skin since lists were built."""
    move = jnp.sum((position - state.lists.reference_position) ** 2, axis=-1)
    largest = jnp.max(jnp.where(state.atoms.index < config.n_atoms, move, 0.0))
    return jax.lax.pmax(largest, SUBDOMAIN) > (0.5 * config.dr_threshold) ** 2


def _around_seeds(
    config: DistributedConfig, position: Array, lists: Lists
) -> tuple[Array, Region, RegionNeighbors]:
    """Arguments of a dynamic region's gate in this subdomain.

    Returns:
        Own positions and then those of all seeds, the region around these copies, and its lists.
    """
    own, n = len(position), len(position) + len(config.seeds)
    of_seeds = position.at[lists.seeds].get(mode="fill", fill_value=0.0)  # zero for seeds of other devices
    position = jnp.concatenate([position, jnp.sum(jax.lax.all_gather(of_seeds, SUBDOMAIN), axis=0)])
    copies = jnp.arange(own, n, dtype=jnp.int32)
    cutoffs = config.region.required_neighbors(config.dr_threshold).cutoff[None]
    frame, overflow = jnp.eye(3, dtype=position.dtype), jnp.zeros((), bool)
    requested = NeighborList((lists.near_seeds,), position, frame, cutoffs, copies, overflow, (1, 1, 1), 0)
    none = jnp.zeros(0, jnp.int32)  # the region uses the requested list alone
    neighbors = RegionNeighbors(none, none[None], config.cutoffs[0], requested)
    return position, config.region.with_centers(copies), neighbors


def _list_near_seeds(
    config: DistributedConfig, atoms: Atoms, lists: Lists, capacity: int
) -> tuple[Lists, Array]:
    """Own slots near each seed, up to a capacity; and the largest number of them."""
    own, n_atoms = len(atoms.index), config.n_atoms
    slots = jnp.arange(own, dtype=jnp.int32)
    slot_of = jnp.full(n_atoms + 1, own, jnp.int32).at[atoms.index].set(slots).at[n_atoms].set(own)
    near = jnp.zeros((len(config.seeds), capacity), jnp.int32)
    lists = lists._replace(seeds=slot_of[config.seeds], near_seeds=near)
    position, _, neighbors = _around_seeds(config, atoms.position, lists)

    def near_one(seed):
        displacement = jax.vmap(config.box_displacement, (0, None))(atoms.position, seed)
        distance = jax_md.space.distance(displacement)
        is_near = (atoms.index < n_atoms) & (distance < neighbors.requested.cutoffs[0])
        return first_true(is_near, capacity, len(position)), jnp.sum(is_near)

    near, counts = jax.lax.map(near_one, position[own:])
    return lists._replace(near_seeds=near), jnp.max(counts)


def _energy_rows(
    config: DistributedConfig, expert: int, centers: Array, local_position: Array, lists: Lists
) -> Neighborhood | RowComponents:
    """Rows of own slots in the form that the expert takes."""
    potential = config.experts[expert]
    if potential.neighbor_sums is None:
        return _rows(config, expert, centers, local_position, lists)
    idx, n_local = lists.idx[config.level[expert]], len(local_position)
    is_own = centers < len(idx)
    neighbor = jnp.where(is_own[:, None], idx[jnp.where(is_own, centers, 0)], n_local)
    neighbor = allowed_neighbors(neighbor, lists.species, potential.species, potential.allowed_species)
    # Own atoms are further than every cutoff from the ends of this box, which is open along an axis.
    nearest_image = nearest_images(config.partition.local_box, dtype=local_position.dtype)
    beyond = BEYOND * potential.cutoff
    return components_from_positions(local_position, lists.species, centers, neighbor, nearest_image, beyond)


def _rows(
    config: DistributedConfig, expert: int, centers: Array, local_position: Array, lists: Lists
) -> Neighborhood:
    """Rows of an expert for own slots."""
    idx = lists.idx[config.level[expert]]
    return rows_from_neighbor_list(local_position, lists.species, idx, config.local_displacement, centers)


def _count_out_of_domain(
    config: DistributedConfig, gates: Array, local_position: Array, lists: Lists
) -> Array:
    """Number of own atoms that each expert computes outside its domain: `[n_experts]` int."""
    return jnp.stack(
        [
            n_out_of_domain(
                expert, _rows(config, e, centers, local_position, lists), gate_of(gates, centers, e)
            )
            if len(centers)
            else jnp.zeros((), int)
            for e, (expert, centers) in enumerate(zip(config.experts, lists.centers))
        ]
    )

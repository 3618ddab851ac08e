"""The mixture on slabs: what runs on each device, and the host beside it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe_md import lazy_jax_md as jax_md
from moe_md import units
from moe_md.checks import check_not_negative, check_positive, check_value
from moe_md.distributed.slabs import SLAB, Atoms, Cut, Lists, Sizes, State, which
from moe_md.experts.base import Potential, chunked_atom_energies
from moe_md.experts.domain import allows_every_species, in_domain, warn_out_of_domain
from moe_md.mixture import mixture_neighbor_list
from moe_md.neighbors import neighbor_list as lists
from moe_md.neighbors.rows import rows_from_neighbor_list
from moe_md.regions import Region, RegionNeighbors, check_region
from moe_md.simulate.integrators import NVE, Evaluation, Langevin


def _in_open_space(R: Array, dR: Array, **_) -> Array:
    """Positions a step on, unwrapped: atoms are wrapped where lists are made."""
    return R + dR


TOO_SMALL, TOO_FAST, NOT_FINITE = 1, 2, 4  # why a loop stopped


class Slabs(NamedTuple):
    """A mixture on several devices."""

    scatter: Callable  # (position, masses=None, *, velocity=None, temperature_K=None, key=None) -> State
    gather: Callable  # (State) -> Atoms, all of them in their order, on the host, inside the box
    evaluate: Callable  # (State, params=None) -> State with energy and forces
    # (State, integrator, n_steps, params=None, max_reallocations=8, first=False) -> (State, n_reallocations)
    advance: Callable
    check_domains: Callable  # (State) -> bool, all at home when lists were last made; warns


class SlabError(RuntimeError):
    """Numbers went bad; `state` is the last good one."""

    def __init__(self, message: str, state: State):
        super().__init__(message)
        self.state = state


def mixture(
    box,
    potentials: Sequence[Potential],
    species,
    region: Region,
    *,
    devices: Sequence | None = None,
    axis: int | None = None,
    dr_threshold: float = 0.4,
    capacity_multiplier: float = 1.25,
    chunk_size: int = 64,
) -> Slabs:
    """A mixture of strictly local experts, a slab of the box on each device.

    Every device has as many slots and rows as the fullest; rows without an atom
    are skipped, a chunk at a time. The slowest sets the pace: choose an axis
    along which the expensive atoms are spread.

    Args:
        box: Å, a number, `[3]` edges, or columns of a right-angled box.
        potentials, species, capacity_multiplier, chunk_size: as in
            `mixture_neighbor_list`.
        region: `fixed`, `slab` or `sphere`, or `around` few seeds: of each,
            every device is told the position.
        devices: one slab each; default all of jax's.
        axis: 0, 1 or 2, normal to the slabs; default along the longest edge.
        dr_threshold: Å, the skin, positive.

    Returns:
        scatter: atoms to their devices, at rest, with a `velocity` (`[n_atoms, 3]`,
            ASE's unit) or a Maxwell-Boltzmann draw without total momentum.
        gather: what is known of the atoms, in their order.
        evaluate: energy and forces.
        advance: so many steps of `nve` or `langevin`; `first`, or where they are
            unknown, forces are evaluated before.
        check_domains: as a mixture's, when lists were last made.

    Raises:
        ValueError: as `mixture_neighbor_list`; or the box is not right-angled,
            a slab is thinner than the longest cutoff and the skin, the region
            moves otherwise than `around`, or an expert passes messages. On use,
            shapes do not match, or the integrator is another one.
    """
    edges, axis = _checked_edges(box, axis)
    one_device = jax_md.space.periodic(edges)[0]  # ty: ignore[invalid-argument-type]  # numpy serves
    mixture_neighbor_list(
        one_device,
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
    n_slabs, n_atoms, n_experts = len(devices), len(species), len(experts)
    check_positive("dr_threshold", dr_threshold)
    _check_region(region, n_atoms, n_experts)
    if any(expert.num_hops > 1 for expert in experts):
        raise ValueError("experts must be strictly local on several devices, got one that passes messages.")
    cutoffs = sorted({e.cutoff for e in experts}, reverse=True)
    level = [cutoffs.index(e.cutoff) for e in experts]
    cut = Cut(n_atoms, n_slabs, axis, edges, cutoffs[0] + dr_threshold)
    builder_params, energies_of = tuple(params), [chunked_atom_energies(e, chunk_size) for e in experts]
    in_slab, in_box = _displacement(np.where(np.arange(3) == axis, np.inf, edges)), _displacement(edges)
    make_rows = lists.neighbor_list(in_slab, cut.local_box, cutoffs, dr_threshold=dr_threshold).rows
    seeds = np.asarray(
        region.required_neighbors(dr_threshold).centers if region.is_dynamic else np.zeros(0, np.int32)
    )
    mesh, piece, whole = Mesh(np.array(devices), (SLAB,)), PartitionSpec(SLAB), PartitionSpec()
    on_slabs = partial(jax.shard_map, mesh=mesh, check_vma=False)  # branches of `cond` differ in what varies

    # What follows, up to `loop`, runs on each device.

    def followed(position: Array, made: Lists) -> tuple[Array, Region, RegionNeighbors]:
        """Own positions and those of all seeds, the region that follows the latter, what is near them."""
        own, n = len(position), len(position) + len(seeds)
        mine = position.at[made.seeds].get(mode="fill", fill_value=0.0)
        position = jnp.concatenate([position, jnp.sum(jax.lax.all_gather(mine, SLAB), axis=0)])
        copies = jnp.arange(own, n, dtype=jnp.int32)
        reach = region.required_neighbors(dr_threshold).cutoff[None]
        frame, no, none = jnp.eye(3, dtype=position.dtype), jnp.zeros((), bool), jnp.zeros(0, jnp.int32)
        known = lists.NeighborList((made.near,), position, frame, reach, copies, no, (1, 1, 1), 0)
        near = RegionNeighbors(none, none[None], cutoffs[0], known)  # it asks for its spheres alone
        return position, region.with_centers(copies), near

    def gate(position: Array, atoms: Atoms, made: Lists) -> Array:
        """Shares of own atoms, zero in empty slots."""
        weight = atoms.weight
        if region.is_dynamic:
            position, owner, near = followed(position, made)
            weight = owner.gate(position, in_box, near)[: len(atoms.index)]
        return jnp.where((atoms.index < n_atoms)[:, None], weight, 0.0)

    def rows_of(e: int, centers: Array, everywhere: Array, made: Lists):
        return rows_from_neighbor_list(everywhere, made.species, made.idx[level[e]], in_slab, centers)

    def with_near(atoms: Atoms, made: Lists, size: int) -> tuple[Lists, Array]:
        """Own slots near each seed, at most `size`; and how many the busiest seed has."""
        own = len(atoms.index)
        slot_of = (
            jnp.full(n_atoms + 1, own, jnp.int32)
            .at[atoms.index]
            .set(jnp.arange(own, dtype=jnp.int32))
            .at[n_atoms]
            .set(own)
        )
        made = made._replace(seeds=slot_of[seeds], near=jnp.zeros((len(seeds), size), jnp.int32))
        position, _, around = followed(atoms.position, made)

        def near_one(seed):
            distance = jax_md.space.distance(jax.vmap(in_box, (0, None))(atoms.position, seed))
            found = (atoms.index < n_atoms) & (distance < around.requested.cutoffs[0])
            return which(found, size, len(position)), jnp.sum(found)

        near, counts = jax.lax.map(near_one, position[own:])
        return made._replace(near=near), jnp.max(counts)

    def listed(state: State) -> State:
        """Atoms where they belong, and lists of what is near them."""
        sizes = state.sizes
        atoms, passing, n_here = cut.migrated(state.atoms, sizes.halo)
        near_faces = cut.near_faces(atoms)
        before, after = (which(mask, sizes.halo) for mask in near_faces)
        local = cut.with_halo(atoms.index, before, after, n_atoms) < n_atoms
        real, n_local = atoms.index < n_atoms, len(local)
        everywhere = cut.places(atoms.position, before, after)
        placed = jnp.where(local[:, None], everywhere, jnp.nan)
        idx, slots, cell = make_rows(
            placed, jnp.where(real, jnp.arange(sizes.atoms), n_local), sizes.cell, sizes.slots
        )
        species, n_near, none = (
            cut.with_halo(atoms.species, before, after),
            jnp.zeros((), int),
            jnp.zeros(0, jnp.int32),
        )
        made = Lists(before, after, species, idx, (), none, none, atoms.position, none, none, none)
        held = atoms.weight > 0
        if region.is_dynamic:
            made, n_near = with_near(atoms, made, sizes.near)
            position, owner, around = followed(atoms.position, made)
            held = owner.support(position, in_box, dr_threshold, around)[: sizes.atoms]
        held = held & real[:, None]
        made = made._replace(
            centers=tuple(which(held[:, e], size, n_local) for e, size in enumerate(sizes.rows))
        )
        halo = jnp.maximum(passing, jnp.max(jnp.stack([jnp.sum(mask) for mask in near_faces])))
        needed = jax.lax.pmax(jnp.stack([n_here, halo, cell, n_near, *slots, *jnp.sum(held, axis=0)]), SLAB)
        weight = gate(atoms.position, atoms, made)
        out_of_domain = jnp.stack([n_out_of_domain(e, weight, everywhere, made) for e in range(n_experts)])
        n_found, out_of_domain = jax.lax.psum((jnp.sum(real), out_of_domain), SLAB)
        made = made._replace(
            needed=needed[None], out_of_domain=out_of_domain[None], whole=(n_found == n_atoms)[None]
        )
        return replace(state, atoms=atoms, lists=made)

    def n_out_of_domain(e: int, weight: Array, everywhere: Array, made: Lists) -> Array:
        """How many own atoms with weight on an expert are, or see, what it does not know."""
        expert, centers = experts[e], made.centers[e]
        if allows_every_species(expert) or len(centers) == 0:
            return jnp.zeros((), int)
        rows = rows_of(e, centers, everywhere, made)
        return jnp.sum(
            ~in_domain(expert, rows) & (weight.at[centers, e].get(mode="fill", fill_value=0.0) > 0)
        )

    def own_energy(position: Array, atoms: Atoms, made: Lists, params) -> Array:
        """eV, of own atoms; NaN where an atom with weight has no row."""
        weight, everywhere = gate(position, atoms, made), cut.places(position, made.before, made.after)
        total, missing = jnp.zeros((), position.dtype), jnp.any(jnp.isnan(weight))
        for e, centers in enumerate(made.centers):
            share = weight.at[centers, e].get(mode="fill", fill_value=0.0)
            order = jnp.argsort(share <= 0)  # rows without weight come last and are left out
            centers, share = centers[order], share[order]
            n_weighted = jnp.sum(share > 0)
            missing = missing | (jnp.sum(weight[:, e] > 0) > n_weighted)
            if len(centers):
                energies = energies_of[e](params[e], rows_of(e, centers, everywhere, made), wanted=n_weighted)
                total = total + jnp.sum(jnp.where(share > 0, share * energies, 0.0))
        return total + jnp.where(missing, jnp.nan, 0.0).astype(position.dtype) * jnp.sum(position)

    def loop(state: State, integrator, params, n_steps, first):
        """Steps, fewer where something stops them; if `first`, forces of where the atoms are, before."""

        def dynamics(state: State):
            atoms, key = state.atoms, None if state.key is None else state.key[0]
            return integrator.start(atoms.position, atoms.momentum, atoms.mass[:, 0], key, None).set(
                force=atoms.force
            )

        def ahead(state: State, k) -> Array:
            here = state.atoms.position
            there = integrator.step(dynamics(state), Evaluation(jnp.zeros_like(here), None), None).position
            return jnp.where(k == 0, here, there.astype(here.dtype))

        def far(position, state: State) -> Array:
            """Whether an atom, on any device, has left its lists."""
            move = jnp.sum((position - state.lists.reference) ** 2, axis=-1)
            farthest = jnp.max(jnp.where(state.atoms.index < n_atoms, move, 0.0))
            return jax.lax.pmax(farthest, SLAB) > (0.5 * dr_threshold) ** 2

        def step(carry):
            state, k, _ = carry
            k = k + 1
            state = jax.lax.cond(far(ahead(state, k), state), listed, lambda state: state, state)
            position, atoms, made = ahead(state, k), state.atoms, state.lists
            energy, gradient = jax.value_and_grad(own_energy)(position, atoms, made, params)
            after = integrator.step(dynamics(state), Evaluation(-gradient, None), None)
            moved = atoms._replace(position=after.position, momentum=after.momentum)
            # A time step in float64 must not change float32 positions.
            atoms = jax.tree.map(lambda old, new: jnp.where(k == 0, old, new.astype(old.dtype)), atoms, moved)
            atoms = atoms._replace(force=-gradient)
            rng = getattr(after, "rng", None)
            key = state.key if rng is None else jnp.where(k == 0, state.key, rng[None])
            good = (
                jnp.isfinite(energy) & jnp.all(jnp.isfinite(gradient)) & jnp.all(jnp.isfinite(atoms.position))
            )
            wanted, held = made.needed[0], jnp.asarray(jax.tree.leaves(state.sizes))
            stop = jnp.where(jnp.any(wanted > held), TOO_SMALL, 0) | jnp.where(
                far(position, state) | ~made.whole[0], TOO_FAST, 0
            )
            stop = stop | jnp.where(jax.lax.pmin(good, SLAB), 0, NOT_FINITE)
            n_taken = state.n_steps + jnp.where(k == 0, 0, 1)
            energy = energy.astype(state.energy.dtype)
            return replace(state, atoms=atoms, energy=energy[None], key=key, n_steps=n_taken), k, stop

        start = (state, jnp.where(first, -1, 0), jnp.zeros((), int))
        return jax.lax.while_loop(lambda carry: (carry[1] < n_steps) & (carry[2] == 0), step, start)

    relist = jax.jit(on_slabs(listed, in_specs=piece, out_specs=piece))
    advance_jit = jax.jit(
        on_slabs(loop, in_specs=(piece, whole, whole, whole, whole), out_specs=(piece, whole, whole))
    )

    # On the host.

    def put(x):
        return jax.device_put(x, NamedSharding(mesh, piece))

    def grown(sizes: Sizes, needed, extra: int = 0) -> Sizes:
        """Where more is needed, as much and some to spare."""
        leaves, tree = jax.tree.flatten(sizes)
        spare = [int(np.ceil(capacity_multiplier * int(n))) + extra for n in needed]
        return jax.tree.unflatten(
            tree, [room if n > have else have for have, n, room in zip(leaves, needed, spare)]
        )

    def fitted(atoms: Atoms, key, n_steps: int, sizes: Sizes) -> State:
        """All atoms, in numpy, in the slots of their devices, with lists made, and room for all."""
        slab = cut.home(atoms.position)
        order, count = np.argsort(slab, kind="stable"), np.bincount(slab, minlength=n_slabs)
        place = np.arange(n_atoms) - np.repeat(np.cumsum(count) - count, count)
        sizes = grown(sizes, [count.max(), *jax.tree.leaves(sizes)[1:]])
        for _ in range(8):

            def placed(x, nothing, n=sizes.atoms):
                slots = np.full((n_slabs * n, *x.shape[1:]), nothing, x.dtype)
                slots[n * slab[order] + place] = x[order]
                return put(slots)

            energy, taken = (
                np.full(n_slabs, np.nan, atoms.position.dtype),
                np.full(n_slabs, n_steps, np.int32),
            )
            state = relist(
                State(
                    jax.tree.map(placed, atoms, cut.empty),
                    cast(Lists, None),  # made here
                    put(energy),
                    key,
                    put(taken),
                    sizes,
                )
            )
            needed = np.asarray(state.lists.needed)[0]
            if (needed <= jax.tree.leaves(sizes)).all():
                return state
            sizes = grown(sizes, needed)
        raise ValueError(
            "position must fit some lists, "
            f"got up to {needed.max()} atoms in a cell or a row: atoms may overlap."
        )

    def scatter(
        position, masses=None, *, velocity=None, temperature_K: float | None = None, key=None
    ) -> State:
        position = _checked("position", position, (n_atoms, 3))
        dtype = position.dtype
        masses = np.ones(n_atoms) if masses is None else _checked("masses", masses, (n_atoms,))
        mass = masses.astype(dtype)[:, None]
        if not (mass > 0).all():
            raise ValueError(f"masses must be positive (amu), got a smallest of {mass.min()}.")
        momentum = np.zeros_like(position)
        if velocity is not None:
            momentum = mass * _checked("velocity", velocity, (n_atoms, 3)).astype(dtype)
        if temperature_K is not None:
            if key is None or velocity is not None:
                raise ValueError("temperature_K must come with a random key, and without velocity.")
            check_not_negative("temperature_K", temperature_K)
            key, draw = jax.random.split(key)
            spread = np.sqrt(mass * dtype.type(units.kB * temperature_K))
            momentum = spread * np.asarray(jax.random.normal(draw, (n_atoms, 3), dtype))
            momentum -= mass * (momentum.sum(axis=0) / mass.sum())
        weight = (
            np.zeros((n_atoms, n_experts))
            if region.is_dynamic
            else np.asarray(region.gate(jnp.asarray(position), in_box))
        )
        numbers, kinds = np.arange(n_atoms, dtype=np.int32), np.asarray(species, np.int32)
        atoms = Atoms(
            numbers,
            kinds,
            weight.astype(dtype),
            mass,
            cut.wrapped(position),
            momentum,
            np.zeros_like(momentum),
        )
        key = None if key is None else put(jax.random.split(key, n_slabs))
        # Lists made with room to waste say how much is needed.
        most = int(np.ceil(capacity_multiplier * np.bincount(cut.home(atoms.position)).max()))
        roomy = fitted(atoms, key, 0, Sizes(most, most, 64, most, (128,) * len(cutoffs), (most,) * n_experts))
        nothing = jax.tree.map(lambda _: 0, roomy.sizes)
        return fitted(atoms, key, 0, grown(nothing, np.asarray(roomy.lists.needed)[0]))

    def gather(state: State) -> Atoms[np.ndarray]:
        found = jax.tree.map(np.asarray, state.atoms)
        slots = np.flatnonzero(found.index < n_atoms)
        slots = slots[np.argsort(found.index[slots])]
        atoms = jax.tree.map(lambda x: x[slots], found)
        return atoms._replace(position=cut.wrapped(atoms.position))

    def advance(
        state: State, integrator, n_steps: int, params=None, max_reallocations: int = 8, first: bool = False
    ) -> tuple[State, int]:
        if not _works_on_slots(integrator):
            raise ValueError(
                "integrator must be nve, or langevin of one friction, on several devices, "
                f"got {integrator!r:.80}."
            )
        if integrator.needs_key and state.key is None:
            raise ValueError("key must be given to scatter for Langevin dynamics.")
        integrator = replace(integrator, shift_fn=_in_open_space)
        params = builder_params if params is None else tuple(params)
        first, good = bool(first or np.isnan(state.potential)), state
        for n_reallocations in range(max_reallocations + 1):
            new, _, stop = advance_jit(state, integrator, params, n_steps, first)
            before, at, stop = int(np.asarray(state.n_steps)[0]), int(np.asarray(new.n_steps)[0]), int(stop)
            if stop & TOO_SMALL:
                sizes = grown(state.sizes, np.asarray(new.lists.needed)[0], extra=4 * (n_reallocations + 1))
                state = replace(fitted(gather(state), state.key, before, sizes), energy=state.energy)
            elif stop & TOO_FAST:
                raise SlabError(
                    f"no atom may move by more than half of dr_threshold = {dr_threshold} Å in a step, "
                    f"but one did at step {at}: try a shorter timestep_fs.",
                    good,
                )
            elif stop & NOT_FINITE:
                raise SlabError(
                    f"energy, forces and positions must stay finite, got NaN or infinity at step {at}.", good
                )
            else:
                return new, n_reallocations
        raise SlabError(
            f"capacities must suffice after growing {max_reallocations} times, "
            f"but they ran out again at step {at}.",
            good,
        )

    def evaluate(state: State, params=None) -> State:
        return advance(state, NVE(0.0, _in_open_space), 0, params, first=True)[0]

    def check_domains(state: State) -> bool:
        return warn_out_of_domain(experts, np.asarray(state.lists.out_of_domain)[0], stacklevel=4)

    return Slabs(scatter, gather, evaluate, advance, check_domains)


def _works_on_slots(integrator) -> bool:
    """Whether it moves each atom by itself, all alike, by the whole force at every step."""
    if getattr(integrator, "outer_every", 1) != 1:
        return False
    return isinstance(integrator, NVE) or (
        isinstance(integrator, Langevin)
        and np.ndim(integrator.friction_per_fs) == 0
        and integrator.expert_friction is None
    )


def _displacement(sides: np.ndarray) -> Callable:
    """From the second to the nearest image of the first; infinite sides have none."""
    periodic = np.isfinite(sides)
    side, inverse = np.where(periodic, sides, 0.0), np.where(periodic, 1.0 / sides, 0.0)

    def displacement_fn(Ra: Array, Rb: Array, **_) -> Array:
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


def _check_region(region, n_atoms: int, n_experts: int) -> None:
    check_region(region, "with_centers", "check_size")
    if region.is_dynamic:
        region.with_centers(jnp.zeros(0, jnp.int32))  # raises for regions that need more than centres
    region.check_size(n_atoms, n_experts)


def _checked(name: str, value, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(jnp.asarray(value))
    if values.shape != shape or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        found = f"shape {list(values.shape)} and dtype {values.dtype}"
        raise ValueError(f"{name} must be finite numbers of shape {list(shape)}, got {found}.")
    return values

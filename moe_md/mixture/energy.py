"""One energy, many experts.

    E(R) = sum_i sum_e w_ie(R) E_i^e(row i)

Rows of centres are gathered per expert at a fixed capacity and only those are
computed: an expert costs what its own atoms cost, with as many slots as its own
cutoff needs. The result is one function of the positions, so its gradient
conserves energy and momentum.

An expert that passes messages is given its own centres and a halo: the rows of
all atoms within `num_hops - 1` neighbours of them. Their energies are not used.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moe_md.checks import check_value
from moe_md.experts.base import Expert, Params, Potential, chunked_atom_energies
from moe_md.experts.domain import allows_every_species, in_domain, warn_out_of_domain
from moe_md.neighbors import neighbor_list as lists
from moe_md.neighbors.rows import Neighborhood, max_occupancy, rows_from_neighbor_list, rows_within_cutoff
from moe_md.regions import NeighborRequest, Region, RegionNeighbors, check_region

MAX_EDGE = 1e4  # Å, of a box
# Of the room for neighbours within the skin, what those within a cutoff want:
# there are fewer, and they vary less.
THERMAL_CAPACITY_FACTOR = 0.3


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MixtureNeighbors:
    """Neighbours of every atom, and the rows of every expert."""

    list: lists.NeighborList  # neighbours of all atoms, for each cutoff
    centers: tuple[Array, ...]  # per expert [capacity] int, the atoms it computes, n_atoms where none
    halo: tuple[Array, ...]  # per expert [capacity] int, other atoms whose rows it needs, n_atoms where none
    requested: Any  # lists of what is near the atoms that the region follows, as it wants them
    # bool, an expert was given more atoms than it holds rows, or more neighbours than slots
    centers_overflow: Array
    # per potential, in a row without skin; None where the list's will do
    max_neighbors: tuple[int | None, ...] = field(metadata={"static": True})
    update_fn: Callable = field(metadata={"static": True})
    stale_fn: Callable = field(metadata={"static": True})

    def update(
        self, position: Array, *, region: Region | None = None, renew: bool = False, **kwargs
    ) -> "MixtureNeighbors":
        """The same capacities at new positions; safe under jit.

        Args:
            position: `[n_atoms, 3]`.
            region: default the builder's.
            renew: make the lists anew also where the old ones would do, so that
                they follow from position, region and capacities alone.
            **kwargs: `box`, `perturbation`.
        """
        return self.update_fn(position, self, region=region, renew=renew, **kwargs)

    def stale(self, position: Array, *, region: Region | None = None, **kwargs) -> Array:
        """Whether lists that are kept may miss pairs here, bool; arguments as in `update`."""
        return self.stale_fn(position, self, region=region, **kwargs)

    @property
    def idx(self) -> Array:
        """`[n_atoms, K]` int, neighbours of every atom within the longest cutoff and the skin."""
        return self.list.idx[0]

    @property
    def did_buffer_overflow(self) -> Array:
        """Results are wrong: allocate again, larger, and go back to the last good state."""
        return self._list_overflow | self.centers_overflow

    @property
    def error(self) -> Array:
        """Bits, 1 and 256.

        1 where rows or cells of the list ran out or the box became too narrow, 256 where an expert ran out of
        rows or slots.
        """
        return jnp.where(self._list_overflow, 1, 0) | jnp.where(self.centers_overflow, 256, 0)

    @property
    def _list_overflow(self) -> Array:
        made = [
            self.list,
            *jax.tree.leaves(self.requested, is_leaf=lambda x: isinstance(x, lists.NeighborList)),
        ]
        return jnp.any(jnp.stack([each.did_buffer_overflow for each in made]))


class Parts(NamedTuple):
    """What a mixture's energy is made of: the sum of their product."""

    weight: Array  # [n_atoms, n_experts]
    energy: Array  # [n_atoms, n_experts] eV, zero without weight


class MixtureNeighborFns(NamedTuple):
    """Host-side allocation and jitted update, as jax-md's `NeighborListFns`."""

    allocate: Callable  # (position, extra_capacity=0, *, region=None, **kwargs) -> MixtureNeighbors
    update: Callable  # (position, neighbors, *, region=None, renew=False, **kwargs) -> MixtureNeighbors
    check_domains: Callable  # (position, neighbors, *, region=None, **kwargs) -> bool, all at home; warns
    parts: Callable  # (position, neighbors, *, params=None, region=None, **kwargs) -> Parts
    gate: Callable  # (position, neighbors, *, region=None, **kwargs) -> [n_atoms, n_experts], weights
    # (position, neighbors, region, **kwargs) -> a region of `regions.reassigned`, atoms dealt out anew
    assign: Callable
    # (position, neighbors, *, params=None, region=None, **kwargs) -> eV, the inner potential for expert 0
    inner_energy: Callable | None  # None without an inner potential
    inner_outer_split: Callable | None  # the same -> [2] eV, that energy and what is missing from the whole


def mixture_neighbor_list(
    displacement_fn: Callable,
    box,
    potentials: Sequence[Potential],
    species,
    region: Region,
    *,
    dr_threshold: float = 0.4,
    capacity_multiplier: float = 1.25,
    per_particle: bool = False,
    fractional_coordinates: bool = False,
    chunk_size: int = 64,
    inner_potential: tuple[Expert, Params] | None = None,
) -> tuple[MixtureNeighborFns, Callable]:
    """A mixture of experts as jax-md's `(neighbor_fn, energy_fn)`.

    Args:
        displacement_fn: from `jax_md.space`, `periodic` or `periodic_general`.
        box: Å, a number, `[3]` edges or `[3, 3]` columns.
        potentials: experts with their parameters, `(expert, params)` each, the
            most expensive first; `checkpoint.potentials` are some.
        species: `[n_atoms]` int, index into `Expert.species`.
        region: who owns what; expert 0 is inside.
        dr_threshold: Å, skin of the neighbour list.
        capacity_multiplier: slots allocated over slots needed; also rows of an
            expert whose region moves, and of a halo.
        per_particle: return `[n_atoms]` energies instead of their sum.
        fractional_coordinates: positions are fractions of the box; without
            them the box cannot change.
        chunk_size: rows computed at a time.
        inner_potential: a cheap expert and its parameters, of any domain, that stands in
            for expert 0 between two of its forces: for multiple time steps,
            `simulate.nve(..., outer_every=)`. It may be expert 1 itself.

    Returns:
        neighbor_fn: `allocate(R)` on the host, then `nbrs.update(R)` under jit.
            `check_domains(R, nbrs)` warns of rows outside an expert's domain;
            `parts(R, nbrs)` are weights and energies, atom by atom and expert by expert.
            With an inner potential, `inner_energy(R, nbrs)` is the energy with it in expert 0's
            place, `inner_outer_split(R, nbrs)` that and what is missing from the energy.
        energy_fn: `energy_fn(R, neighbor, *, params=, region=, box=,
        perturbation=)` in eV, the builder's values as defaults; box and
        perturbation (a number or `[3, 3]`, applied to displacements) reach
        rows and gates. Differentiable in positions, parameters, region and
        perturbation. Rows that the list does not hold make it NaN: never a
        silently wrong energy.

    Raises:
        ValueError: experts disagree on species, lengths or shapes do not match,
            a species index is unknown, the cutoff does not fit the box, or, on
            use, `box` is given without fractional coordinates.
    """
    experts, params = _checked_potentials(potentials)
    _check_builder_arguments(region, dr_threshold, capacity_multiplier, chunk_size)
    species = _checked_species(experts, species)
    n_atoms = species.shape[0]
    if inner_potential is not None:
        _check_inner_potential(inner_potential, experts)
    every_expert = experts if inner_potential is None else (*experts, inner_potential[0])
    cutoffs = sorted({e.cutoff for e in every_expert}, reverse=True)
    level = [cutoffs.index(e.cutoff) for e in every_expert]
    if not dr_threshold >= 0:
        raise ValueError(f"dr_threshold must not be negative (Å), got {dr_threshold}.")
    _check_box(box, cutoffs[0])
    builder_region, builder_params = region, params
    energies_of = [chunked_atom_energies(e, chunk_size) for e in every_expert]
    list_fns = lists.neighbor_list(
        displacement_fn,
        box,
        cutoffs,
        dr_threshold=dr_threshold,
        capacity_multiplier=capacity_multiplier,
        fractional_coordinates=fractional_coordinates,
    )

    def given(box=None, perturbation=None) -> dict:
        if box is not None and not fractional_coordinates:
            raise ValueError(
                "box can be given only where fractional_coordinates = True: positions in Å stay behind."
            )
        return {k: v for k, v in (("box", box), ("perturbation", perturbation)) if v is not None}

    def region_neighbors(neighbors_list, requested) -> RegionNeighbors:
        return RegionNeighbors(species, neighbors_list.idx[0], cutoffs[0], requested)

    def support(position, owner: Region, neighbors_list, requested, **kwargs) -> Array:
        """Which atoms each expert computes, `[n_atoms, n_experts]` bool."""
        near = region_neighbors(neighbors_list, requested)
        return owner.support(position, partial(displacement_fn, **kwargs), dr_threshold, near)

    def halos_of(held, full_list) -> list[Array]:
        """Which atoms each expert needs besides, `[n_atoms]` bool each."""
        return [
            _halo(held[:, e], full_list.idx[level[e]], expert.num_hops) for e, expert in enumerate(experts)
        ]

    def select(held, halos, centers_sizes, halo_sizes):
        centers = tuple(_first(held[:, e], size) for e, size in enumerate(centers_sizes))
        halo = tuple(_first(mask, size) for mask, size in zip(halos, halo_sizes))
        needed = jnp.concatenate([jnp.sum(held, axis=0), jnp.stack([jnp.sum(mask) for mask in halos])])
        return centers, halo, jnp.any(needed > jnp.asarray([*centers_sizes, *halo_sizes]))

    packed = [potential.pack_neighbors and potential.num_hops == 1 for potential in every_expert]

    def fullest(position, centers, full_list, **kwargs) -> list[Array | None]:
        """The most neighbours within its cutoff that a row of each potential with dear slots has."""
        moved, held = partial(displacement_fn, **kwargs), [*centers, centers[0]]
        return [
            max_occupancy(position, full_list.idx[level[e]], moved, held[e], p.cutoff) if packed[e] else None
            for e, p in enumerate(every_expert)
        ]

    def allocate(position, extra_capacity: int = 0, *, region: Region | None = None, **kwargs):
        kwargs = given(**kwargs)
        _check_position(position, n_atoms)
        _check_box(lists.strained(kwargs.get("box", box), kwargs.get("perturbation")), cutoffs[0])
        owner = builder_region if region is None else region
        full_list = list_fns.allocate(position, extra_capacity=extra_capacity, **kwargs)

        narrowest = lists.perpendicular_widths(
            lists.strained(kwargs.get("box", box), kwargs.get("perturbation"))
        ).min()

        def listed(wanted: NeighborRequest):
            _check_seeds(wanted.centers, n_atoms)
            warn_of_wide_requests(float(wanted.cutoff) - dr_threshold, narrowest)
            return list_fns.allocate(
                position, extra_capacity, cutoffs=[wanted.cutoff], centers=wanted.centers, **kwargs
            )

        requested = jax.tree.map(listed, owner.required_neighbors(dr_threshold), is_leaf=_is_request)
        held = support(position, owner, full_list, requested, **kwargs)
        _check_held(np.asarray(held), n_atoms, len(experts))
        halos = halos_of(held, full_list)
        slack = capacity_multiplier if owner.is_dynamic else 1.0
        sizes = tuple(_capacity(n, slack, n_atoms) for n in np.sum(held, axis=0))
        halo_sizes = tuple(_capacity(np.sum(mask), capacity_multiplier, n_atoms) for mask in halos)
        centers, halo, overflow = select(held, halos, sizes, halo_sizes)
        room = 1.0 + THERMAL_CAPACITY_FACTOR * (capacity_multiplier - 1.0)
        most = fullest(position, centers, full_list, **kwargs)
        slots = tuple(None if n is None else max(1, lists.roomy(room, extra_capacity, int(n))) for n in most)
        neighbors = MixtureNeighbors(full_list, centers, halo, requested, overflow, slots, update, stale)
        check_domains(position, neighbors, region=region, **kwargs)
        return neighbors

    def stale(position, neighbors: MixtureNeighbors, *, region: Region | None = None, **kwargs) -> Array:
        kwargs = given(**kwargs)
        wanted = (builder_region if region is None else region).required_neighbors(dr_threshold)
        _check_requested(wanted, neighbors.requested)

        def old(wish: NeighborRequest, made: lists.NeighborList) -> Array:
            return list_fns.stale(position, made, cutoffs=wish.cutoff[None], centers=wish.centers, **kwargs)

        of_spheres = jax.tree.leaves(jax.tree.map(old, wanted, neighbors.requested, is_leaf=_is_request))
        return jnp.any(jnp.stack([list_fns.stale(position, neighbors.list, **kwargs), *of_spheres]))

    def update(
        position, neighbors: MixtureNeighbors, *, region: Region | None = None, renew: bool = False, **kwargs
    ):
        kwargs = given(**kwargs)
        full_list = list_fns.update(position, neighbors.list, renew=renew, **kwargs)
        owner = builder_region if region is None else region

        def listed(wanted: NeighborRequest, old: lists.NeighborList):
            return list_fns.update(
                position, old, renew=renew, cutoffs=wanted.cutoff[None], centers=wanted.centers, **kwargs
            )

        wanted = owner.required_neighbors(dr_threshold)
        _check_requested(wanted, neighbors.requested)
        requested = jax.tree.map(listed, wanted, neighbors.requested, is_leaf=_is_request)
        held = support(position, owner, full_list, requested, **kwargs)
        sizes = (tuple(c.shape[0] for c in each) for each in (neighbors.centers, neighbors.halo))
        centers, halo, overflow = select(held, halos_of(held, full_list), *sizes)
        overflow = overflow | neighbors.centers_overflow
        for n, size in zip(fullest(position, centers, full_list, **kwargs), neighbors.max_neighbors):
            overflow = overflow if n is None or size is None else overflow | (n > size)
        return MixtureNeighbors(
            full_list, centers, halo, requested, overflow, neighbors.max_neighbors, update, stale
        )

    def rows_of(e: int, centers, position, neighbors: MixtureNeighbors, moved) -> tuple[Neighborhood, Array]:
        """Rows for a potential of its centres, then of its halo; whether slots ran out."""
        idx, no, max_neighbors = neighbors.list.idx[level[e]], jnp.zeros((), bool), neighbors.max_neighbors[e]
        if max_neighbors is not None:
            rows, n = rows_within_cutoff(
                position, species, idx, moved, centers, every_expert[e].cutoff, max_neighbors
            )
            return rows, n > max_neighbors
        if every_expert[e].num_hops == 1:
            return rows_from_neighbor_list(position, species, idx, moved, centers), no
        centers = jnp.concatenate([centers, neighbors.halo[e]])
        rows = rows_from_neighbor_list(position, species, idx, moved, centers)
        n_rows = centers.shape[0]
        row_of = jnp.full(n_atoms + 1, n_rows).at[centers].set(jnp.arange(n_rows)).at[n_atoms].set(n_rows)
        return rows._replace(neighbor=row_of[rows.neighbor]), no

    def column(
        R, neighbor: MixtureNeighbors, weight, is_dynamic: bool, moved, e: int, tree, of: int
    ) -> tuple[Array, Array]:
        """Energies by potential `e` of the atoms with weight on expert `of`, `[n_atoms]`.

        Also whether rows are missing.
        """
        centers, wanted = neighbor.centers[of], jnp.sum(weight[:, of] > 0)
        if centers.shape[0] == 0:
            return jnp.zeros(n_atoms, R.dtype), wanted > 0
        weighted = weight.at[centers, of].get(mode="fill", fill_value=0.0) > 0
        only = {}
        if is_dynamic and every_expert[e].num_hops == 1:
            # Rows of the margin, and those held in reserve, come last and are left out.
            order = jnp.argsort(~weighted)
            centers, weighted, only = centers[order], weighted[order], {"wanted": jnp.sum(weighted)}
        rows, lacking = rows_of(e, centers, R, neighbor, moved)
        computed = energies_of[e](tree, rows, **only)[: centers.shape[0]]
        energies = (
            jnp.zeros(n_atoms, R.dtype).at[centers].set(jnp.where(weighted, computed, 0.0), mode="drop")
        )
        return energies, lacking | (wanted > jnp.sum(weighted))

    def evaluated(
        R, neighbor, of: Sequence[tuple[int, int]], params=None, region=None, box=None, perturbation=None
    ) -> Parts:
        """Weights, and the energies by some potentials of the atoms that are on some experts."""
        trees = builder_params if params is None else params
        trees = (*trees[: len(experts)], *(() if inner_potential is None else inner_potential[1:]))
        region = builder_region if region is None else region
        moved = partial(displacement_fn, **given(box, perturbation))
        _check_requested(region.required_neighbors(dr_threshold), neighbor.requested)
        weight = region.gate(R, moved, region_neighbors(neighbor.list, neighbor.requested))
        columns = [
            column(R, neighbor, weight, region.is_dynamic, moved, e, trees[e], expert) for e, expert in of
        ]
        # A region that does not know, or an atom with weight outside the rows held.
        # Weights may be below zero by rounding.
        missing = jnp.any(jnp.isnan(weight)) | jnp.any(jnp.stack([lacks for _, lacks in columns]))
        # A product with all positions, so that all forces are NaN too: behind a `where` they would be zero.
        unknown = jnp.where(missing, jnp.nan, 0.0).astype(R.dtype) * jnp.sum(R)
        return Parts(weight, jnp.stack([energies for energies, _ in columns], axis=1) + unknown)

    every = [(e, e) for e in range(len(experts))]
    guided = [(len(experts), 0), *every[1:]]

    def parts(R, neighbor: MixtureNeighbors, **kwargs) -> Parts:
        return evaluated(R, neighbor, every, **kwargs)

    def energy_fn(
        R, neighbor: MixtureNeighbors, *, params=None, region=None, box=None, perturbation=None, **_
    ):
        weight, energy = parts(R, neighbor, params=params, region=region, box=box, perturbation=perturbation)
        energies = jnp.sum(weight * energy, axis=1)
        return energies if per_particle else jnp.sum(energies)

    def inner_energy(R, neighbor: MixtureNeighbors, **kwargs) -> Array:
        weight, energy = evaluated(R, neighbor, guided, **kwargs)
        return jnp.sum(weight * energy)

    def inner_outer_split(R, neighbor: MixtureNeighbors, **kwargs) -> Array:
        weight, energy = evaluated(R, neighbor, [*guided, every[0]], **kwargs)
        slow = jnp.sum(weight[:, 0] * (energy[:, -1] - energy[:, 0]))
        return jnp.stack([jnp.sum(weight * energy[:, :-1]), slow])

    @jax.jit
    def gate(position, neighbors: MixtureNeighbors, *, region=None, **kwargs):
        owner = builder_region if region is None else region
        moved = partial(displacement_fn, **given(**kwargs))
        return owner.gate(position, moved, region_neighbors(neighbors.list, neighbors.requested))

    @jax.jit
    def assign(position, neighbors: MixtureNeighbors, region, **kwargs):
        moved = partial(displacement_fn, **given(**kwargs))
        return region.assigned(position, moved, region_neighbors(neighbors.list, neighbors.requested))

    @jax.jit
    def count_out_of_domain(position, neighbors: MixtureNeighbors, region, kwargs) -> Array:
        """Atoms with weight on each expert that are, or see, what it does not know."""
        moved = partial(displacement_fn, **kwargs)
        owner = builder_region if region is None else region
        gate = owner.gate(position, moved, region_neighbors(neighbors.list, neighbors.requested))
        counts = []
        for e, (expert, centers) in enumerate(zip(experts, neighbors.centers)):
            if allows_every_species(expert):
                counts.append(jnp.zeros((), int))
                continue
            rows = rows_from_neighbor_list(position, species, neighbors.list.idx[level[e]], moved, centers)
            counts.append(
                jnp.sum(~in_domain(expert, rows) & (gate.at[centers, e].get(mode="fill", fill_value=0.0) > 0))
            )
        return jnp.stack(counts)

    def check_domains(
        position, neighbors: MixtureNeighbors, *, region: Region | None = None, **kwargs
    ) -> bool:
        if all(map(allows_every_species, experts)):
            return True
        counts = np.asarray(count_out_of_domain(position, neighbors, region, given(**kwargs)))
        return warn_out_of_domain(experts, counts, stacklevel=4)

    timescales = (None, None) if inner_potential is None else (inner_energy, inner_outer_split)
    return MixtureNeighborFns(allocate, update, check_domains, parts, gate, assign, *timescales), energy_fn


def _first(mask: Array, size: int) -> Array:
    """The first `size` places where the mask is true, padded with its length."""
    return jnp.nonzero(mask, size=size, fill_value=mask.shape[0])[0].astype(jnp.int32)


def _halo(owned: Array, idx: Array, num_hops: int) -> Array:
    """`[n_atoms]` bool: atoms within `num_hops - 1` neighbours of the owned ones, those left out."""
    reached = owned
    for _ in range(num_hops - 1):
        target = jnp.where(reached[:, None], idx, idx.shape[0])
        reached = reached.at[target].set(True, mode="drop")
    return reached & ~owned


def _capacity(n, slack: float, most: int) -> int:
    return min(int(np.ceil(int(n) * slack)), most)


@lru_cache
def _structure_of(init: Callable):
    return jax.tree.structure(jax.eval_shape(init, jax.random.key(0)))


def _checked_potentials(potentials) -> tuple[tuple[Expert, ...], tuple[Params, ...]]:
    """The experts and their parameters."""
    if not (isinstance(potentials, (tuple, list)) and potentials and all(map(_is_potential, potentials))):
        raise ValueError(f"potentials must be pairs (expert, params), at least one, got {potentials!r:.80}.")
    experts, params = (tuple(column) for column in zip(*potentials))
    if len({e.species for e in experts}) > 1:
        raise ValueError(
            f"potentials must share one species tuple, got {' and '.join(str(e.species) for e in experts)}."
        )
    for n, (expert, tree) in enumerate(zip(experts, params)):
        if jax.tree.structure(tree) != _structure_of(expert.init):
            raise ValueError(
                f"params must fit the experts, those of expert {n} are {jax.tree.structure(tree)!s:.80}."
            )
    return experts, params


def _is_potential(value) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[0], Expert)


def _check_builder_arguments(region, dr_threshold, capacity_multiplier, chunk_size) -> None:
    check_region(region)
    check_value("dr_threshold", dr_threshold, float)
    check_value("capacity_multiplier", capacity_multiplier, float)
    check_value("chunk_size", chunk_size, int)
    if capacity_multiplier < 1:
        raise ValueError(f"capacity_multiplier must be at least 1, got {capacity_multiplier}.")


def _check_inner_potential(inner_potential, experts) -> None:
    if not _is_potential(inner_potential):
        raise ValueError(
            f"inner_potential must be an expert and its parameters, got {inner_potential!r:.80}."
        )
    expert, params = inner_potential
    if jax.tree.structure(params) != _structure_of(expert.init):
        raise ValueError(
            "inner_potential must have parameters that fit its expert, "
            f"got {jax.tree.structure(params)!s:.80}."
        )
    if expert.num_hops > 1 or expert.species != experts[0].species:
        raise ValueError(
            f"inner_potential must be an expert of the species {experts[0].species} that passes no messages, "
            f"got {expert.species} and num_hops {expert.num_hops}."
        )


def _checked_species(experts, species) -> Array:
    try:
        values = np.asarray(species)
    except ValueError:  # rows of unequal length
        values = np.asarray(None)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            "species must be a vector of integers, one per atom, "
            f"got shape {values.shape} and dtype {values.dtype}."
        )
    known = len(experts[0].species)
    if values.size and not (values.min() >= 0 and values.max() < known):
        raise ValueError(
            f"species must index {experts[0].species}, 0 to {known - 1}, "
            f"got {values.min()} to {values.max()}."
        )
    return jnp.asarray(values, jnp.int32)


def _check_box(box, cutoff: float) -> None:
    try:
        edges = np.asarray(box)
    except ValueError:  # rows of unequal length
        edges = np.asarray(None)
    shaped = edges.dtype.kind in "iuf" and edges.shape in ((), (3,), (3, 3))
    if not shaped or not (np.abs(edges) <= MAX_EDGE).all():
        raise ValueError(
            f"box must be a number, 3 edges or 3 x 3 columns, within {MAX_EDGE} Å, got {box!r:.80}."
        )
    if edges.ndim == 2 and abs(np.linalg.det(edges)) < 1e-6 * np.prod(np.linalg.norm(edges, axis=0)):
        raise ValueError(f"box must have independent columns, got {box!r:.80}.")
    if not (edges != 0).any() or (edges.ndim < 2 and not (edges > 0).all()):
        raise ValueError(f"box must have positive edges, got {box!r:.80}.")
    widths = lists.perpendicular_widths(edges)
    if not (widths > 2 * cutoff).all():
        raise ValueError(
            f"box must be wider than twice the cutoff, 2 x {cutoff} Å, "
            "in every direction for molecular dynamics, "
            f"got widths {np.round(widths, 3).tolist()} Å: repeat the cell."
        )


def _check_position(position, n_atoms: int) -> None:
    if np.shape(position) != (n_atoms, 3):
        raise ValueError(f"position must have shape [{n_atoms}, 3], got {np.shape(position)}.")
    if not np.isfinite(np.asarray(position)).all():
        raise ValueError("position must be finite, got NaN or infinity.")


def _is_request(x) -> bool:
    return isinstance(x, NeighborRequest)


def _check_requested(wanted, requested) -> None:
    """What the region wants must be what the neighbours hold."""
    wishes = jax.tree.leaves(wanted, is_leaf=_is_request)
    held = jax.tree.leaves(requested, is_leaf=lambda x: isinstance(x, lists.NeighborList))
    sizes = [[len(wish.centers) for wish in wishes], [len(each.centers) for each in held]]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"neighbors must be allocated for the region that is used, allocate(position, region=region): "
            f"it follows {sizes[0]} seeds, they know of {sizes[1]}."
        )


def _check_seeds(seeds: Array, n_atoms: int) -> None:
    if not (np.asarray(seeds) < n_atoms).all():
        raise ValueError(f"seeds must be atoms, 0 to {n_atoms - 1}, got {int(np.max(seeds))}.")


def warn_of_wide_requests(reach: float, width: float) -> None:
    """Where a sphere of this reach (Å) meets its own image."""
    if 2 * reach > width:
        warnings.warn(
            f"region follows atoms in spheres of {reach:.2f} Å, wider than half the box, "
            f"{width / 2:.2f} Å: the weights of atoms midway between two images of a sphere have a kink, "
            "and energy is conserved the worse. Repeat the cell.",
            stacklevel=3,
        )


def _check_held(held: np.ndarray, n_atoms: int, n_experts: int) -> None:
    if held.shape != (n_atoms, n_experts):
        raise ValueError(
            f"region must speak of [n_atoms, n_experts] = [{n_atoms}, {n_experts}], got {list(held.shape)}."
        )
    if not held.any(axis=1).all():
        raise ValueError(
            "region must give every atom to some expert, "
            f"got none for {int(np.sum(~held.any(axis=1)))} of {n_atoms} atoms."
        )

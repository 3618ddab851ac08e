"""Neighbours of every atom, under jit, in linear memory, in any box.

Atoms are sorted into cells that are at least a cutoff and a skin wide; those of
the 27 cells around an atom's own are compared with it, fewer along directions
that hold one or two cells. So a narrow slab costs what its atoms cost, and
neither a triclinic box nor one that breathes falls back to all pairs (jax-md's
list does, and does not notice that a box shrank).

A list stays whole while, with L the longest cutoff and s the skin,

    2 max_i |move_i| + |H H_0^-1 - 1| (L + s) <= s

where H maps coordinates to Å and H_0 did when the list was made: a pair that
was more than L + s apart is then still more than L apart. One list serves
several cutoffs; shorter ones have rows of their own, with fewer slots. A list
of a few centres costs what they cost: of each, all atoms around it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moe_md.neighbors.rows import compact_neighbors

BLOCK = {"cpu": 256}  # atoms whose candidates are compared at a time, by backend
LARGE_BLOCK = 16_384
BOX_FLUCTUATION_FACTOR = 1.05  # cells of boxes that may change are made wider by this


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NeighborList:
    """Dense rows of neighbours for each of several cutoffs, longest first."""

    idx: tuple[Array, ...]  # per cutoff [n_atoms or n centres, K] int, n_atoms where none
    reference_position: Array  # [n_atoms, 3], where the list was made
    reference_frame: Array  # [3, 3] Å, what mapped fractions of the box to Å then
    cutoffs: Array  # [n_cutoffs] Å, up to which the rows are whole
    centers: Array | None  # [n] int, the atoms that have rows; None where every atom has one
    did_buffer_overflow: Array  # bool; sticky
    grid: tuple[int, int, int] = field(metadata={"static": True})
    cell_capacity: int = field(metadata={"static": True})


class NeighborListFns(NamedTuple):
    """As jax-md's: `allocate` on the host, `update` under jit."""

    # Also of the first three: cutoffs=None, centers=None, box=None, perturbation=None
    allocate: Callable  # (position, extra_capacity=0, *, ...) -> NeighborList
    update: Callable  # (position, neighbors, *, renew=False, ...) -> NeighborList
    stale: Callable  # (position, neighbors, *, ...) -> bool, an update would make it anew
    # (position, centers, cell_capacity, max_neighbors)
    # -> rows for each cutoff, slots needed for each, atoms of the fullest cell
    rows: Callable


def neighbor_list(
    displacement_fn: Callable,
    box,
    cutoffs: Sequence[float],
    *,
    dr_threshold: float = 0.4,
    capacity_multiplier: float = 1.25,
    fractional_coordinates: bool = False,
) -> NeighborListFns:
    """Neighbour lists for some cutoffs.

    Args:
        displacement_fn: from `jax_md.space`, periodic in all directions.
        box: Å, a number, `[3]` edges or `[3, 3]` columns.
        cutoffs: Å, longest first; no width of the box is under twice the longest.
        dr_threshold: Å, the skin.
        capacity_multiplier: slots allocated over slots needed.
        fractional_coordinates: positions are fractions of the box. Otherwise
            they are Å, inside the box or not, and the box cannot change.

    Returns:
        allocate: a list as large as these positions need; it must not be traced.
            `centers=` (`[n]` int) asks for the rows of some atoms only, and
            `cutoffs=` replaces the builder's; such a list holds nearest images
            only, and may reach further than half the box.
        update: the same list, made anew where atoms or box moved too far, or
            where `centers` changed or `cutoffs` grew. It sets
            `did_buffer_overflow` where rows or cells run out, or where the box
            became too narrow for its cells or for its cutoff. With `renew` it is
            made anew whatever happened before: it then follows from the position
            and the capacities alone.
        stale: whether the list misses, or may miss, pairs here; no gradients.
        rows: what a list holds, made at capacities that the caller chooses and
            checks; under jit. Atoms at NaN are nobody's neighbours.
    """
    builder_cutoffs = tuple(cutoffs)

    def frame_of(box=None, perturbation=None):
        return strained(builder_box if box is None else box, perturbation)

    builder_box = box_matrix(box)
    inverse_box = np.linalg.inv(np.asarray(builder_box, float))

    def cells_of(position, grid):
        fraction = (
            position if fractional_coordinates else position @ jnp.asarray(inverse_box.T, position.dtype)
        )
        fraction = fraction - jnp.floor(fraction)
        sides = jnp.asarray(grid, jnp.int32)[None]  # [1, 3]
        return jnp.minimum((fraction * sides).astype(jnp.int32), sides - 1)

    @partial(jax.jit, static_argnums=(3, 4, 5))
    def build(position, cutoffs, centers, grid, cell_capacity, max_neighbors, **kwargs):
        """Rows of every cutoff, neighbours of the fullest row of each, atoms of the fullest cell."""
        n_atoms = position.shape[0]
        reach = cutoffs.astype(position.dtype) + dr_threshold
        place = cells_of(position, grid)
        # Who has no place is in no cell.
        cell = jnp.where(jnp.isnan(position[:, 0]), int(np.prod(grid)), _number(place, grid))
        order = jnp.argsort(cell, stable=True).astype(jnp.int32)
        count = jnp.zeros(int(np.prod(grid)), jnp.int32).at[cell].add(1)
        slot = jnp.arange(n_atoms, dtype=jnp.int32) - (jnp.cumsum(count) - count)[cell[order]]
        members = jnp.full((count.shape[0], cell_capacity), n_atoms, jnp.int32)
        members = members.at[cell[order], slot].set(order, mode="drop")
        around = jnp.asarray(_offsets(grid), jnp.int32)
        to_neighbor = jax.vmap(jax.vmap(lambda b, a: displacement_fn(b, a, **kwargs), (0, None)))

        def squared(atoms, others):
            D = to_neighbor(
                position[jnp.minimum(others, n_atoms - 1)], position[jnp.minimum(atoms, n_atoms - 1)]
            )
            return jnp.sum(D**2, axis=-1)

        def block(atoms):
            here = place[jnp.minimum(atoms, n_atoms - 1)][:, None]  # [n, 1, 3]
            cells = _number((here + around[None]) % jnp.asarray(grid)[None, None], grid)
            rows = members[cells].reshape(atoms.shape[0], -1)
            made, fullest = [], []
            for level, size in enumerate(max_neighbors):
                near = squared(atoms, rows) < reach[level] ** 2
                keep = near & (rows < n_atoms) & (rows != atoms[:, None]) & (atoms < n_atoms)[:, None]
                rows, needed = compact_neighbors(rows, keep, size, n_atoms)
                made.append(rows)
                fullest.append(needed)
            return tuple(made), jnp.stack(fullest)

        n_rows = n_atoms if centers is None else centers.shape[0]
        atoms = jnp.arange(n_atoms, dtype=jnp.int32) if centers is None else centers.astype(jnp.int32)
        size = min(BLOCK.get(jax.default_backend(), LARGE_BLOCK), n_rows)
        atoms = jnp.pad(atoms, (0, -n_rows % size), constant_values=n_atoms).reshape(-1, size)
        made, fullest = jax.lax.map(block, atoms)
        rows = tuple(r.reshape(-1, r.shape[-1])[:n_rows] for r in made)
        return rows, jnp.max(fullest, axis=0), jnp.max(count)

    @partial(jax.jit, static_argnums=1)
    def fullest_cell(position, grid):
        return jnp.max(
            jnp.zeros(int(np.prod(grid)), jnp.int32).at[_number(cells_of(position, grid), grid)].add(1)
        )

    def allocate(position, extra_capacity: int = 0, *, cutoffs=None, centers=None, **kwargs) -> NeighborList:
        n_atoms = position.shape[0]
        cutoffs = jnp.asarray(builder_cutoffs if cutoffs is None else cutoffs, float)
        frame = frame_of(**kwargs)
        wanted = (float(cutoffs[0]) + dr_threshold) * (
            BOX_FLUCTUATION_FACTOR if fractional_coordinates else 1.0
        )
        grid = _grid(perpendicular_widths(frame), wanted, n_atoms)
        room = partial(roomy, capacity_multiplier, extra_capacity)
        most = int(fullest_cell(position, grid))
        cell_capacity = min(room(most), n_atoms)
        candidates = min(len(_offsets(grid)) * cell_capacity, n_atoms)
        made = partial(build, position, cutoffs, centers, grid, cell_capacity, **kwargs)
        # Once to count, once to keep: nothing is ever as large as all candidates.
        guess = tuple(min(candidates, 32) for _ in cutoffs)
        _, needed, _ = made(guess)
        # Rows cut short at the guess hide how many the shorter cutoffs need.
        while (np.asarray(needed) > np.asarray(guess)).any():
            guess = tuple(min(max(int(n), g), candidates) for n, g in zip(np.asarray(needed), guess))
            _, needed, _ = made(guess)
        max_neighbors = tuple(max(1, min(room(int(n)), n_atoms - 1)) for n in np.asarray(needed))
        rows, _, _ = made(max_neighbors)
        reference = jnp.asarray(frame, position.dtype)
        no = jnp.zeros((), bool)
        return NeighborList(rows, jnp.asarray(position), reference, cutoffs, centers, no, grid, cell_capacity)

    def looked_at(position, neighbors: NeighborList, cutoffs, centers, kwargs):
        """Whether the list is whole no more, whether the box is too narrow, and what is wanted of it now."""
        dtype = position.dtype
        everyone = neighbors.centers is None
        changed, narrow = jnp.zeros((), bool), jnp.zeros((), bool)
        if cutoffs is None:
            cutoffs = neighbors.cutoffs
        else:
            cutoffs = jnp.asarray(cutoffs, neighbors.cutoffs.dtype)
            changed = changed | jnp.any(
                cutoffs > neighbors.cutoffs
            )  # shorter ones are whole in what there is
        if centers is None:
            centers = neighbors.centers
        elif neighbors.centers is None:
            raise ValueError("centers must be None for a list of every atom: allocate one with centers=.")
        else:
            centers = jnp.asarray(centers, neighbors.centers.dtype)
            changed = changed | jnp.any(centers != neighbors.centers)
        longest = (neighbors.cutoffs[0] + dr_threshold).astype(dtype)
        move = jax.vmap(partial(displacement_fn, **kwargs))(position, neighbors.reference_position)
        slack = dr_threshold - 2.0 * jnp.sqrt(jnp.max(jnp.sum(move**2, axis=-1)))
        frame = jnp.asarray(frame_of(**kwargs), dtype)
        if kwargs:
            stretch = frame @ jnp.linalg.inv(neighbors.reference_frame) - jnp.eye(3, dtype=dtype)
            slack = slack - jnp.sqrt(jnp.sum(stretch**2)) * longest
        if kwargs or not everyone:
            widths, sides = 1.0 / jnp.linalg.norm(jnp.linalg.inv(frame), axis=1), np.asarray(neighbors.grid)
            narrow = jnp.any((sides >= 3) & (widths < sides * (cutoffs[0] + dr_threshold).astype(dtype)))
            if everyone:
                narrow = narrow | jnp.any(widths <= 2 * cutoffs[0].astype(dtype))
        return (slack < 0.0) | changed, narrow, frame, cutoffs, centers

    def stale(position, neighbors: NeighborList, *, cutoffs=None, centers=None, **kwargs) -> Array:
        position, kwargs, cutoffs = jax.lax.stop_gradient((position, kwargs, cutoffs))
        broken, narrow, *_ = looked_at(position, neighbors, cutoffs, centers, kwargs)
        return broken | narrow

    def update(
        position, neighbors: NeighborList, *, renew: bool = False, cutoffs=None, centers=None, **kwargs
    ) -> NeighborList:
        position, kwargs, cutoffs = jax.lax.stop_gradient((position, kwargs, cutoffs))
        broken, narrow, frame, cutoffs, centers = looked_at(position, neighbors, cutoffs, centers, kwargs)
        max_neighbors = tuple(rows.shape[1] for rows in neighbors.idx)

        def renewed(old: NeighborList):
            rows, needed, most = build(
                position, cutoffs, centers, old.grid, old.cell_capacity, max_neighbors, **kwargs
            )
            overflow = jnp.any(needed > jnp.asarray(max_neighbors)) | (most > old.cell_capacity)
            return rows, position, frame, cutoffs, centers, overflow

        def kept(old: NeighborList):
            return (
                old.idx,
                old.reference_position,
                old.reference_frame,
                old.cutoffs,
                old.centers,
                jnp.zeros((), bool),
            )

        *made, overflow = renewed(neighbors) if renew else jax.lax.cond(broken, renewed, kept, neighbors)
        overflow = overflow | narrow | neighbors.did_buffer_overflow
        return NeighborList(*made, overflow, neighbors.grid, neighbors.cell_capacity)

    def rows(position, centers, cell_capacity: int, max_neighbors: tuple[int, ...]):
        reach = (builder_cutoffs[0] + dr_threshold) * (
            BOX_FLUCTUATION_FACTOR if fractional_coordinates else 1.0
        )
        grid = _grid(perpendicular_widths(builder_box), reach, position.shape[0])
        return build(
            position, jnp.asarray(builder_cutoffs, float), centers, grid, cell_capacity, max_neighbors
        )

    return NeighborListFns(allocate, update, stale, rows)


@overload
def box_matrix(box: Array) -> Array: ...


@overload
def box_matrix(box) -> np.ndarray | Array: ...


def box_matrix(box) -> np.ndarray | Array:
    """`[3, 3]` Å, columns, of a number, `[3]` edges or columns."""
    xp = np if isinstance(box, (int, float, np.ndarray, np.generic, list, tuple)) else jnp
    box = xp.asarray(box)
    if box.ndim == 2:
        return box
    return xp.eye(3, dtype=box.dtype) * (box[None] if box.ndim else box)


def strained(box, perturbation=None) -> np.ndarray | Array:
    """Columns of a box under a perturbation, a number or `[3, 3]`, of displacements."""
    frame = box_matrix(box)
    if perturbation is None:
        return frame
    return perturbation * frame if jnp.ndim(perturbation) == 0 else perturbation @ frame


def perpendicular_widths(box) -> np.ndarray:
    """Distances between opposite faces of a box: `[3]` Å."""
    inverse = np.linalg.inv(
        np.asarray(box_matrix(box), float)
    )  # rows are the reciprocal vectors of the columns
    return 1.0 / np.linalg.norm(inverse, axis=1)


def _grid(widths: np.ndarray, least: float, n_atoms: int) -> tuple[int, int, int]:
    """Cells along each direction: as many as fit, and no more than there are atoms."""
    sides = np.maximum(1, np.floor(widths / (1.0001 * least))).astype(int)
    while np.prod(sides) > max(n_atoms, 27):
        sides[np.argmax(sides)] -= 1
    return tuple(sides.tolist())


def _offsets(grid: tuple[int, int, int]) -> np.ndarray:
    """`[n, 3]`, the cells to look at from one: each once, also where there are fewer than three."""
    steps = {1: (0,), 2: (0, 1)}
    return np.array(list(product(*(steps.get(n, (-1, 0, 1)) for n in grid))))


def _number(place: Array, grid: tuple[int, int, int]) -> Array:
    return (place[..., 0] * grid[1] + place[..., 1]) * grid[2] + place[..., 2]


def roomy(multiplier: float, extra: int, n: int) -> int:
    """What is allocated where `n` are needed."""
    return int(np.ceil(n * multiplier)) + extra

"""Neighbour lists for every atom, under jit, in linear memory, in any box.

Atoms are sorted into cells that are at least a cutoff and a skin wide. Each atom is
compared with the atoms of the 27 cells around its own; along directions that hold
one or two cells there are fewer. The cost therefore stays linear in narrow slabs, in
triclinic boxes and in boxes that change. (jax-md's list falls back to all pairs
there, and does not notice that a box has shrunk.)

With L the longest cutoff and s the skin, a list holds all pairs within L while

    2 max_i |move_i| + |H H_0^-1 - 1| (L + s) <= s

where H maps coordinates to Å now and H_0 did when the list was built: a pair that was
more than L + s apart is then still more than L apart. One list serves several
cutoffs; the rows of shorter cutoffs have fewer columns. A list of a few centres
holds all atoms around each of them, and its cost grows with the number of centres.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Real

from moe_md.memory import check_lists
from moe_md.neighbors import cells as cell_lists
from moe_md.neighbors.capacity import padded_capacity
from moe_md.neighbors.cells import Cells, Grid, cell_grid, cell_number, cell_offsets, max_cell_occupancy
from moe_md.neighbors.images import Components, components, displacements, nearest_images
from moe_md.neighbors.rows import compact_neighbors

BLOCK = {"cpu": 256}  # atoms whose candidates are compared at a time, by backend
LARGE_BLOCK = 16_384  # the same on other backends
BOX_FLUCTUATION_FACTOR = 1.05  # extra width of the cells of a box that may change
FIRST_MAX_NEIGHBORS = 32  # columns of the first attempt of an allocation

Box = Real[ArrayLike, "..."] | Sequence  # Å, a number, [3] edges or [3, 3] columns
Perturbation = Real[ArrayLike, "..."]  # a number or [3, 3]
Cutoffs = Real[ArrayLike, " cutoffs"] | Sequence  # Å, longest first
# Rows of each cutoff, the largest occupancy of each, and the atoms in the fullest cell.
Rows = tuple[tuple[Int[Array, "n _"], ...], Int[Array, " cutoffs"], Int[Array, ""]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NeighborList:
    """Dense rows of neighbours for each of several cutoffs, longest first."""

    idx: tuple[Array, ...]  # per cutoff [n_atoms or n_centers, K] int; n_atoms where padded
    reference_position: Array  # [n_atoms, 3], positions at which the list was built
    reference_frame: Array  # [3, 3] Å, strained box columns at which the list was built
    cutoffs: Array  # [n_cutoffs] Å, within which the rows are complete
    centers: Array | np.ndarray | None  # [n_centers] int, atoms that have rows; None where every atom has one
    did_buffer_overflow: Array  # bool; stays True once it is
    grid: Grid = field(metadata={"static": True})  # cells along each direction
    cell_capacity: int = field(metadata={"static": True})  # atoms that a cell can hold


class NeighborListFns(NamedTuple):
    """Host-side allocation and jitted update, as jax-md's `NeighborListFns`."""

    # The first three also take cutoffs=None, centers=None, box=None, perturbation=None.
    allocate: Callable  # (position, extra_capacity=0, *, ...) -> NeighborList
    update: Callable  # (position, neighbors, *, renew=False, ...) -> NeighborList
    stale: Callable  # (position, neighbors, *, ...) -> bool, whether an update would rebuild the list
    rows: Callable  # (position, centers, cell_capacity, max_neighbors) -> Rows


@dataclass(frozen=True, eq=False)  # hashed by identity, so that it can be static under jit
class ListConfig:
    """What stays the same through the life of a neighbour list."""

    box: Real[Array | np.ndarray, "3 3"]  # Å, columns
    inverse_box: Float[np.ndarray, "3 3"]  # 1/Å
    cutoffs: tuple[float, ...]  # Å, longest first
    dr_threshold: float  # Å, skin
    capacity_multiplier: float
    fractional_coordinates: bool

    def cell_width(self, cutoff: float) -> float:
        """Å, least width of the cells of a list with this longest cutoff."""
        factor = BOX_FLUCTUATION_FACTOR if self.fractional_coordinates else 1.0
        return (cutoff + self.dr_threshold) * factor

    def fractions(self, position: Float[Array, "atoms 3"]) -> Float[Array, "atoms 3"]:
        """Fractional coordinates in the builder's box."""
        if self.fractional_coordinates:
            return position
        return position @ jnp.asarray(self.inverse_box.T, position.dtype)

    def frame(
        self, box: Box | None = None, perturbation: Perturbation | None = None
    ) -> Real[Array | np.ndarray, "3 3"]:
        """Å, columns of the strained box; default the builder's."""
        return strained(self.box if box is None else box, perturbation)

    def nearest_images(self, dtype, box=None, perturbation=None) -> Callable[[Components], Components]:
        """Differences of positions to displacements of nearest images, Å."""
        box, is_fractional = self.box if box is None else box, self.fractional_coordinates
        return nearest_images(box, perturbation, fractional_coordinates=is_fractional, dtype=dtype)


class _Check(NamedTuple):
    """Whether a list is still valid, and for what it would be rebuilt."""

    is_stale: Bool[Array, ""]  # pairs may be missing
    is_too_narrow: Bool[Array, ""]  # the box is too narrow for the cells or the cutoff
    frame: Float[Array, "3 3"]  # Å, columns of the strained box now
    cutoffs: Float[Array, " cutoffs"]  # Å
    centers: Int[Array | np.ndarray, " n"] | None


def neighbor_list(
    box: Box,
    cutoffs: Sequence[float],
    *,
    dr_threshold: float = 0.4,
    capacity_multiplier: float = 1.25,
    fractional_coordinates: bool = False,
) -> NeighborListFns:
    """Neighbour lists for one or more cutoffs.

    Args:
        box: Å, a number, `[3]` edges or `[3, 3]` columns, periodic in all directions; every
            width must be at least twice the longest cutoff.
        cutoffs: Å, longest first.
        dr_threshold: Å, the skin.
        capacity_multiplier: columns allocated over columns needed.
        fractional_coordinates: positions are fractions of the box. Otherwise they
            are Å, inside the box or not, and the box cannot change.

    Returns:
        allocate: a list with the capacities that these positions need; it must not
            be traced. `centers=` (`[n]` int) asks for the rows of some atoms only,
            and `cutoffs=` replaces the builder's. A list of centres holds nearest
            images only, and its cutoff may exceed half the box.
        update: the same list, rebuilt where atoms or box moved too far, where
            `centers` changed or where `cutoffs` grew. It sets `did_buffer_overflow`
            where rows or cells overflow, or where the box became too narrow for its
            cells or for its cutoff. With `renew` the list is rebuilt in any case, so
            that it depends on the position and the capacities alone.
        stale: whether the list misses, or may miss, pairs; no gradients.
        rows: the rows alone, at capacities that the caller chooses and checks; under
            jit. Atoms at NaN have no neighbours and are no neighbours.
    """
    frame = box_matrix(box)
    config = ListConfig(
        frame,
        np.linalg.inv(np.asarray(frame, float)),
        tuple(cutoffs),
        dr_threshold,
        capacity_multiplier,
        fractional_coordinates,
    )
    build = jax.jit(partial(build_rows, config), static_argnums=(3, 4, 5))
    largest_cell = jax.jit(lambda R, grid: max_cell_occupancy(config.fractions(R), grid), static_argnums=1)
    return NeighborListFns(
        partial(allocate, config, build, largest_cell),
        partial(update, config, build),
        partial(stale, config),
        partial(rows, config, build),
    )


def build_rows(
    config: ListConfig,
    position: Float[Array, "atoms 3"],
    cutoffs: Float[Array, " cutoffs"],
    centers: Int[Array, " n"] | None,
    grid: Grid,
    cell_capacity: int,
    max_neighbors: tuple[int, ...],
    **kwargs,
) -> Rows:
    """Rows of some centres, or of every atom, for every cutoff (Å, longest first) at given capacities.

    Atoms at NaN are in no cell. `max_neighbors` are the columns of the rows of each cutoff;
    `kwargs` are `box` and `perturbation`.
    """
    n_atoms = position.shape[0]
    radii = cutoffs.astype(position.dtype) + config.dr_threshold
    cells = cell_lists.sort_into_cells(config.fractions(position), grid, cell_capacity)
    nearest_image = config.nearest_images(position.dtype, **kwargs)
    block_fn = partial(_block_rows, position, cells, radii, grid, max_neighbors, nearest_image)
    n_rows = n_atoms if centers is None else centers.shape[0]
    atoms = jnp.arange(n_atoms, dtype=jnp.int32) if centers is None else centers.astype(jnp.int32)
    size = min(BLOCK.get(jax.default_backend(), LARGE_BLOCK), max(n_rows, 1))
    atoms = jnp.pad(atoms, (0, -n_rows % size), constant_values=n_atoms).reshape(-1, size)
    blocks, occupancy = jax.lax.map(block_fn, atoms)
    idx = tuple(block.reshape(-1, block.shape[-1])[:n_rows] for block in blocks)
    return idx, jnp.max(occupancy, axis=0, initial=0), jnp.max(cells.counts)


def allocate(
    config: ListConfig,
    build: Callable,
    largest_cell: Callable,
    position: Float[Array | np.ndarray, "atoms 3"],
    extra_capacity: int = 0,
    *,
    cutoffs: Cutoffs | None = None,
    centers: Int[Array | np.ndarray, " n"] | None = None,
    **kwargs,
) -> NeighborList:
    """A list with the capacities that these positions need; see `neighbor_list`.

    `build` is the jitted `build_rows`; `largest_cell` counts the atoms of the fullest cell.
    """
    n_atoms = position.shape[0]
    cutoffs = jnp.asarray(config.cutoffs if cutoffs is None else cutoffs, float)
    frame = config.frame(**kwargs)
    grid = cell_grid(perpendicular_widths(frame), config.cell_width(float(cutoffs[0])), n_atoms)
    capacity = partial(padded_capacity, config.capacity_multiplier, extra_capacity)
    cell_capacity = min(capacity(int(largest_cell(position, grid))), n_atoms)
    candidates = min(len(cell_offsets(grid)) * cell_capacity, n_atoms)

    def build_if_it_fits(max_neighbors: tuple[int, ...]) -> Rows:
        check_lists(n_atoms if centers is None else len(centers), max_neighbors, position.dtype.itemsize)
        return build(position, cutoffs, centers, grid, cell_capacity, max_neighbors, **kwargs)

    # A first attempt counts neighbours, so that rows as long as all candidates are never allocated.
    attempt = tuple(min(candidates, FIRST_MAX_NEIGHBORS) for _ in cutoffs)
    _, needed, _ = build_if_it_fits(attempt)
    # Rows that are cut off hide how many neighbours the shorter cutoffs have.
    while (np.asarray(needed) > np.asarray(attempt)).any():
        attempt = tuple(min(max(int(n), size), candidates) for n, size in zip(np.asarray(needed), attempt))
        _, needed, _ = build_if_it_fits(attempt)
    max_neighbors = tuple(max(1, min(capacity(int(n)), n_atoms - 1)) for n in np.asarray(needed))
    idx, _, _ = build_if_it_fits(max_neighbors)
    reference, overflow = jnp.asarray(frame, position.dtype), jnp.zeros((), bool)
    return NeighborList(
        idx, jnp.asarray(position), reference, cutoffs, centers, overflow, grid, cell_capacity
    )


def stale(
    config: ListConfig,
    position: Float[Array | np.ndarray, "atoms 3"],
    neighbors: NeighborList,
    *,
    cutoffs: Cutoffs | None = None,
    centers: Int[Array | np.ndarray, " n"] | None = None,
    **kwargs,
) -> Bool[Array, ""]:
    """Whether the list misses, or may miss, pairs; see `neighbor_list`."""
    position, kwargs, cutoffs = jax.lax.stop_gradient((position, kwargs, cutoffs))
    check = _check(config, position, neighbors, cutoffs, centers, kwargs)
    return check.is_stale | check.is_too_narrow


def update(
    config: ListConfig,
    build: Callable,
    position: Float[Array | np.ndarray, "atoms 3"],
    neighbors: NeighborList,
    *,
    renew: bool = False,
    cutoffs: Cutoffs | None = None,
    centers: Int[Array | np.ndarray, " n"] | None = None,
    **kwargs,
) -> NeighborList:
    """The list at new positions, with the same capacities; see `neighbor_list`."""
    position, kwargs, cutoffs = jax.lax.stop_gradient((position, kwargs, cutoffs))
    check = _check(config, position, neighbors, cutoffs, centers, kwargs)
    max_neighbors = tuple(idx.shape[1] for idx in neighbors.idx)

    def rebuilt(old: NeighborList):
        idx, needed, fullest_cell = build(
            position, check.cutoffs, check.centers, old.grid, old.cell_capacity, max_neighbors, **kwargs
        )
        overflow = jnp.any(needed > jnp.asarray(max_neighbors)) | (fullest_cell > old.cell_capacity)
        return idx, position, check.frame, check.cutoffs, check.centers, overflow

    def unchanged(old: NeighborList):
        overflow = jnp.zeros((), bool)
        return old.idx, old.reference_position, old.reference_frame, old.cutoffs, old.centers, overflow

    if renew:
        *fields, overflow = rebuilt(neighbors)
    else:
        *fields, overflow = jax.lax.cond(check.is_stale, rebuilt, unchanged, neighbors)
    overflow = overflow | check.is_too_narrow | neighbors.did_buffer_overflow
    return NeighborList(*fields, overflow, neighbors.grid, neighbors.cell_capacity)


def rows(
    config: ListConfig,
    build: Callable,
    position: Float[Array | np.ndarray, "atoms 3"],
    centers: Int[Array | np.ndarray, " n"],
    cell_capacity: int,
    max_neighbors: tuple[int, ...],
) -> Rows:
    """Rows of some centres in the builder's box, at given capacities; returns as `build_rows`."""
    width = config.cell_width(config.cutoffs[0])
    grid = cell_grid(perpendicular_widths(config.box), width, position.shape[0])
    return build(position, jnp.asarray(config.cutoffs, float), centers, grid, cell_capacity, max_neighbors)


def _check(
    config: ListConfig, position: Array | np.ndarray, neighbors: NeighborList, cutoffs, centers, kwargs: dict
) -> _Check:
    """Compare a list with the positions, the box, the cutoffs and the centres of now."""
    dtype = position.dtype
    is_full = neighbors.centers is None  # every atom has a row
    is_changed, is_too_narrow = jnp.zeros((), bool), jnp.zeros((), bool)
    if cutoffs is None:
        cutoffs = neighbors.cutoffs
    else:
        cutoffs = jnp.asarray(cutoffs, neighbors.cutoffs.dtype)
        is_changed = is_changed | jnp.any(cutoffs > neighbors.cutoffs)  # the list holds shorter ones
    if centers is None:
        centers = neighbors.centers
    elif neighbors.centers is None:
        raise ValueError("centers must be None for a list of every atom: allocate one with centers=.")
    else:
        centers = jnp.asarray(centers, neighbors.centers.dtype)
        is_changed = is_changed | jnp.any(centers != neighbors.centers)
    longest = (neighbors.cutoffs[0] + config.dr_threshold).astype(dtype)
    x, y, z = config.nearest_images(dtype, **kwargs)(components(position - neighbors.reference_position))
    slack = config.dr_threshold - 2.0 * jnp.sqrt(jnp.max(x * x + y * y + z * z))
    frame = jnp.asarray(config.frame(**kwargs), dtype)
    if kwargs:
        stretch = frame @ jnp.linalg.inv(neighbors.reference_frame) - jnp.eye(3, dtype=dtype)
        slack = slack - jnp.sqrt(jnp.sum(stretch**2)) * longest
    if kwargs or not is_full:
        widths, sides = 1.0 / jnp.linalg.norm(jnp.linalg.inv(frame), axis=1), np.asarray(neighbors.grid)
        min_widths = sides * (cutoffs[0] + config.dr_threshold).astype(dtype)
        is_too_narrow = jnp.any((sides >= 3) & (widths < min_widths))
        if is_full:
            is_too_narrow = is_too_narrow | jnp.any(widths <= 2 * cutoffs[0].astype(dtype))
    return _Check((slack < 0.0) | is_changed, is_too_narrow, frame, cutoffs, centers)


def _block_rows(
    position: Array,
    cells: Cells,
    radii: Array,
    grid: Grid,
    max_neighbors: tuple[int, ...],
    nearest_image: Callable,
    atoms: Array,
) -> tuple[tuple[Array, ...], Array]:
    """Rows of a block of atoms for each radius (Å, with skin), and the largest occupancy of each."""
    n_atoms = position.shape[0]
    around = jnp.asarray(cell_offsets(grid), jnp.int32)
    own_cell = cells.coordinates[jnp.minimum(atoms, n_atoms - 1)][:, None]  # [n, 1, 3]
    candidate_cells = cell_number((own_cell + around[None]) % jnp.asarray(grid)[None, None], grid)
    candidates = cells.members[candidate_cells].reshape(atoms.shape[0], -1)
    is_other = (candidates != atoms[:, None]) & (atoms < n_atoms)[:, None]
    blocks, occupancy = [], []
    for level, size in enumerate(max_neighbors):
        # Empty slots are beyond every radius.
        x, y, z = displacements(position, atoms, candidates, nearest_image, 2.0 * radii[0])
        near = x * x + y * y + z * z < radii[level] ** 2
        # The next, shorter cutoff is searched among the neighbours within this one.
        candidates, needed = compact_neighbors(candidates, near & is_other, size, n_atoms)
        is_other = jnp.ones((), bool)
        blocks.append(candidates)
        occupancy.append(needed)
    return tuple(blocks), jnp.stack(occupancy)


@overload
def box_matrix(box: Array) -> Array: ...


@overload
def box_matrix(box: Box) -> Real[Array | np.ndarray, "_ _"]: ...


def box_matrix(box: Box) -> Real[Array | np.ndarray, "_ _"]:
    """Box columns, Å, from a number, `[3]` edges or columns."""
    xp = np if isinstance(box, (int, float, np.ndarray, np.generic, list, tuple)) else jnp
    box = xp.asarray(box)
    if box.ndim == 2:
        return box
    return xp.eye(3, dtype=box.dtype) * (box[None] if box.ndim else box)


def strained(box: Box, perturbation: Perturbation | None = None) -> Real[Array | np.ndarray, "_ _"]:
    """Columns of a box, Å, under a perturbation of displacements."""
    frame = box_matrix(box)
    if perturbation is None:
        return frame
    return perturbation * frame if jnp.ndim(perturbation) == 0 else perturbation @ frame


def perpendicular_widths(box: Box) -> Float[np.ndarray, "3"]:
    """Distances between opposite faces of a box: Å."""
    inverse = np.linalg.inv(np.asarray(box_matrix(box), float))  # rows are the reciprocal vectors
    return 1.0 / np.linalg.norm(inverse, axis=1)

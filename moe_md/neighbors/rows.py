"""Rows of centres, the input of experts.

A row is one centre and its neighbours within the cutoff. In dynamics, rows come from
a dense neighbour list (`rows_from_neighbor_list`, under jit). In training and for
single points they come from a list of periodic images (`rows_from_images`, on the
host), for cells of any size, one atom included.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Integer, Real, Shaped

from moe_md.checks import check_keywords
from moe_md.neighbors.images import Components, displacements

Result = TypeVar("Result")
Rows = TypeVar("Rows")
Pairs = tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Float[np.ndarray, "pairs 3"]]


class Neighborhood(NamedTuple):
    """`n` centres with `K` neighbour slots each.

    A slot holds a neighbour where `mask` is True. Neighbours may lie beyond an expert's
    cutoff (skin): they must not change its energy. Padded slots hold any finite,
    non-zero displacement.
    """

    # jax arrays from a neighbour list; numpy arrays on the host, from periodic images.
    displacement: Float[Array | np.ndarray, "n K 3"]  # Å, centre to neighbour
    mask: Bool[Array | np.ndarray, "n K"]
    center_species: Int[Array | np.ndarray, " n"]  # index into Expert.species
    neighbor_species: Int[Array | np.ndarray, "n K"]
    # the neighbour's atom; for experts that pass messages its row, n or more if it has none
    neighbor: Int[Array | np.ndarray, "n K"]


def rows_from_neighbor_list(
    position: Float[Array | np.ndarray, "atoms 3"],
    species: Int[Array | np.ndarray, " atoms"],
    idx: Int[Array | np.ndarray, "rows K"],
    displacement_fn: Callable,
    centers: Int[Array | np.ndarray, " n"],
    **kwargs,
) -> Neighborhood:
    """Rows of some centres, from a dense neighbour list, ours or jax-md's.

    Args:
        position: in the units of `displacement_fn`.
        species: of each atom.
        idx: `neighbor.idx` of a Dense list, the number of atoms where there is no
            neighbour. Atoms without a row come last.
        displacement_fn: from `jax_md.space`.
        centers: the atoms whose rows are made; the number of atoms gives a padded
            row, which is masked completely.
        **kwargs: passed to `displacement_fn` (`box`, `perturbation`).

    Returns:
        `n` rows; `neighbor` indexes atoms. Differentiable in `position`.
    """
    return _rows(position, species, neighbors_of(centers, idx), displacement_fn, centers, **kwargs)


def rows_within_cutoff(
    position: Float[Array | np.ndarray, "atoms 3"],
    species: Int[Array | np.ndarray, " atoms"],
    idx: Int[Array | np.ndarray, "atoms K"],
    displacement_fn: Callable,
    centers: Int[Array | np.ndarray, " n"],
    nearest_image: Callable[[Components], Components],
    cutoff: float,
    max_neighbors: int,
) -> tuple[Neighborhood, Int[Array, ""]]:
    """Packed rows: only neighbours within a cutoff, without the skin, in fewer slots.

    Args:
        nearest_image: from `images.nearest_images`, as `displacement_fn`.
        cutoff: Å.
        max_neighbors: slots of each row.
        others: as for `rows_from_neighbor_list`.

    Returns:
        The rows, and the largest number of neighbours of a row. Where it exceeds
        `max_neighbors`, neighbours are missing.
    """
    neighbor, occupancy = _near(position, idx, nearest_image, centers, cutoff, max_neighbors)
    return _rows(position, species, neighbor, displacement_fn, centers), occupancy


def max_occupancy(
    position: Float[Array | np.ndarray, "atoms 3"],
    idx: Int[Array | np.ndarray, "atoms K"],
    nearest_image: Callable[[Components], Components],
    centers: Int[Array | np.ndarray, " n"],
    cutoff: float,
) -> Int[Array, ""]:
    """Largest number of neighbours within a cutoff over some centres; see `rows_within_cutoff`."""
    if centers.shape[0] == 0:
        return jnp.zeros((), jnp.int32)
    return _near(position, idx, nearest_image, centers, cutoff, 1)[1]


def compact_neighbors(
    values: Int[Array, "n K"], keep: Bool[Array, "n K"], size: int, fill: int
) -> tuple[Int[Array, "n {size}"], Int[Array, ""]]:
    """Values of each row that are kept, in their order, in the first of `size` slots.

    Args:
        values: a row each.
        keep: whether a value is kept.
        size: slots of the result; further values are dropped.
        fill: value of empty slots.

    Returns:
        The rows, and the largest number of kept values of a row.
    """
    count = jnp.cumsum(keep, axis=1)
    rows = jnp.arange(values.shape[0])[:, None]
    target = jnp.where(keep, count - 1, size)
    packed = jnp.full((values.shape[0], size), fill, jnp.int32).at[rows, target].set(values, mode="drop")
    return packed, jnp.max(count[:, -1])


def neighbors_of(
    centers: Int[Array | np.ndarray, " n"], idx: Int[Array | np.ndarray, "atoms K"]
) -> Int[Array, "n K"]:
    """Neighbours of some centres; the number of atoms where padded."""
    n_atoms = idx.shape[0]
    real = centers < n_atoms
    return jnp.where(real[:, None], idx[jnp.where(real, centers, 0)], n_atoms)


def _near(position, idx, nearest_image, centers, cutoff, max_neighbors) -> tuple[Array, Array]:
    neighbor, n_atoms = neighbors_of(centers, idx), position.shape[0]
    D = displacements(position, centers, neighbor, nearest_image, 2 * cutoff)
    x, y, z = jax.lax.stop_gradient(D)
    return compact_neighbors(neighbor, x * x + y * y + z * z < cutoff**2, max_neighbors, n_atoms)


def _displacements(position, neighbor, displacement_fn, centers, **kwargs) -> Array:
    check_keywords("a displacement function", kwargs, ("box", "perturbation"))  # jax-md's ignore others
    n_atoms = position.shape[0]
    # Padded slots read atom 0; the mask removes them.
    safe, center = jnp.where(neighbor < n_atoms, neighbor, 0), jnp.where(centers < n_atoms, centers, 0)
    to_neighbor = jax.vmap(jax.vmap(lambda b, a: displacement_fn(b, a, **kwargs), (0, None)))
    # A float64 box must not turn float32 positions into float64 rows.
    return to_neighbor(position[safe], position[center]).astype(position.dtype)


def _rows(position, species, neighbor, displacement_fn, centers, **kwargs) -> Neighborhood:
    n_atoms = position.shape[0]
    mask = neighbor < n_atoms
    displacement = _displacements(position, neighbor, displacement_fn, centers, **kwargs)
    return Neighborhood(
        displacement=jnp.where(mask[..., None], displacement, 1.0),
        mask=mask,
        center_species=species[jnp.where(centers < n_atoms, centers, 0)],
        neighbor_species=species[jnp.where(mask, neighbor, 0)],
        neighbor=neighbor,
    )


def map_rows(
    fn: Callable[[Rows], Result],
    rows: Rows,
    chunk_size: int,
    wanted: Int[ArrayLike, ""] | None = None,
) -> Result:
    """Apply a function to rows, a chunk at a time.

    Args:
        fn: maps rows to arrays with one entry per row; rows are independent.
        rows: `n` rows, a `Neighborhood` or `components.RowComponents`.
        chunk_size: largest number of rows in a chunk.
        wanted: number of rows, from the first on, whose results are used;
            default all. Chunks without such rows are not computed and give zero.

    Returns:
        The results of `fn` for all rows.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    if n <= chunk_size:
        return fn(rows)
    n_chunks = -(-n // chunk_size)
    # Equal chunks, as few padded rows as possible; these are copies of the last row.
    size = -(-n // n_chunks)

    def fold(x):
        if n_chunks * size > n:
            x = jnp.pad(x, [(0, n_chunks * size - n)] + [(0, 0)] * (x.ndim - 1), mode="edge")
        return x.reshape(n_chunks, size, *x.shape[1:])

    padded = jax.tree.map(fold, rows)
    if wanted is None:
        out = jax.lax.map(fn, padded)
    else:
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, jax.tree.map(lambda x: x[0], padded))
        )
        first = size * jnp.arange(n_chunks)
        out = jax.lax.map(
            lambda chunk: jax.lax.cond(chunk[0] < wanted, fn, lambda _: zeros, chunk[1]), (first, padded)
        )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], out)


def image_pairs(
    position: Real[Array | np.ndarray, "atoms 3"] | Sequence,
    cell: Real[Array | np.ndarray, "3 3"] | Sequence,
    pbc: Shaped[Array | np.ndarray, "3"] | Sequence[bool],
    cutoff: float,
) -> Pairs:
    """All pairs (centre, neighbour image) closer than `cutoff`, sorted by centre.

    Args:
        position: Å.
        cell: Å, lattice vectors as rows (ASE). Vectors along directions
            that are not periodic may be zero.
        pbc: three booleans.
        cutoff: Å.

    Returns:
        Centres, neighbours, and displacements (Å) from centre to neighbour image.

    Raises:
        ValueError: positions are not finite, two atoms have the same position, a
            periodic direction has no lattice vector, or the vectors are not
            independent.
    """
    from ase.geometry import complete_cell
    from matscipy.neighbours import neighbour_list

    position = np.asarray(position, float)
    periodic = np.asarray(pbc, bool)
    if not np.isfinite(position).all():
        raise ValueError("position must be finite, got NaN or infinity.")
    lengths = np.linalg.norm(cell, axis=1)
    if (lengths[periodic] == 0).any():
        raise ValueError(
            "cell must have a lattice vector along each periodic direction, "
            f"got lengths {lengths} with pbc {periodic}."
        )
    if len(position) == 0:
        return np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3))
    cell = complete_cell(cell)
    if abs(np.linalg.det(cell)) < 1e-6 * np.prod(np.linalg.norm(cell, axis=1)):
        raise ValueError(f"cell must have independent lattice vectors, got {cell.tolist()}.")
    origin = np.zeros(3)
    if not periodic.all():
        # matscipy sorts atoms into bins of the cell. Along open directions the cell is
        # lengthened until it holds all atoms; its directions stay.
        fractional = position @ np.linalg.inv(cell)
        low, high = fractional.min(0), fractional.max(0)
        stretch = np.where(periodic, 1.0, np.maximum(high - low, 1e-3) * 1.01 + 1e-3)
        origin = np.where(periodic, 0.0, low - 1e-4) @ cell
        cell = cell * stretch[:, None]
    i, j, D = neighbour_list(
        "ijD", positions=position - origin, cell=cell, pbc=periodic, cutoff=float(cutoff)
    )
    if len(D) and not (apart := np.einsum("pd,pd->p", D, D) > 0.0).all():
        pair = int(np.argmin(apart))
        raise ValueError(f"position must hold no two atoms at one place, got atoms {i[pair]} and {j[pair]}.")
    return i.astype(int), j.astype(int), D


def closer(
    pairs: Pairs, cutoff: float
) -> tuple[Int[np.ndarray, " near"], Int[np.ndarray, " near"], Float[np.ndarray, "near 3"]]:
    """The pairs of `image_pairs` that are closer than `cutoff`, Å.

    >>> i, j, D = closer(image_pairs(np.zeros((1, 3)), np.eye(3), (True, True, True), 1.5), 1.1)
    >>> len(i)
    6
    """
    i, j, D = pairs
    keep = np.einsum("pd,pd->p", D, D) < cutoff**2
    return pairs if keep.all() else (i[keep], j[keep], D[keep])


def rows_from_images(
    position: Real[Array | np.ndarray, "atoms 3"] | Sequence,
    species: Integer[Array | np.ndarray, " atoms"] | Sequence[int],
    cell: Real[Array | np.ndarray, "3 3"] | Sequence,
    pbc: Shaped[Array | np.ndarray, "3"] | Sequence[bool],
    cutoff: float,
    *,
    centers: Integer[Array | np.ndarray, " n"] | Sequence[int] | None = None,
    max_neighbors: int | None = None,
    dtype=np.float64,
    pairs: Pairs | None = None,
) -> Neighborhood:
    """Rows with periodic images, for cells of any size, on the host.

    Args:
        position: Å.
        species: of each atom.
        cell: Å, lattice vectors as rows (ASE).
        pbc: three booleans.
        cutoff: Å.
        centers: default every atom.
        max_neighbors: K; default the largest number of neighbours of a row.
        dtype: of the displacements.
        pairs: result of `image_pairs` for this cutoff, if it has been computed already.

    Returns:
        Rows of numpy arrays; `neighbor` indexes atoms. Several slots of a row may be
        images of one atom, the centre itself included.

    Raises:
        ValueError: a row has more than `max_neighbors` neighbours.
    """
    n_atoms = len(position)
    species = np.asarray(species, np.int32)
    i, j, D = image_pairs(position, cell, pbc, cutoff) if pairs is None else pairs
    count = np.bincount(i, minlength=n_atoms)
    slot = np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)
    centers = np.arange(n_atoms) if centers is None else np.asarray(centers, int)
    needed = int(count[centers].max(initial=0))
    if max_neighbors is None:
        max_neighbors = max(needed, 1)
    elif needed > max_neighbors:
        raise ValueError(
            f"max_neighbors must be at least {needed}, the largest number of neighbours of a row, "
            f"got {max_neighbors}."
        )
    row_of = np.full(n_atoms, -1)
    row_of[centers] = np.arange(len(centers))
    keep = row_of[i] >= 0
    i, j, D, slot = row_of[i[keep]], j[keep], D[keep], slot[keep]
    shape = (len(centers), max_neighbors)
    displacement = np.ones((*shape, 3), dtype)
    mask = np.zeros(shape, bool)
    neighbor = np.full(shape, n_atoms, np.int32)
    neighbor_species = np.zeros(shape, np.int32)
    displacement[i, slot] = D
    mask[i, slot] = True
    neighbor[i, slot] = j
    neighbor_species[i, slot] = species[j]
    return Neighborhood(displacement, mask, species[centers], neighbor_species, neighbor)

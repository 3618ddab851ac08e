"""Atoms sorted into cells of a box, for neighbour lists in linear time."""

from itertools import product
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

Grid = tuple[int, int, int]  # cells along each direction


class Cells(NamedTuple):
    """Atoms sorted into cells."""

    coordinates: Array  # [n_atoms, 3] int, the cell of each atom
    members: Array  # [n_cells, cell_capacity] int, atoms in each cell; n_atoms where padded
    counts: Array  # [n_cells] int, atoms in each cell, also beyond the capacity


def cell_coordinates(fraction: Array, grid: Grid) -> Array:
    """The cell of each atom, `[n_atoms, 3]` int, from its fractional coordinates."""
    fraction = fraction - jnp.floor(fraction)
    sides = jnp.asarray(grid, jnp.int32)[None]  # [1, 3]
    return jnp.minimum((fraction * sides).astype(jnp.int32), sides - 1)


def max_cell_occupancy(fraction: Array, grid: Grid) -> Array:
    """Number of atoms in the fullest cell."""
    cell = cell_number(cell_coordinates(fraction, grid), grid)
    return jnp.max(jnp.zeros(int(np.prod(grid)), jnp.int32).at[cell].add(1))


def sort_into_cells(fraction: Array, grid: Grid, cell_capacity: int) -> Cells:
    """Atoms sorted into cells, from fractional coordinates `[n_atoms, 3]`; atoms at NaN are in none."""
    n_atoms, n_cells = fraction.shape[0], int(np.prod(grid))
    coordinates = cell_coordinates(fraction, grid)
    # An atom at NaN gets a number beyond the last cell.
    cell = jnp.where(jnp.any(jnp.isnan(fraction), axis=1), n_cells, cell_number(coordinates, grid))
    order = jnp.argsort(cell, stable=True).astype(jnp.int32)
    counts = jnp.zeros(n_cells, jnp.int32).at[cell].add(1)
    place = jnp.arange(n_atoms, dtype=jnp.int32) - (jnp.cumsum(counts) - counts)[cell[order]]
    members = jnp.full((n_cells, cell_capacity), n_atoms, jnp.int32)
    return Cells(coordinates, members.at[cell[order], place].set(order, mode="drop"), counts)


def cell_grid(widths: np.ndarray, min_width: float, n_atoms: int) -> Grid:
    """Cells of at least a width (Å) along each direction: as many as fit, at most one per atom."""
    sides = np.maximum(1, np.floor(widths / (1.0001 * min_width))).astype(int)
    while np.prod(sides) > max(n_atoms, 27):
        sides[np.argmax(sides)] -= 1
    return tuple(sides.tolist())


def cell_offsets(grid: Grid) -> np.ndarray:
    """Steps from a cell to itself and its neighbours, `[n, 3]`; each cell once, also in short directions."""
    steps = {1: (0,), 2: (0, 1)}
    return np.array(list(product(*(steps.get(n, (-1, 0, 1)) for n in grid))))


def cell_number(coordinates: Array, grid: Grid) -> Array:
    """The number of a cell from its coordinates `[..., 3]`."""
    return (coordinates[..., 0] * grid[1] + coordinates[..., 1]) * grid[2] + coordinates[..., 2]

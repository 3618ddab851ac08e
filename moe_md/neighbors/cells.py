"""Atoms sorted into cells of a box, for neighbour lists in linear time."""

from itertools import product
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

Grid = tuple[int, int, int]  # cells along each direction


class Cells(NamedTuple):
    """Atoms sorted into cells."""

    coordinates: Int[Array, "atoms 3"]  # the cell of each atom
    members: Int[Array, "cells capacity"]  # atoms in each cell; the number of atoms where padded
    counts: Int[Array, " cells"]  # atoms in each cell, also beyond the capacity


def cell_coordinates(fraction: Float[Array, "atoms 3"], grid: Grid) -> Int[Array, "atoms 3"]:
    """The cell of each atom, from its fractional coordinates."""
    fraction = fraction - jnp.floor(fraction)
    sides = jnp.asarray(grid, jnp.int32)[None]  # [1, 3]
    return jnp.minimum((fraction * sides).astype(jnp.int32), sides - 1)


def max_cell_occupancy(fraction: Float[Array, "atoms 3"], grid: Grid) -> Int[Array, ""]:
    """Number of atoms in the fullest cell."""
    cell = cell_number(cell_coordinates(fraction, grid), grid)
    return jnp.max(jnp.zeros(int(np.prod(grid)), jnp.int32).at[cell].add(1))


def sort_into_cells(fraction: Float[Array, "atoms 3"], grid: Grid, cell_capacity: int) -> Cells:
    """Atoms sorted into cells, from fractional coordinates; atoms at NaN are in none."""
    n_atoms, n_cells = fraction.shape[0], int(np.prod(grid))
    coordinates = cell_coordinates(fraction, grid)
    # An atom at NaN gets a number beyond the last cell.
    cell = jnp.where(jnp.any(jnp.isnan(fraction), axis=1), n_cells, cell_number(coordinates, grid))
    order = jnp.argsort(cell, stable=True).astype(jnp.int32)
    counts = jnp.zeros(n_cells, jnp.int32).at[cell].add(1)
    place = jnp.arange(n_atoms, dtype=jnp.int32) - (jnp.cumsum(counts) - counts)[cell[order]]
    members = jnp.full((n_cells, cell_capacity), n_atoms, jnp.int32)
    return Cells(coordinates, members.at[cell[order], place].set(order, mode="drop"), counts)


def cell_grid(widths: Float[np.ndarray, "3"], min_width: float, n_atoms: int) -> Grid:
    """Cells of at least a width (Å) along each direction: as many as fit, at most one per atom."""
    sides = np.maximum(1, np.floor(widths / (1.0001 * min_width))).astype(int)
    while np.prod(sides) > max(n_atoms, 27):
        sides[np.argmax(sides)] -= 1
    return tuple(sides.tolist())


def cell_offsets(grid: Grid) -> Int[np.ndarray, "n 3"]:
    """Steps from a cell to itself and its neighbours; each cell once, also in short directions."""
    steps = {1: (0,), 2: (0, 1)}
    return np.array(list(product(*(steps.get(n, (-1, 0, 1)) for n in grid))))


def cell_number(coordinates: Int[Array, "*n 3"], grid: Grid) -> Int[Array, "*n"]:
    """The number of a cell from its coordinates."""
    return (coordinates[..., 0] * grid[1] + coordinates[..., 1]) * grid[2] + coordinates[..., 2]

"""Rows with x, y and z in arrays of their own, which experts of sums over neighbours take.

A slot without a neighbour holds a displacement beyond every cutoff, so that no mask is needed.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from moe_md.neighbors.images import Components, displacements
from moe_md.neighbors.rows import Neighborhood


class RowComponents(NamedTuple):
    """`n` centres with `K` neighbour slots each."""

    displacement: Components  # [n, K] Å each, centre to neighbour; beyond every cutoff where there is none
    center_species: Int[Array | np.ndarray, " n"]  # index into Expert.species
    neighbor_species: Int[Array | np.ndarray, "n K"]


def components_of_rows(rows: Neighborhood, beyond: float) -> RowComponents:
    """The same rows; `beyond` (Å) is the x of slots without a neighbour."""
    x, y, z = (jnp.where(rows.mask, rows.displacement[..., axis], 0.0) for axis in range(3))
    x = jnp.where(rows.mask, x, beyond)
    return RowComponents((x, y, z), rows.center_species, rows.neighbor_species)


def components_from_positions(
    position: Float[Array | np.ndarray, "atoms 3"],
    species: Int[Array | np.ndarray, " atoms"],
    centers: Int[Array, " n"],
    neighbor: Int[Array, "n K"],
    nearest_image: Callable[[Components], Components],
    beyond: float,
) -> RowComponents:
    """Rows of some centres with these neighbours; arguments as of `displacements`."""
    last = position.shape[0] - 1
    return RowComponents(
        displacements(position, centers, neighbor, nearest_image, beyond),
        species[jnp.minimum(centers, last)],
        species[jnp.minimum(neighbor, last)],
    )

"""Experts whose energy is a function of sums over neighbours.

    A_i = sum_j a(r_ij)        NeighborSums.sums
    E_i = F(A_i)               NeighborSums.energies
    g_ij = dE_i / dr_ij = F'(A_i) a'(r_ij)

A step of molecular dynamics of such an expert costs little more than its arithmetic.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from moe_md.neighbors.components import Components, RowComponents, components_of_rows
from moe_md.neighbors.rows import Neighborhood

Params = Any

BEYOND = 2.0  # x of a slot without a neighbour, over the cutoff


class NeighborSums(NamedTuple):
    """The two functions of such an expert; neighbours are of its allowed species."""

    # Sums are arrays of their own, made by `sum_over_neighbors`.
    sums: Callable  # (params, RowComponents) -> tuple of [n]
    energies: Callable  # (params, tuple of [n] sums, [n] center_species) -> [n] eV


def sum_over_neighbors(terms: tuple[Float[Array, "n K"], ...]) -> tuple[Float[Array, " n"], ...]:
    """Sums over the last axis.

    All of them are made in one loop, in which what terms share is computed once. XLA for
    CPU would otherwise compute every sum alone.

    Args:
        terms: one array for each sum, of one shape and dtype.

    >>> [x.tolist() for x in sum_over_neighbors((jnp.ones((2, 3)), jnp.zeros((2, 3))))]
    [[3.0, 3.0], [0.0, 0.0]]
    """
    return _sums(terms)


@jax.custom_jvp
def _sums(terms: tuple[Array, ...]) -> tuple[Array, ...]:
    zeros = tuple(jnp.zeros((), term.dtype) for term in terms)
    return tuple(jax.lax.reduce(terms, zeros, _add, (terms[0].ndim - 1,)))


@_sums.defjvp
def _(primals, tangents):
    return _sums(*primals), tuple(jnp.sum(t, axis=-1) for t in tangents[0])


def _add(left, right) -> tuple[Array, ...]:
    return tuple(a + b for a, b in zip(left, right))


def of_center_species(
    values: Float[Array, "allowed n"],
    center_species: Int[Array | np.ndarray, " n"],
    allowed_species: Sequence[int],
    num_species: int,
) -> Float[Array, " n"]:
    """The value for the species of each centre, of values for every allowed species."""
    if len(allowed_species) == 1:
        return values[0]
    place = np.zeros(num_species, np.int32)
    place[list(allowed_species)] = np.arange(len(allowed_species))
    return jnp.take_along_axis(values, jnp.asarray(place)[center_species][None], axis=0)[0]


def allowed_neighbors(
    neighbor: Int[Array, "n K"],
    atom_species: Int[Array | np.ndarray, " atoms"],
    species: Sequence[str],
    allowed_species: Sequence[str],
) -> Int[Array, "n K"]:
    """The number of atoms in place of neighbours of species that are not allowed."""
    if set(allowed_species) == set(species):
        return neighbor
    is_allowed = jnp.asarray([symbol in allowed_species for symbol in species])
    is_allowed = jnp.append(is_allowed[atom_species], False)
    return jnp.where(is_allowed[neighbor], neighbor, atom_species.shape[0])


def row_components(
    rows: Neighborhood, species: Sequence[str], allowed_species: Sequence[str], cutoff: float
) -> RowComponents:
    """Rows in components, without neighbours of species that are not allowed."""
    if set(allowed_species) != set(species):
        is_allowed = jnp.asarray([symbol in allowed_species for symbol in species])
        rows = rows._replace(mask=rows.mask & is_allowed[rows.neighbor_species])
    return components_of_rows(rows, BEYOND * cutoff)


def energies_of(functions: NeighborSums, params: Params, rows: RowComponents) -> Float[Array, " n"]:
    """E_i of every row, eV."""
    return functions.energies(params, functions.sums(params, rows), rows.center_species)


def with_partial_forces(
    functions: NeighborSums, params: Params, rows: RowComponents
) -> tuple[Float[Array, " n"], Components]:
    """Energies, eV, and x, y and z of dE_i / d displacement, `[n, K]` eV/Å."""
    sums = functions.sums(params, rows)
    energies, to_slopes = jax.vjp(lambda sums: functions.energies(params, sums, rows.center_species), sums)
    (slopes,) = to_slopes(jnp.ones_like(energies))
    slopes = without_fusion(slopes)
    # What depends on displacements is computed anew: of each array of pairs that both passes use, XLA
    # would make one in memory.
    displacement = _copies(rows.displacement, slopes[0])
    _, back = jax.vjp(lambda d: functions.sums(params, rows._replace(displacement=d)), displacement)
    return energies, back(slopes)[0]


def _copies(displacement: Components, other: Float[Array, " n"]) -> Components:
    """Equal values that XLA does not recognise as equal: a number too small to matter is added."""
    nothing = jax.lax.stop_gradient(jnp.finfo(other.dtype).tiny * other)[:, None]
    x, y, z = displacement
    return x + nothing, y + nothing, z + nothing


def without_fusion(values: Sequence[Float[Array, " n"]]) -> tuple[Float[Array, " n"], ...]:
    """The same values, computed once, also where they are used in a loop over neighbours.

    XLA for CPU does not fuse through a matrix product, so they are multiplied by the
    identity matrix. `jax.lax.optimization_barrier` has no effect there.
    """
    identity = jnp.eye(len(values), dtype=values[0].dtype)
    return tuple(jnp.dot(identity, jnp.stack(values), precision=jax.lax.Precision.HIGHEST))

"""Energies and partial forces of rows, all at once or a chunk at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from moe_md.experts.base import Expert, Params
from moe_md.experts.neighbor_sums import energies_of, row_components, with_partial_forces
from moe_md.neighbors.components import RowComponents
from moe_md.neighbors.rows import Neighborhood, map_rows

SUMS_CHUNK = 2048  # rows of a chunk of an expert of sums over neighbours


def energies_and_partial_forces(
    expert: Expert, params: Params, rows: Neighborhood
) -> tuple[Float[Array, " n"], Float[Array, "n K 3"]]:
    """Per-atom energies and g = dE_i / d displacement of every slot.

    For an expert with `num_hops` above 1 it is g = d(sum_j E_j) / d displacement,
    summed over all rows j. Where some rows serve for their messages only, mask their
    energies and differentiate that sum instead.

    Args:
        expert: the potential.
        params: its parameters.
        rows: `n` rows of `K` slots.

    Returns:
        energies, eV, and g, eV/Å, zero on padded slots.
    """
    if expert.neighbor_sums is not None:
        energies, g = _energies_and_partial_forces(expert, params, components_for(expert, rows))
        return energies, jnp.where(rows.mask[..., None], jnp.stack(g, axis=-1), 0.0)
    return _energies_and_partial_forces(expert, params, rows)


def components_for(expert: Expert, rows: Neighborhood) -> RowComponents:
    """Rows as an expert of sums over neighbours takes them."""
    return row_components(rows, expert.species, expert.allowed_species, expert.cutoff)


def _energies_and_partial_forces(expert: Expert, params: Params, rows: Neighborhood | RowComponents):
    """Energies `[n]`, and g in the form of `rows.displacement`."""
    if expert.neighbor_sums is not None and isinstance(rows, RowComponents):
        return with_partial_forces(expert.neighbor_sums, params, rows)

    def total(displacement):
        energies = expert.atom_energies(params, rows._replace(displacement=displacement))
        return jnp.sum(energies), energies

    g, energies = jax.grad(total, has_aux=True)(rows.displacement)
    return energies, g


def _energies(expert: Expert, params: Params, rows: Neighborhood | RowComponents) -> Float[Array, " n"]:
    if expert.neighbor_sums is not None and isinstance(rows, RowComponents):
        return energies_of(expert.neighbor_sums, params, rows)
    return expert.atom_energies(params, rows)


def chunked_atom_energies(expert: Expert, chunk_size: int) -> Callable:
    """The expert's `atom_energies`, `chunk_size` rows at a time.

    Memory is bounded by one chunk, also under differentiation. When only the
    displacements vary (molecular dynamics), each chunk returns its partial forces
    along with its energies, in one pass. Rows of an expert with `num_hops` above 1
    depend on one another: for it the expert's `atom_energies` is returned as it is.

    Args:
        expert: the potential.
        chunk_size: rows per chunk, at least 1. An expert of sums over neighbours needs little memory
            for a row, and takes up to `SUMS_CHUNK` of them.

    Returns:
        `(params, rows, wanted=None) -> [n] eV`, differentiable to any
        order; `wanted` as in `map_rows`. Rows are a `Neighborhood`, or `RowComponents` for
        an expert of sums over neighbours.

    Raises:
        ValueError: `chunk_size` is not positive.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
    if expert.num_hops > 1:
        return expert.atom_energies

    kind = Neighborhood if expert.neighbor_sums is None else RowComponents

    def mapped(fn: Callable, rows, wanted):
        return map_rows(fn, rows, _chunk_size(expert, chunk_size, rows), wanted)

    @jax.custom_jvp
    def energies(params, displacement, rest, wanted):
        rows = kind(displacement, *rest)
        return mapped(lambda chunk: _energies(expert, params, chunk), rows, wanted)

    def jvp(primals, tangents):
        params, displacement, rest, wanted = primals
        params_dot, displacement_dot, *_ = tangents
        rows = kind(displacement, *rest)
        e, g = mapped(lambda chunk: _energies_and_partial_forces(expert, params, chunk), rows, wanted)
        e_dot = jnp.zeros_like(e)
        for partial_force, dot in zip(*map(jax.tree.leaves, (g, displacement_dot))):
            if not isinstance(dot, SymbolicZero):
                e_dot = e_dot + jnp.sum(partial_force * dot, axis=tuple(range(1, partial_force.ndim)))
        if any(not isinstance(t, SymbolicZero) for t in jax.tree.leaves(params_dot)):
            dot = jax.tree.map(
                lambda p, t: jnp.zeros_like(p) if isinstance(t, SymbolicZero) else t, params, params_dot
            )

            def of_params(p):
                return mapped(lambda chunk: _energies(expert, p, chunk), rows, wanted)

            e_dot = e_dot + jax.jvp(of_params, (params,), (dot,))[1]
        return e, e_dot

    energies.defjvp(jvp, symbolic_zeros=True)

    def atom_energies(
        params: Params, rows: Neighborhood | RowComponents, wanted: Int[ArrayLike, ""] | None = None
    ) -> Float[Array, " n"]:
        if expert.neighbor_sums is not None and isinstance(rows, Neighborhood):
            rows = components_for(expert, rows)
        return energies(params, rows.displacement, rows[1:], wanted)

    return atom_energies


def _chunk_size(expert: Expert, chunk_size: int, rows: Neighborhood | RowComponents) -> int:
    """Rows computed at a time: many where they are sums over neighbours, but at least two chunks.

    Between chunks XLA stores partial forces. In a single chunk it would compute them once for
    each of their uses.
    """
    if expert.neighbor_sums is None:
        return chunk_size
    n_rows = rows.center_species.shape[0]
    return max(1, min(SUMS_CHUNK, -(-n_rows // 2)))

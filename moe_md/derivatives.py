"""Forces, virial and stress from partial forces g = dE_i / d displacement."""

import jax.numpy as jnp
from jax import Array

from moe_md.neighborhood import Neighborhood


def forces(g: Array, rows: Neighborhood, centers: Array, n_atoms: int) -> Array:
    """Forces on all atoms from the partial forces of some rows.

    A slot pulls its centre by +g and its neighbour by -g, so that momentum is
    conserved by construction.

    Args:
        g: `[n, K, 3]` eV/Å, zero on padded slots.
        rows: `n` rows whose `neighbor` indexes atoms.
        centers: `[n]` int, the atom of each row, `n_atoms` where none.
        n_atoms: number of atoms.

    Returns:
        `[n_atoms, 3]` eV/Å.
    """
    total = jnp.zeros((n_atoms, 3), g.dtype).at[centers].add(jnp.sum(g, axis=1), mode="drop")
    neighbor = jnp.where(rows.mask, rows.neighbor, n_atoms)
    return total.at[neighbor].add(-g, mode="drop")


def virial(g: Array, rows: Neighborhood) -> Array:
    """dE/d strain of each row, `[n, 3, 3]` eV: sum_k g_k displacement_k, symmetric part.

    Summed over rows and divided by the volume it is ASE's stress.
    """
    w = jnp.einsum("nka,nkb->nab", g, jnp.where(rows.mask[..., None], rows.displacement, 0.0))
    return 0.5 * (w + jnp.swapaxes(w, 1, 2))

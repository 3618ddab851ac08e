"""Screened repulsion of nuclei at short distances."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from moe_md.experts import angular
from moe_md.experts.radial import polynomial_cutoff
from moe_md.neighbors.components import RowComponents
from moe_md.neighbors.rows import Neighborhood

COULOMB = 14.399645  # e^2 / (4 pi eps_0), eV Å
ZBL_SCREENING = ((0.02817, 0.20162), (0.28022, 0.40290), (0.50986, 0.94229), (0.18175, 3.19980))
ZBL_POWER, ZBL_LENGTH = 0.23, 0.46850  # Å


def zbl_energies(
    rows: Neighborhood,
    atomic_numbers: Real[ArrayLike, " species"] | Sequence[int],
    cutoff: Real[ArrayLike, "..."],
) -> Float[Array, " n"]:
    """Half of the screened repulsion of nuclei per neighbour of every row.

    Args:
        rows: `n` rows.
        atomic_numbers: of each species.
        cutoff: Å, one number or `[n, K]`.

    Returns:
        eV.
    """
    _, r = angular.safe_displacement(rows.displacement, rows.mask)
    z = jnp.asarray(atomic_numbers, r.dtype)
    pair = zbl_pair(r, z[rows.center_species][:, None], z[rows.neighbor_species], cutoff)
    return 0.5 * jnp.sum(jnp.where(rows.mask, pair, 0.0), axis=-1)


def zbl_sums(
    rows: RowComponents,
    atomic_numbers: Real[ArrayLike, " species"] | Sequence[int],
    cutoff: Real[ArrayLike, "..."],
) -> Float[Array, " n"]:
    """`zbl_energies` of rows in components; `cutoff` is one number or `[n, K]`."""
    x, y, z = rows.displacement
    r = jnp.sqrt(x * x + y * y + z * z)
    number = jnp.asarray(atomic_numbers, r.dtype)
    pair = zbl_pair(r, number[rows.center_species][:, None], number[rows.neighbor_species], cutoff)
    return 0.5 * jnp.sum(pair, axis=-1)


def zbl_pair(
    r: Float[Array, "..."], z_i: Float[Array, "..."], z_j: Float[Array, "..."], cutoff: Real[ArrayLike, "..."]
) -> Float[Array, "..."]:
    """Screened repulsion of two nuclei, times the polynomial envelope with p = 6: eV.

    E_ij = e^2 Z_i Z_j / (4 pi eps_0 r) sum_k c_k exp(-d_k (Z_i^0.23 + Z_j^0.23) r / a)

    Args:
        r: Å, positive.
        z_i, z_j: atomic numbers.
        cutoff: Å.

    Source:
        Ziegler, Biersack, Littmark, The Stopping and Range of Ions in Matter
        (1985), with the constants of LAMMPS' `pair_style zbl`.
    """
    x = (z_i**ZBL_POWER + z_j**ZBL_POWER) * r / ZBL_LENGTH
    screening = sum(c * jnp.exp(-d * x) for c, d in ZBL_SCREENING)
    return COULOMB * z_i * z_j / r * screening * polynomial_cutoff(r / cutoff, 6.0)

"""Screened repulsion of nuclei at short distances."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from moe_md.experts import angular
from moe_md.experts.radial import polynomial_cutoff
from moe_md.neighbors.rows import Neighborhood

COULOMB = 14.399645  # e^2 / (4 pi eps_0), eV Å
ZBL_SCREENING = ((0.02817, 0.20162), (0.28022, 0.40290), (0.50986, 0.94229), (0.18175, 3.19980))
ZBL_POWER, ZBL_LENGTH = 0.23, 0.46850  # Å


def zbl_energies(
    rows: Neighborhood,
    atomic_numbers: Real[ArrayLike, " species"] | Sequence[int],
    cutoff: Real[ArrayLike, "..."],
) -> Float[Array, " n"]:
    """Half of the screened repulsion of nuclei per neighbour, times the polynomial envelope with p = 6.

    E_ij = e^2 Z_i Z_j / (4 pi eps_0 r) sum_k c_k exp(-d_k (Z_i^0.23 + Z_j^0.23) r / a)

    Args:
        rows: `n` rows.
        atomic_numbers: of each species.
        cutoff: Å, one number or `[n, K]`.

    Returns:
        eV.

    Source:
        Ziegler, Biersack, Littmark, The Stopping and Range of Ions in Matter
        (1985), with the constants of LAMMPS' `pair_style zbl`.
    """
    _, r = angular.safe_displacement(rows.displacement, rows.mask)
    z = jnp.asarray(atomic_numbers, r.dtype)
    z_i, z_j = z[rows.center_species][:, None], z[rows.neighbor_species]
    x = (z_i**ZBL_POWER + z_j**ZBL_POWER) * r / ZBL_LENGTH
    screening = sum(c * jnp.exp(-d * x) for c, d in ZBL_SCREENING)
    pair = COULOMB * z_i * z_j / r * screening * polynomial_cutoff(r / cutoff, 6.0)
    return 0.5 * jnp.sum(jnp.where(rows.mask, pair, 0.0), axis=-1)

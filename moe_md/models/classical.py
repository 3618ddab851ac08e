"""Analytic potentials with known answers, for tests and examples."""

import jax.numpy as jnp
from jax import Array

from moe_md.models import angular
from moe_md.neighborhood import Neighborhood


def lennard_jones_energies(rows: Neighborhood, epsilon: Array, sigma: Array, onset: float, cutoff: float) -> Array:
    """Half of 4 eps [(s/r)^12 - (s/r)^6] per neighbour, switched off from `onset` to `cutoff`.

    The switch is the XPLOR polynomial in r^2,
    (c^2 - r^2)^2 (c^2 + 2 r^2 - 3 o^2) / (c^2 - o^2)^3,
    as in ASE's `LennardJones(smooth=True)`.

    Args:
        rows: `n` rows.
        epsilon: eV.
        sigma: Å.
        onset: Å, where switching begins.
        cutoff: Å.

    Returns:
        `[n]` eV.
    """
    _, r = angular.safe_displacement(rows.displacement, rows.mask)
    s6 = (sigma / r) ** 6
    r2, o2, c2 = r**2, onset**2, cutoff**2
    switch = (c2 - r2) ** 2 * (c2 + 2 * r2 - 3 * o2) / (c2 - o2) ** 3
    switch = jnp.where(r < onset, 1.0, switch)
    pair = jnp.where(rows.mask & (r < cutoff), 4 * epsilon * (s6**2 - s6) * switch, 0.0)
    return 0.5 * jnp.sum(pair, axis=-1)

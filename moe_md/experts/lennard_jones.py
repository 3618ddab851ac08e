"""Lennard-Jones: an analytic expert with known answers."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray, Real

from moe_md.checks import check_value
from moe_md.experts import angular
from moe_md.experts.arguments import check_species
from moe_md.experts.base import Expert, Params, cast, register_expert, stored_config
from moe_md.neighbors.rows import Neighborhood


def lennard_jones_energies(
    rows: Neighborhood, epsilon: Real[ArrayLike, ""], sigma: Real[ArrayLike, ""], onset: float, cutoff: float
) -> Float[Array, " n"]:
    """Half of 4 eps [(s/r)^12 - (s/r)^6] per neighbour, switched off from `onset` to `cutoff`.

    The switch is the XPLOR polynomial in r^2,
    (c^2 - r^2)^2 (c^2 + 2 r^2 - 3 o^2) / (c^2 - o^2)^3,
    as in ASE's `LennardJones(smooth=True)`.

    Args:
        rows: `n` rows.
        epsilon: eV.
        sigma: Å.
        onset: Å, distance at which switching begins.
        cutoff: Å.

    Returns:
        eV.
    """
    _, r = angular.safe_displacement(rows.displacement, rows.mask)
    s6 = (sigma / r) ** 6
    r2, o2, c2 = r**2, onset**2, cutoff**2
    switch = (c2 - r2) ** 2 * (c2 + 2 * r2 - 3 * o2) / (c2 - o2) ** 3
    switch = jnp.where(r < onset, 1.0, switch)
    pair = jnp.where(rows.mask & (r < cutoff), 4 * epsilon * (s6**2 - s6) * switch, 0.0)
    return 0.5 * jnp.sum(pair, axis=-1)


@register_expert
def lennard_jones(
    species: Sequence[str],
    cutoff: float,
    *,
    epsilon: float = 1.0,
    sigma: float = 1.0,
    onset: float | None = None,
    allowed_species: Sequence[str] | None = None,
) -> Expert:
    """An analytic expert, one pair potential for all species.

    Args:
        species: chemical symbols.
        cutoff: Å.
        epsilon: initial well depth, eV.
        sigma: initial diameter, Å.
        onset: Å, distance at which switching begins; default 0.8 cutoff.
        allowed_species: species it may meet; default all.

    Returns:
        An expert whose params are `{"epsilon", "sigma"}`.

    Raises:
        ValueError: an argument is out of range.
    """
    config = dict(locals())
    check_species(species, cutoff, allowed_species)
    allowed = tuple(species) if allowed_species is None else tuple(allowed_species)
    check_value("epsilon", epsilon, float)
    check_value("sigma", sigma, float)
    onset = 0.8 * cutoff if onset is None else onset
    check_value("onset", onset, float)
    if not 0 < onset < cutoff:
        raise ValueError(f"onset must lie between 0 and cutoff = {cutoff} Å, got {onset}.")

    def init(key: PRNGKeyArray | None) -> Params:
        del key
        return {"epsilon": jnp.asarray(float(epsilon)), "sigma": jnp.asarray(float(sigma))}

    def atom_energies(params: Params, rows: Neighborhood) -> Float[Array, " n"]:
        p = cast(params, rows.displacement.dtype)
        return lennard_jones_energies(rows, p["epsilon"], p["sigma"], onset, cutoff)

    return Expert(
        init, atom_energies, float(cutoff), tuple(species), allowed, stored_config("lennard_jones", config)
    )

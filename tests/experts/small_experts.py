"""Small experts of every kind, their random parameters and compiled derivatives."""

from functools import lru_cache, partial

import contract
import jax
import jax.numpy as jnp
from contract import CUTOFF, randomized

from moe_md.experts import energies_and_partial_forces

EXPERTS = {
    **{
        f"allegro-l{l_max}-layers{layers}-{'parity' if parity else 'so3'}": (
            contract.small_allegro,
            (l_max, layers, parity),
        )
        for l_max in (1, 2)
        for layers in (1, 2)
        for parity in (True, False)
    },
    "power_spectrum": (contract.small_power_spectrum, ()),
    "power_spectrum-Pt": (contract.small_power_spectrum, (("Pt",),)),
    "embedded_atom": (contract.small_embedded_atom, ()),
    "embedded_atom-Pt": (contract.small_embedded_atom, (("Pt",),)),
    "density_moments": (contract.small_density_moments, ()),
    "density_moments-Pt": (contract.small_density_moments, (("Pt",),)),
    "density_moments-mixtures": (partial(contract.small_density_moments, num_species_mixtures=1), ()),
    "density_moments-zbl": (
        partial(contract.small_density_moments, zbl=True, pair_cutoffs=((3.0, 2.8), (2.8, 2.6))),
        (),
    ),
    "nequip": (contract.small_nequip, ()),
    "nequip-l2-parity": (contract.small_nequip, (2, CUTOFF, 2, "4x0e + 2x0o + 2x1o + 2x1e + 2x2e")),
    "lennard_jones": (contract.small_lennard_jones, ()),
}


@lru_cache
def made(name):
    make, arguments = EXPERTS[name]
    expert = make(*arguments)
    return expert, randomized(expert)


@lru_cache
def jitted(name):
    """Energies and partial forces of the expert, and gradients of a force loss."""
    expert, _ = made(name)

    def force_loss(params, rows):
        energies, g = energies_and_partial_forces(expert, params, rows)
        return jnp.sum(jnp.where(rows.mask[..., None], g, 0.0) ** 2) + jnp.sum(energies**2)

    def loss_of_displacement(displacement, params, rows):
        return force_loss(params, rows._replace(displacement=displacement))

    first = jax.jit(lambda params, rows: energies_and_partial_forces(expert, params, rows))
    second = jax.jit(
        lambda params, rows: (
            jax.value_and_grad(force_loss)(params, rows),
            jax.grad(loss_of_displacement)(rows.displacement, params, rows),
        )
    )
    return first, second

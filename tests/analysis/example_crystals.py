"""Potentials of crystals: Lennard-Jones, Keating's model, angular terms, message passing."""

from functools import cache

import jax
import jax.numpy as jnp
from ase.calculators.lj import LennardJones

from moe_md import experts

SIGMA, EPSILON, CUTOFF = 2.5446, 0.6, 6.0
A_COMPRESSED = 3.75  # Å, where the Lennard-Jones and the angular potential are under pressure
ALPHA, BETA, BOND = 3.0, 0.85, 2.35  # eV/Å^2, eV/Å^2, Å, of Keating's model


@cache
def lennard_jones(cutoff: float = CUTOFF):
    expert = experts.lennard_jones(("C", "Pt"), cutoff, epsilon=EPSILON, sigma=SIGMA)
    return expert, expert.init(None)


def ase_lennard_jones(cutoff: float = CUTOFF):
    return LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=cutoff, ro=0.8 * cutoff, smooth=True)


@cache
def angular():
    """An expert with angular terms and random parameters; its crystal is under pressure."""
    expert = experts.power_spectrum(
        ("C", "Pt"), 3.3, l_max=2, num_bessels=4, num_channels=4, hidden=(8,), avg_num_neighbors=6.0
    )
    return expert, jax.jit(expert.init)(jax.random.key(2))


@cache
def passing_messages(cutoff: float = 3.2):
    """Pair energies weighted by the neighbour's density: two hops."""

    def atom_energies(params, rows):
        r2 = jnp.sum(rows.displacement**2, axis=-1)
        bond = jnp.where(rows.mask & (r2 < cutoff**2), (1 - r2 / cutoff**2) ** 4, 0.0)
        density = jnp.sum(bond, axis=1)
        sent = density.at[rows.neighbor].get(mode="fill", fill_value=0.0)
        return params * jnp.sum(bond * (1 + 4000 * sent**2), axis=1)

    return experts.Expert(lambda key: 100.0, atom_energies, cutoff, ("Pt",), ("Pt",), {}, num_hops=2), 100.0


@cache
def keating(cutoff: float = 1.3 * BOND):
    """Keating's model of bonds and angles in diamond and zincblende, Phys. Rev. 145, 637 (1966).

    E_i = (3 alpha / 16 b^2) sum_j (r_j^2 - b^2)^2 + (3 beta / 8 b^2) sum_{j<k} (r_j.r_k + b^2 / 3)^2
    """

    def atom_energies(params, rows):
        D = rows.displacement
        bonded = rows.mask & (jnp.sum(D**2, axis=-1) < cutoff**2)
        products = jnp.einsum("nax,nbx->nab", D, D)
        pairs = bonded[:, :, None] & bonded[:, None] & ~jnp.eye(D.shape[1], dtype=bool)[None]
        angles = jnp.where(pairs, (products + BOND**2 / 3) ** 2, 0.0)
        stretches = jnp.where(bonded, (jnp.sum(D**2, axis=-1) - BOND**2) ** 2, 0.0)
        return (
            3 * params["alpha"] / (16 * BOND**2) * jnp.sum(stretches, axis=1)
            + 3 * params["beta"] / (16 * BOND**2) * jnp.sum(angles, axis=(1, 2))  # each pair twice
        )

    params = {"alpha": jnp.asarray(ALPHA), "beta": jnp.asarray(BETA)}
    species = ("As", "Ga")
    return (
        experts.Expert(lambda key: params, atom_energies, cutoff, species, species, {"builder": "keating"}),
        params,
    )

"""Small experts, and mixtures of them on the cluster of the contract, compiled."""

from functools import lru_cache

import contract
import jax
import jax.numpy as jnp
import numpy as np
from contract import ATOMS, BOX, POSITION, cluster_rows, randomized
from jax_md import space

import moe_md as mm
from moe_md.experts import energies_and_partial_forces
from moe_md.mixture import mixture_neighbor_list

LJ, SPECTRUM = contract.small_lennard_jones(), contract.small_power_spectrum(l_max=1)
SHORT = contract.small_lennard_jones(2.2)
displacement_fn, shift_fn = space.periodic(BOX)


def build(experts, params, region, *, species=ATOMS, position=POSITION, extra=0, **kwargs):
    neighbor_fn, energy_fn = mixture_neighbor_list(
        displacement_fn, BOX, mm.experts.potentials(experts, params), species, region, **kwargs
    )
    # Compiled whole: eagerly, each operation is a program of its own.
    return neighbor_fn, jax.jit(energy_fn), neighbor_fn.allocate(jnp.asarray(position), extra)


def gradient_of(energy_fn):
    """Energy and its gradient, compiled."""
    return jax.jit(jax.value_and_grad(energy_fn))


PAIR = (SHORT, LJ)  # that differ, in cutoff too, and compile fast
PAIR_PARAMS = [{"epsilon": np.array(0.7), "sigma": np.array(1.5)}, randomized(LJ)]


@lru_cache
def all_pairs(e):
    """Energies and partial forces of one expert on every atom, without any list."""
    return jax.jit(lambda p, rows: energies_and_partial_forces(PAIR[e], p, rows))(
        PAIR_PARAMS[e], cluster_rows(POSITION, ATOMS)
    )


def crystal(n=3, a=2.1):
    """A rattled simple cubic block whose box exceeds twice the cutoff."""
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    R = a * grid + 0.1 * np.random.default_rng(5).standard_normal((n**3, 3))
    return R, np.full(3, n * a), np.arange(n**3) % 2, (grid[:, 2] > 0).astype(int)

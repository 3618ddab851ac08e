"""Forces, virial and stress.

For rows they follow from partial forces g = dE_i / d displacement, for an energy
function from its gradient. Strain acts on displacements,
R_j - R_i -> (1 + strain)(R_j - R_i), in gates as in rows. Stress is
+(1/V) dE/d strain, as in ASE; `jax_md.quantity.stress` has the opposite sign.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Real

from moe_md.neighbors.rows import Neighborhood


def forces(
    g: Float[Array | np.ndarray, "n K 3"],
    rows: Neighborhood,
    centers: Int[Array | np.ndarray, " n"],
    n_atoms: int,
) -> Float[Array, "{n_atoms} 3"]:
    """Forces on all atoms from the partial forces of some rows.

    A slot adds +g to the force on its centre and -g to that on its neighbour, so
    momentum is conserved by construction.

    Args:
        g: eV/Å, zero on padded slots.
        rows: `n` rows whose `neighbor` indexes atoms.
        centers: the atom of each row, `n_atoms` where padded.
        n_atoms: number of atoms.

    Returns:
        eV/Å.
    """
    total = jnp.zeros((n_atoms, 3), g.dtype).at[centers].add(jnp.sum(g, axis=1), mode="drop")
    neighbor = jnp.where(rows.mask, rows.neighbor, n_atoms)
    return total.at[neighbor].add(-g, mode="drop")


def virial(g: Float[Array | np.ndarray, "n K 3"], rows: Neighborhood) -> Float[Array, "n 3 3"]:
    """dE/d strain of each row, eV: sum_k g_k displacement_k, symmetric part.

    The sum over rows, divided by the volume, is ASE's stress.
    """
    w = jnp.einsum("nka,nkb->nab", g, jnp.where(rows.mask[..., None], rows.displacement, 0.0))
    return 0.5 * (w + jnp.swapaxes(w, 1, 2))


def strain_gradient(
    energy_fn: Callable, position: Float[Array | np.ndarray, "atoms 3"], neighbor, **kwargs
) -> Float[Array, "3 3"]:
    """dE/d strain of an energy, symmetric part: eV.

    Args:
        energy_fn: `energy_fn(R, neighbor=, perturbation=, **kwargs)`, from
            `mixture_neighbor_list`.
        position: in the coordinates of the energy.
        neighbor: its neighbours.
        **kwargs: `params`, `region`, `box`.

    Returns:
        The virial; divided by the volume it is the stress.
    """
    unstrained = jnp.eye(3, dtype=position.dtype)

    def total(strain):
        return jnp.sum(energy_fn(position, neighbor=neighbor, perturbation=unstrained + strain, **kwargs))

    slope = jax.grad(total)(jnp.zeros_like(unstrained))
    return 0.5 * (slope + slope.T)


def stress(
    energy_fn: Callable,
    position: Float[Array | np.ndarray, "atoms 3"],
    neighbor,
    volume: Real[ArrayLike, ""],
    **kwargs,
) -> Float[Array, "3 3"]:
    """Stress of an energy, eV/Å^3, ASE's sign.

    Args:
        energy_fn, position, neighbor, **kwargs: as for `strain_gradient`.
        volume: Å^3, of the box.
    """
    return strain_gradient(energy_fn, position, neighbor, **kwargs) / volume


def atomic_virials(
    energies_fn: Callable, position: Float[Array | np.ndarray, "atoms 3"], neighbor, **kwargs
) -> Float[Array, "atoms 3 3"]:
    """dE_i/d strain of the energy of every atom, symmetric part: eV.

    For a mixture, E_i = sum_e g_ie E_ie, so the strain derivative of the gate is part
    of it. The sum over atoms divided by the volume is the stress. One of them divided
    by the volume of its atom is the stress of that atom.

    Args:
        energies_fn: as `energy_fn` of `strain_gradient`, from a builder with
            `per_particle=True`.
        position, neighbor, **kwargs: as for `strain_gradient`.
    """
    unstrained = jnp.eye(3, dtype=position.dtype)

    def energies(strain):
        return energies_fn(position, neighbor=neighbor, perturbation=unstrained + strain, **kwargs)

    slope = jax.jacfwd(energies)(jnp.zeros_like(unstrained))
    return 0.5 * (slope + jnp.swapaxes(slope, 1, 2))

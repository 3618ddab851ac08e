"""A slab of Pt under two Lennard-Jones experts."""

import jax.numpy as jnp
import numpy as np
from ase.build import fcc111
from jax_md import space

import moe_md as mm

CUTOFF = 4.3


def pt_slab(*, epsilon=(0.60, 0.55), **options):
    """A Pt slab of 72 atoms; expert 0 owns its upper half."""
    atoms = fcc111("Pt", (4, 6, 3), a=3.97, orthogonal=True, vacuum=8.0)
    displacement_fn, shift_fn = space.periodic(jnp.asarray(np.diag(atoms.cell)))
    experts = [mm.experts.lennard_jones(("Pt",), CUTOFF, epsilon=e, sigma=2.5446) for e in epsilon]
    region = mm.regions.slab(atoms.positions, lower=np.median(atoms.positions[:, 2]))
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        displacement_fn,
        np.diag(atoms.cell),
        mm.experts.potentials(experts, [e.init(None) for e in experts]),
        np.zeros(len(atoms), int),
        region,
        **options,
    )
    return atoms, neighbor_fn, energy_fn, shift_fn

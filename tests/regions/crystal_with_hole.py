"""An argon crystal with a hole, and mixtures of two Lennard-Jones experts that differ, on it."""

import jax.numpy as jnp
import numpy as np
from jax_md import space

import moe_md as mm
from moe_md.experts import lennard_jones
from moe_md.mixture import mixture_neighbor_list
from moe_md.regions import coordination

SPACING = 5.3  # Å, lattice constant of fcc argon
CELL = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
N_CELLS = 4
EDGE = N_CELLS * SPACING
FCC = SPACING * np.concatenate([CELL + n for n in np.ndindex(N_CELLS, N_CELLS, N_CELLS)])
HOLE = np.delete(FCC, 77, axis=0)
N_ATOMS = len(HOLE)  # 255
SHELL = {"r_full": 4.1, "r_none": 5.1}  # between the shells at 3.75 and 5.3 Å
LJ = lennard_jones(("Ar",), 6.5, epsilon=0.0104, sigma=3.4)
PARAMS = [{"epsilon": jnp.asarray(e), "sigma": jnp.asarray(s)} for e, s in ((0.0104, 3.40), (0.0080, 3.37))]
displacement_fn, shift_fn = space.periodic(EDGE)
FEW = coordination(10.4, 11.6, **SHELL)  # atoms beside the hole have 11
CORE, BLEND = 2.0, 3.0  # Å; together they exceed no cutoff
FAR_CORE, FAR_BLEND = 5.0, 3.0  # Å; together they exceed the experts' cutoff


def mixture(region, n_atoms=N_ATOMS, experts=2, **kwargs):
    potentials = mm.experts.potentials((LJ,) * experts, [*PARAMS, PARAMS[0]][:experts])
    return mixture_neighbor_list(
        displacement_fn, EDGE, potentials, np.zeros(n_atoms, int), region, dr_threshold=0.4, **kwargs
    )


def shaken(seed=0, size=0.08, position=HOLE):
    return jnp.asarray(position + size * np.random.default_rng(seed).normal(size=position.shape))

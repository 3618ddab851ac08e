"""Argon under two Lennard-Jones experts, with a vacancy, and central differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ase.build import bulk
from jax_md import space

import moe_md as mm
from moe_md import simulate

EPSILON, SIGMA, A = 0.0104, 3.4, 5.3  # argon; eV, Å, Å
# Between the first two shells of neighbours, so that no pair meets the onset, where the switch has a kink.
CUTOFF, ONSET = 5.0, 4.4


def argon(cutoff=CUTOFF, onset=ONSET, deeper=1.2, wider=0.98):
    """Of the two experts."""
    build = partial(mm.experts.lennard_jones, ("Ar",), cutoff, onset=onset)
    experts = (build(epsilon=EPSILON, sigma=SIGMA), build(epsilon=deeper * EPSILON, sigma=wider * SIGMA))
    return experts, tuple(e.init(None) for e in experts)


def crystal_with_a_vacancy():
    """107 atoms at rest, a ball of them about the neighbour of the vacancy on expert 0."""
    atoms = bulk("Ar", a=A, cubic=True).repeat(3)
    del atoms[0]
    region = mm.regions.around([1], r_core=2.5, r_blend=3.5)  # no shell of neighbours at its edges
    box = atoms.cell.lengths()
    displacement_fn, shift_fn = space.periodic(box)
    fns = mm.mixture_neighbor_list(
        displacement_fn, box, mm.experts.potentials(*argon()), np.zeros(len(atoms), int), region
    )
    found = simulate.relax(*fns, shift_fn, atoms.positions, force_tolerance=1e-3, n_steps=400)
    assert found.converged
    return fns[1], found.position, found.neighbors, region, float(np.prod(box))


def central(f, x, h):
    """Of fourth order, along every number of a pytree, one after the other;
    a list of them where the function returns several.
    """
    flat, unravel = jax.flatten_util.ravel_pytree(x)
    steps = h * np.maximum(np.abs(flat), 1e-3)

    def along(n):
        def at(k):
            return np.asarray(f(unravel(flat.at[n].add(k * steps[n]))))

        return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * steps[n])

    slopes = np.asarray([along(n) for n in range(flat.size)])  # [numbers, ...]
    return (
        unravel(jnp.asarray(slopes))
        if slopes.ndim == 1
        else [unravel(jnp.asarray(each)) for each in slopes.T]
    )


def agree(found, wanted, rtol):
    """Leaf by leaf, relative to the largest of each."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())

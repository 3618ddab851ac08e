"""The slab, and a run that others continue."""

import jax
import jax.numpy as jnp
import pytest
from pt_slab import pt_slab
from trajectories import run_from

from moe_md import simulate


@pytest.fixture(scope="module")
def slab():
    return pt_slab()


@pytest.fixture(scope="module")
def warm(slab):
    """A run at 500 K that others continue."""
    atoms, neighbor_fn, energy_fn, shift_fn = slab
    start = dict(masses=atoms.get_masses(), temperature_K=900.0, key=jax.random.key(0))
    return run_from(
        neighbor_fn,
        energy_fn,
        simulate.nve(shift_fn, 2.0),
        jnp.asarray(atoms.positions),
        n_steps=100,
        **start,
    )

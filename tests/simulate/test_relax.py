"""Relaxation of positions."""

import jax
import jax.numpy as jnp
import numpy as np
from jax_md import space

import moe_md as mm
from moe_md import simulate


def test_relaxation_takes_no_long_step():
    """Two atoms deep in each other's repulsion come apart by as much as they must, and no farther."""
    displacement_fn, shift_fn = space.periodic(30.0)
    pair = mm.experts.lennard_jones(("Ar",), 8.0)
    params = pair.init(jax.random.key(0))
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        displacement_fn,
        30.0,
        (mm.Potential(pair, params), mm.Potential(pair, params)),
        np.zeros(2, int),
        mm.regions.fixed(np.zeros(2, int)),
    )
    R = 15.0 + jnp.asarray([[0.0, 0.0, 0.0], [0.25, 0.15, 0.05]])
    out = simulate.relax(neighbor_fn, energy_fn, shift_fn, R, n_steps=400, force_tolerance=1e-3)
    apart = float(jnp.linalg.norm(out.position[1] - out.position[0]))
    assert out.converged and 0.9 < apart < 5.0 and out.energy < 0.0


def test_relax(slab):
    atoms, neighbor_fn, energy_fn, shift_fn = slab
    R = jnp.asarray(atoms.positions + np.random.default_rng(1).normal(scale=0.1, size=(len(atoms), 3)))
    out = simulate.relax(neighbor_fn, energy_fn, shift_fn, R, force_tolerance=0.01)
    assert out.converged and 0 < out.n_steps < 500 and out.max_force < 0.01
    neighbors = neighbor_fn.allocate(out.position)
    energy, gradient = jax.value_and_grad(energy_fn)(out.position, neighbors)
    np.testing.assert_allclose(out.energy, energy, rtol=1e-12)
    np.testing.assert_allclose(out.max_force, np.linalg.norm(gradient, axis=1).max(), rtol=1e-6)
    short = simulate.relax(
        neighbor_fn, energy_fn, shift_fn, R, n_steps=7, chunk_steps=5, force_tolerance=0.01
    )
    assert not short.converged and short.n_steps == 7 and short.energy > out.energy
    nothing = simulate.relax(neighbor_fn, energy_fn, shift_fn, out.position, force_tolerance=0.02)
    assert nothing.converged and nothing.n_steps == 0

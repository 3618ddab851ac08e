"""Exponents that are known, and the gradient that they foretell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import space

import moe_md as mm
from moe_md import simulate
from moe_md.gradients.lyapunov import flow, lyapunov_exponent, of_positions

UNSTABLE, MASS = 2.0, 3.0  # eV/Å^2, amu
DT = float(np.float32(4.0 * mm.units.fs)) / mm.units.fs  # fs; jax-md rounds time steps to single precision


class NoList:
    """Neighbours of those who have none."""

    def update(self, position):
        return self


jax.tree_util.register_static(NoList)


def hill(sign):
    nve = simulate.nve(lambda R, dR, **_: R + dR, DT)
    init, step = flow(lambda R, neighbor: 0.5 * sign * UNSTABLE * jnp.sum(R**2), nve)
    state, tangent = jax.jvp(
        lambda R: init(R, jnp.zeros((1, 3)), [MASS], NoList()),
        (jnp.array([[0.1, 0.0, -0.2]]),),
        (jnp.array([[1.0, 2.0, 0.5]]),),
    )
    return step, state, tangent


def test_down_a_hill_by_its_closed_form():
    """Velocity Verlet on -k x^2 / 2 grows by e^mu a step, cosh mu = 1 + (omega dt)^2 / 2."""
    step, state, tangent = hill(-1.0)
    found = lyapunov_exponent(
        step, state, tangent, n_steps=400, every=10, carry=NoList(), size_fn=of_positions
    )
    wanted = np.arccosh(1 + UNSTABLE / MASS * (DT * mm.units.fs) ** 2 / 2)
    np.testing.assert_allclose(found.exponent, wanted, rtol=1e-9)
    assert found.steps[-1] == 400 and found.error < 1e-9


def test_in_a_bowl_nothing_grows():
    step, state, tangent = hill(1.0)
    found = lyapunov_exponent(step, state, tangent, n_steps=4000, carry=NoList())
    assert np.abs(found.log_growth).max() < 3 and abs(found.exponent) < 1e-3


def test_the_logistic_map_by_its_closed_form():
    """At r = 4 it is the tent map in disguise: ln 2 a step."""
    found = lyapunov_exponent(
        lambda x, c: (4.0 * x * (1.0 - x), c), jnp.asarray(0.3), jnp.asarray(1.0), n_steps=20_000
    )
    assert abs(found.exponent - np.log(2)) < 4 * found.error < 0.02


def argon(temperature_K=400.0):
    """32 atoms of hot argon."""
    expert = mm.experts.lennard_jones(("Ar",), 5.0, epsilon=0.0104, sigma=3.4)
    box = 2 * 5.5 * np.ones(3)
    R = 5.5 * np.array([[x, y, z] for x in range(2) for y in range(2) for z in range(2)], float)
    R = np.concatenate(
        [R + 5.5 * np.array(s) for s in ([0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0])]
    )
    displacement_fn, shift_fn = space.periodic(box)
    neighbor_fn, energy_fn = mm.mixture_neighbor_list(
        displacement_fn,
        box,
        (mm.Potential(expert, expert.init(None)),),
        np.zeros(32, int),
        mm.regions.fixed(np.zeros(32, int), 1),
        capacity_multiplier=2.0,
    )
    neighbors = neighbor_fn.allocate(jnp.asarray(R))
    init, step = flow(energy_fn, simulate.nve(shift_fn, 5.0))
    masses = np.full(32, 39.95)
    P = np.random.default_rng(0).normal(size=(32, 3)) * np.sqrt(39.95 * mm.units.kB * 2 * temperature_K)
    state = init(jnp.asarray(R), jnp.asarray(P - P.mean(axis=0)), masses, neighbors)
    tangent = np.random.default_rng(1).normal(size=(32, 3))
    moved = jax.jvp(
        lambda R: init(R, state.momentum, masses, neighbors), (state.position,), (jnp.asarray(tangent),)
    )[1]
    return lambda R: init(R, state.momentum, masses, neighbors), step, state, moved, neighbors


@pytest.mark.thorough
def test_it_is_the_gradient_through_the_trajectory():
    """Without renormalisation, by one jvp of all steps: the same size,
    and central differences of the positions say so.
    """
    at, step, state, moved, neighbors = argon()
    found = lyapunov_exponent(
        step, state, moved, n_steps=600, every=20, carry=neighbors, size_fn=of_positions
    )
    assert not found.carry.did_buffer_overflow

    @jax.jit
    def end(R):
        return jax.lax.fori_loop(0, 600, lambda _, carry: step(*carry), (at(R), neighbors))[0].position

    direction = moved.position / of_positions(moved)
    h = 1e-6
    difference = (end(state.position + h * direction) - end(state.position - h * direction)) / (2 * h)
    difference -= 11.0 / (2 * h) * np.round(difference * 2 * h / 11.0)  # through the box
    np.testing.assert_allclose(np.log(np.linalg.norm(difference)), found.log_growth[-1], rtol=1e-4)
    assert found.log_growth[-1] > 2 and found.exponent > 0


def test_bad_arguments():
    step, state, tangent = hill(1.0)
    for message, change in (
        ("n_steps must be a multiple of every", dict(n_steps=15)),
        ("skip in", dict(n_steps=10, skip=1.0)),
        ("every must be a whole number, at least 1", dict(n_steps=10, every=0)),
        (
            "tangent must have a positive, finite size, got 0",
            dict(n_steps=10, tangent=jax.tree.map(jnp.zeros_like, tangent)),
        ),
    ):
        with pytest.raises(ValueError, match=message):
            lyapunov_exponent(step, state, **{"tangent": tangent, "carry": NoList(), **change})
    with pytest.raises(ValueError, match="step_fn must keep state and tangent finite"):
        lyapunov_exponent(lambda x, c: (x * 1e300, c), jnp.asarray(1.0), jnp.asarray(1.0), n_steps=20)
    with pytest.raises(ValueError, match="integrator must be from nve"):
        flow(None, simulate.langevin(None, 1.0, 100.0, 0.01))

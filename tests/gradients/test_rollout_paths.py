"""A rollout takes the path of `run`; lists that do not hold give NaN, what does not fit is refused."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollouts import KEY
from trajectories import crystal

import moe_md as mm
from moe_md import gradients, simulate


def test_the_same_path_as_run():
    c = crystal()
    for integrator in (
        simulate.nve(c.shift_fn, 2.0),
        simulate.langevin(c.shift_fn, 2.0, 100.0, 0.01),
        simulate.nose_hoover(c.shift_fn, 2.0, 100.0),
    ):
        fns = (c.neighbor_fn, c.energy_fn)
        ran = simulate.run(
            *fns,
            integrator,
            simulate.start(
                integrator, c.position, masses=c.mass, velocity=c.momentum / c.mass[:, None], key=KEY
            ),
            n_steps=20,
        )
        begun = simulate.run(
            *fns,
            integrator,
            simulate.start(
                integrator, c.position, masses=c.mass, velocity=c.momentum / c.mass[:, None], key=KEY
            ),
            n_steps=0,
        )
        out = jax.jit(lambda s, n, by=integrator: gradients.rollout(c.energy_fn, by, s, n, 20))(
            begun.state, begun.neighbors
        )
        np.testing.assert_allclose(out.state.position, ran.state.position, atol=1e-10)
        np.testing.assert_allclose(out.state.momentum, ran.state.dynamics.momentum, atol=1e-10)
        np.testing.assert_allclose(out.energy, ran.log.potential[-1], rtol=1e-12)
        assert gradients.check_rollout(out) is out


def test_lists_that_do_not_hold_turn_everything_into_nan():
    c = crystal(temperature_K=3000.0, dr_threshold=0.1)
    integrator = simulate.nve(c.shift_fn, 2.0)

    def value(params, neighbors, update_every):
        out = gradients.rollout(
            c.energy_fn,
            integrator,
            c.start(integrator),
            neighbors,
            20,
            params=params,
            update_every=update_every,
        )
        return out.energy + jnp.sum(out.state.position), out

    for update_every, too_few in ((None, False), (20, False), (1, True)):
        neighbors = c.allocate()
        if too_few:  # slots for the neighbours of a perfect crystal, less one
            rows = neighbors.list.idx[0]
            neighbors = replace(
                neighbors,
                list=replace(neighbors.list, idx=(rows[:, :11],), reference_position=c.position + 1.0),
            )
        (found, out), gradient = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=2)(
            c.params, neighbors, update_every
        )
        assert (
            bool(out.overflow)
            and np.isnan(found)
            and np.isnan(out.state.position).all()
            and np.isnan(out.state.momentum).all()
        )
        assert all(np.isnan(x) for x in jax.tree.leaves(gradient))
        with pytest.raises(RuntimeError, match="neighbour lists must hold"):
            gradients.check_rollout(out)
    # Made anew often enough they hold.
    (found, out), gradient = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=2)(
        c.params, c.allocate(extra_capacity=8), 1
    )
    assert not out.overflow and np.isfinite(found) and all(np.isfinite(x) for x in jax.tree.leaves(gradient))
    with pytest.raises(FloatingPointError, match="shorter timestep_fs"):
        gradients.check_rollout(out._replace(energy=jnp.nan))


def test_what_does_not_fit_is_refused():
    c = crystal()
    nve, neighbors = simulate.nve(c.shift_fn, 2.0), c.allocate()
    good = dict(energy_fn=c.energy_fn, integrator=nve, state=c.start(nve), neighbors=neighbors, n_steps=12)
    npt = simulate.npt(c.shift_fn, 2.0, 100.0)
    inner = SimpleNamespace(inner_energy=c.energy_fn, inner_outer_split=c.energy_fn)
    bad = [
        ("region must have smooth gates", dict(region=mm.regions.reassigned(c.region))),
        (
            "region must have smooth gates",
            dict(region=mm.regions.union(c.region, mm.regions.reassigned(c.region))),
        ),
        ("integrator must keep the box fixed", dict(integrator=npt)),
        (
            "integrator must have outer_every = 1",
            dict(integrator=simulate.respa(nve, inner, 2)),
        ),
        ("integrator must be from", dict(integrator="nve")),
        (
            "integrator must have a friction for each atom",
            dict(
                integrator=simulate.langevin(
                    c.shift_fn, 2.0, 100.0, friction_fn=simulate.expert_friction(c.neighbor_fn, (0.0, 0.01))
                )
            ),
        ),
        (
            "state must be a NVTLangevinState",
            dict(integrator=simulate.langevin(c.shift_fn, 2.0, 100.0, 0.01)),
        ),
        ("state must be the integrator's", dict(state=c.position)),
        ("neighbors must be", dict(neighbors=None)),
        ("energy_fn must be", dict(energy_fn=None)),
        ("n_steps must be", dict(n_steps=-1)),
        ("n_steps must be", dict(n_steps=2.0)),
        ("n_steps must be a multiple of update_every = 5", dict(update_every=5)),
        ("n_steps must be a multiple of observe_every = 5", dict(observe_every=5)),
        ("observe_every and update_every must be multiples", dict(observe_every=2, update_every=3)),
        ("update_every must be", dict(update_every=0)),
        ("observe must be", dict(observe=1)),
        ("checkpoint must be None", dict(checkpoint="log")),
        ("checkpoint must be at least", dict(checkpoint=2)),
        ("checkpoint must be a whole number", dict(checkpoint=2.5)),
    ]
    for message, change in bad:
        with pytest.raises(ValueError, match=message):
            gradients.rollout(**{**good, **change})


@pytest.mark.thorough
def test_no_steps_and_many_at_once():
    c = crystal()
    integrator = simulate.langevin(c.shift_fn, 2.0, 100.0, 0.01)
    neighbors = c.allocate()
    still = gradients.rollout(c.energy_fn, integrator, c.start(integrator, key=KEY), neighbors, 0)
    np.testing.assert_array_equal(still.state.position, c.position)
    np.testing.assert_allclose(still.energy, c.energy_fn(c.position, neighbors))

    def energy(key):
        return gradients.rollout(
            c.energy_fn, integrator, c.start(integrator, key=key), neighbors, 5, update_every=None
        ).energy

    keys = jax.random.split(KEY, 3)
    np.testing.assert_allclose(jax.vmap(energy)(keys), [energy(k) for k in keys], rtol=1e-12)

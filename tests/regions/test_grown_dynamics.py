"""Dynamics with regions that grow from another region, and regions that select no atom."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crystal_with_hole import BLEND, CORE, FCC, FEW, HOLE, SHELL, mixture, shaken, shift_fn
from depths import short

from moe_md import simulate
from moe_md.regions import Grown, around, coordination, fixed, grown, slab, sphere, union


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WithoutGradient(Grown):
    """The negative control: the gradient of the gate is left out of the force."""

    def gate(self, position, displacement_fn, neighbors=None):
        return super().gate(jax.lax.stop_gradient(position), displacement_fn, neighbors)


class Watch:
    """A reporter that stores the centres of the region's list."""

    def __init__(self):
        self.centers = set()

    def __call__(self, frame):
        del frame

    def on_state(self, state, neighbors):
        listed = np.asarray(neighbors.requested.list.centers)
        self.centers.add(tuple(sorted(set(listed.tolist()) - {len(HOLE)})))


def nve(region, timestep_fs, watch, **kwargs):
    """0.48 ps of a shaken crystal with a hole."""
    integrator, n_steps = simulate.nve(shift_fn, timestep_fs), round(480 / timestep_fs)
    key, masses = jax.random.key(1), np.full(len(HOLE), 39.9)
    start = simulate.start(integrator, shaken(1, 0.1), masses=masses, temperature_K=50.0, key=key)
    fns = mixture(region, **kwargs)
    return simulate.run(
        *fns, integrator, start, n_steps=n_steps, chunk_steps=n_steps // 15, reporters=[watch]
    )


def test_energy_is_conserved_while_atoms_come_in():
    """NVE of a hole: the error of the energy is of second order in the time step; lists heal."""
    spread, drift = {}, {}
    for timestep, capacity in ((8.0, 1.0), (4.0, 3.0)):
        watch = Watch()
        log = nve(grown(FEW, CORE, BLEND), timestep, watch, capacity_multiplier=capacity).log
        spread[timestep] = log.total.std()
        drift[timestep] = abs(np.polyfit(log.time_ps, log.total, 1)[0]) * log.time_ps[-1]
        assert len(watch.centers) > 3 and log.momentum.max() < 1e-10
        assert (log.n_reallocations[-1] >= 1) == (capacity == 1.0)
    assert 3.3 < spread[8.0] / spread[4.0] < 4.7 and drift[8.0] < 2 * spread[8.0]
    without = nve(
        WithoutGradient(FEW, jnp.asarray(CORE), jnp.asarray(BLEND)), 8.0, Watch(), capacity_multiplier=3.0
    )
    assert without.log.total.std() > 20 * spread[8.0]


NOTHING = {
    "few neighbours": coordination(2.0, 3.0, **SHELL),
    "grown": grown(coordination(2.0, 3.0, **SHELL), CORE, BLEND),
    "grown twice": grown(grown(coordination(2.0, 3.0, **SHELL), 1.0, 1.0), CORE, BLEND),
    "slab": slab(HOLE, lower=99.0, missing="cheap"),
    "sphere": sphere(HOLE, [99.0, 0.0, 0.0], 1.0, missing="cheap"),
    "around": around([], CORE, BLEND, missing="cheap"),
    "union": union(
        around([], CORE, BLEND, missing="cheap"), grown(around([], 1.0, 1.0, missing="cheap"), 1, 1)
    ),
}


@pytest.mark.parametrize("name", short(NOTHING, thorough=("grown twice", "few neighbours", "sphere")))
def test_a_region_may_select_nothing(name):
    """The cheap expert then owns all atoms, also under dynamics."""
    neighbor_fn, energy_fn = mixture(NOTHING[name])
    R = shaken()
    nbrs = neighbor_fn.allocate(R)
    cheap_fns = mixture(fixed(np.ones(len(HOLE), int)))
    expected, its = jax.jit(jax.value_and_grad(cheap_fns[1]))(R, cheap_fns[0].allocate(R))
    found, slope = jax.jit(jax.value_and_grad(energy_fn))(R, nbrs)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    np.testing.assert_allclose(slope, its, atol=1e-12)
    after = jax.jit(lambda R, nbrs: nbrs.update(R))(shaken(1, 0.3), nbrs)
    assert not after.did_buffer_overflow and not np.isnan(energy_fn(shaken(1, 0.3), after))
    assert not nbrs.stale(R)


@pytest.mark.thorough
def test_the_first_atom_that_comes_in_is_found():
    """A crystal without a hole loses atoms from their sites: lists that held none are allocated again."""
    region = grown(coordination(9.0, 10.5, **SHELL), CORE, BLEND)
    fns = mixture(region, len(FCC), capacity_multiplier=2.0)
    R = jnp.asarray(FCC)
    nbrs = fns[0].allocate(R)
    assert nbrs.centers[0].shape == (0,) and nbrs.requested.list.centers.shape == (1,)
    integrator = simulate.nve(shift_fn, 4.0)
    velocity = jnp.zeros_like(R).at[20].set(jnp.array([0.0, 0.5, 0.3]))
    start = simulate.start(integrator, R, masses=np.full(len(R), 39.9), velocity=velocity)
    out = simulate.run(*fns, integrator, start, n_steps=50, chunk_steps=25, neighbors=nbrs)
    assert out.log.n_reallocations[-1] >= 1 and np.isfinite(out.log.total).all()
    assert fns[0].gate(out.state.position, out.neighbors)[:, 0].max() > 0.1

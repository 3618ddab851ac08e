"""Lists of a mixture: slots, halos, what they must hold, and their use with jax-md."""

from functools import partial

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import OWNERS, POSITION, close, randomized
from depths import short
from jax_md import minimize, simulate, space
from small_mixtures import (
    LJ,
    PAIR,
    PAIR_PARAMS,
    SHORT,
    SPECTRUM,
    all_pairs,
    build,
    crystal,
    gradient_of,
    shift_fn,
)

import moe_md as mm
from moe_md.mixture import mixture_neighbor_list
from moe_md.regions import fixed


def test_a_shorter_cutoff_has_fewer_slots():
    R, edges, species, owner = crystal()
    pair = (SPECTRUM, SHORT)
    neighbor_fn, _ = mixture_neighbor_list(
        space.periodic(edges)[0],
        edges,
        mm.experts.potentials(pair, [randomized(e) for e in pair]),
        species,
        fixed(owner),
        dr_threshold=0.2,
    )
    nbrs = neighbor_fn.allocate(jnp.asarray(R % edges))
    long, short = (idx.shape[1] for idx in nbrs.list.idx)
    assert 2 * short < long == nbrs.idx.shape[1]


@pytest.fixture(scope="module")
def chain():
    """Forty atoms along x, a message-passing expert of two or three layers on ten of them."""
    rng = np.random.default_rng(2)
    box = np.array([60.0, 9.2, 9.2])
    R = jnp.asarray(
        np.array([1.5, 4.6, 4.6]) * np.outer(np.arange(40), [1, 0, 0]) + rng.uniform(0.0, 1.2, (40, 3))
    )
    D, _ = space.periodic(box)
    return R, box, D, np.arange(40) % 2, np.where((np.arange(40) >= 12) & (np.arange(40) < 22), 0, 1)


@pytest.mark.parametrize("num_layers", short([1, 2, 3], only=[2]))
def test_a_halo_gives_the_energies_of_the_full_evaluation(chain, num_layers):
    """Owned atoms' energies and all forces, from owned rows and their halo, against rows for all atoms."""
    R, box, D, species, owner = chain
    expert = contract.small_nequip(num_layers)
    pair, params = (expert, SHORT), [randomized(expert), randomized(SHORT)]
    make = partial(
        mixture_neighbor_list, D, box, mm.experts.potentials(pair, params), species, per_particle=True
    )

    def evaluate(region, weights):
        neighbor_fn, energies_fn = make(region=region)
        nbrs = neighbor_fn.allocate(R)
        compute = jax.jit(jax.value_and_grad(lambda R, nbrs: jnp.sum(weights * energies_fn(R, nbrs))))
        return compute(R, nbrs), nbrs

    weights = jnp.asarray(owner == 0, float)
    (energy, gradient), nbrs = evaluate(fixed(owner), weights)
    (full_energy, full_gradient), full = evaluate(fixed(np.zeros(40, int)), weights)
    close(energy, full_energy, 1e-12)
    close(gradient, full_gradient, 1e-11)
    n_halo = int(jnp.sum(nbrs.halo[0] < 40))
    assert int(jnp.sum(full.halo[0] < 40)) == 0 and (n_halo > 0) == (num_layers > 1)
    assert n_halo + 10 < 40
    # Atoms beyond the halo feel nothing of the owned ones.
    assert np.abs(gradient).max(axis=1).min() == 0.0


def test_a_halo_that_outgrows_its_rows_is_flagged(chain):
    R, box, D, species, owner = chain
    expert = contract.small_nequip(2)
    neighbor_fn, _ = mixture_neighbor_list(
        D,
        box,
        (mm.Potential(expert, randomized(expert)), mm.Potential(SHORT, randomized(SHORT))),
        species,
        fixed(owner),
        capacity_multiplier=1.0,
    )
    nbrs = neighbor_fn.allocate(R, 30)
    assert not nbrs.did_buffer_overflow
    denser = R * jnp.array([[0.5, 1.0, 1.0]]) + jnp.array([[8.0, 0.0, 0.0]])
    dense = jnp.where(jnp.asarray(owner == 0)[:, None], R, denser)
    moved = neighbor_fn.update(dense, nbrs)
    assert moved.error & 256


# What the list must hold.


def test_a_region_that_the_list_does_not_hold_is_never_silent():
    _, energy_fn, nbrs = build(PAIR, PAIR_PARAMS, fixed([0, 0, 1, 1, 1, 1]))
    R = jnp.asarray(POSITION)
    assert np.isfinite(energy_fn(R, nbrs))
    for other in ([1, 1, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1], [1, 0, 1, 1, 1, 1]):
        assert np.isnan(energy_fn(R, nbrs, region=fixed(other)))
    # The forces too: zero would be the worst answer.
    assert np.isnan(gradient_of(energy_fn)(R, nbrs, region=fixed([1, 1, 0, 0, 1, 1]))[1]).all()


def test_an_expert_without_rows_is_missed():
    _, energy_fn, nbrs = build(PAIR, PAIR_PARAMS, fixed([1] * 6))
    assert np.isnan(energy_fn(jnp.asarray(POSITION), nbrs, region=fixed([0] + [1] * 5)))


def test_an_expert_given_too_many_atoms_is_flagged_and_reallocation_heals():
    neighbor_fn, energy_fn, nbrs = build(PAIR, PAIR_PARAMS, fixed([0, 0, 1, 1, 1, 1]))
    R, grown = jnp.asarray(POSITION), fixed([0, 0, 0, 1, 1, 1])
    assert not nbrs.did_buffer_overflow and nbrs.error == 0
    updated = neighbor_fn.update(R, nbrs, region=grown)
    assert updated.did_buffer_overflow and updated.error == 256
    assert np.isnan(energy_fn(R, updated, region=grown))
    # The flag stays, so that a host loop that looks later still sees it.
    assert neighbor_fn.update(R, updated).did_buffer_overflow
    healed = neighbor_fn.allocate(R, region=grown)
    assert not healed.did_buffer_overflow
    assert [c.tolist() for c in healed.centers] == [[0, 1, 2], [3, 4, 5]]
    assert np.isfinite(energy_fn(R, healed, region=grown))


def test_a_region_that_moves_within_capacity_needs_only_an_update():
    _, energy_fn, nbrs = build(PAIR, PAIR_PARAMS, fixed([0, 0, 1, 1, 1, 1]), per_particle=True)
    R, other = jnp.asarray(POSITION), np.array([1, 1, 0, 1, 0, 1])
    updated = nbrs.update(R, region=fixed(other))
    assert not updated.did_buffer_overflow
    expected = np.where(other == 0, all_pairs(0)[0], all_pairs(1)[0])
    close(energy_fn(R, updated, region=fixed(other)), expected, 1e-13)


def test_overflow_of_the_list_is_flagged():
    spread = POSITION * 2.5
    params = [randomized(LJ)] * 2
    neighbor_fn, _, nbrs = build((LJ, LJ), params, fixed(OWNERS), position=spread, capacity_multiplier=1.0)
    assert not nbrs.did_buffer_overflow
    crowded = neighbor_fn.update(jnp.asarray(POSITION * 0.6), nbrs)
    assert crowded.did_buffer_overflow and crowded.error != 0 and not crowded.error & 256


def test_neighbors_are_a_pytree():
    _, energy_fn, nbrs = build((LJ, SHORT), [randomized(LJ)] * 2, fixed(OWNERS))
    leaves, tree = jax.tree.flatten(nbrs)
    again = jax.tree.unflatten(tree, [jnp.asarray(x) for x in leaves])
    R = jnp.asarray(POSITION)
    assert energy_fn(R, again) == energy_fn(R, nbrs)


# With jax-md.


class Compilations:
    """Counts programs lowered while `on`; jax keeps listeners for good, so there is one."""

    def __init__(self):
        self.count, self.on = 0, False
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event, duration, **kwargs):
        self.count += self.on and event == "/jax/core/compile/jaxpr_to_mlir_module_duration"


COMPILATIONS = Compilations()


def test_nothing_compiles_after_warm_up():
    neighbor_fn, energy_fn, nbrs = build((LJ, SHORT), [randomized(LJ)] * 2, fixed(OWNERS))

    @jax.jit
    def step(R, nbrs, region):
        nbrs = neighbor_fn.update(R, nbrs, region=region)
        return nbrs, *jax.value_and_grad(energy_fn)(R, nbrs, region=region)

    rng = np.random.default_rng(0)
    positions = [jnp.asarray(POSITION + 0.02 * rng.standard_normal(POSITION.shape)) for _ in range(6)]
    regions = [fixed(rng.permutation(OWNERS)) for _ in range(6)]
    COMPILATIONS.count, COMPILATIONS.on = 0, True
    try:
        nbrs, energy, _ = step(positions[0], nbrs, regions[0])
        _ = nbrs.did_buffer_overflow
        assert COMPILATIONS.count > 0
        COMPILATIONS.count = 0
        for R, region in zip(positions, regions):
            nbrs, energy, gradient = step(R, nbrs, region)
            jax.block_until_ready((nbrs, energy, gradient))
        assert COMPILATIONS.count == 0
    finally:
        COMPILATIONS.on = False
    assert not nbrs.did_buffer_overflow


def test_drops_into_jax_md():
    """FIRE, NVE and Langevin take the energy as it is, with `neighbor=`."""
    _, energy_fn, nbrs = build((LJ, SHORT), [randomized(LJ)] * 2, fixed(OWNERS), extra=4)
    R = jnp.asarray(POSITION)

    def run(init, apply, state, steps):
        @jax.jit
        def step(i, carry):
            state, nbrs = carry
            nbrs = nbrs.update(state.position)
            return apply(state, neighbor=nbrs), nbrs

        return jax.lax.fori_loop(0, steps, step, (state, nbrs))

    init, apply = minimize.fire_descent(energy_fn, shift_fn, dt_start=0.02, dt_max=0.05)
    state, held = run(init, apply, init(R, neighbor=nbrs), 300)
    assert not held.did_buffer_overflow
    assert energy_fn(state.position, held) < energy_fn(R, nbrs) - 0.1
    relaxed = state.position
    init, apply = simulate.nve(energy_fn, shift_fn, dt=0.02)
    state = init(jax.random.key(0), relaxed, kT=0.02, mass=10.0, neighbor=nbrs.update(relaxed))

    def total(state, nbrs):
        return energy_fn(state.position, nbrs) + jnp.sum(state.momentum**2) / 20.0

    before, momentum = total(state, nbrs.update(relaxed)), jnp.sum(state.momentum, axis=0)
    state, held = run(init, apply, state, 400)
    assert not held.did_buffer_overflow
    assert np.abs(state.position - relaxed).max() > 0.05
    np.testing.assert_allclose(total(state, held.update(state.position)), before, atol=1e-4)
    np.testing.assert_allclose(jnp.sum(state.momentum, axis=0), momentum, atol=1e-12)
    init, apply = simulate.nvt_langevin(energy_fn, shift_fn, dt=0.02, kT=0.02)
    state, held = run(
        init, apply, init(jax.random.key(1), relaxed, mass=10.0, neighbor=nbrs.update(relaxed)), 50
    )
    assert np.isfinite(state.position).all() and np.abs(state.position - relaxed).max() > 1e-3

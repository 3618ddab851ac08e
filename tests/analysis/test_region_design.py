"""Forces of stored frames agree with the mixture; gradients of error and cost; a region is optimised."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ase.build import bulk
from contract import randomized, small_allegro, small_power_spectrum
from jax_md import space

import moe_md as mm
from moe_md.analysis.region_design import (
    center_shares,
    expected_cost,
    force_error,
    mixed_forces,
    stored_frames,
)
from moe_md.data.reading import frame_from_atoms
from moe_md.regions import Around

SEEDS = [0, 20]


@pytest.fixture(scope="module")
def system():
    """Two rattled crystals of two species under two networks."""
    experts = (small_allegro(l_max=1, num_layers=1), small_power_spectrum(l_max=1))
    params = tuple(randomized(e, n) for n, e in enumerate(experts))
    atoms = bulk("Pt", a=3.9, cubic=True).repeat(2)
    atoms.symbols[::3] = "C"
    frames = []
    for seed in range(2):
        rattled = atoms.copy()
        rattled.rattle(0.1, seed=seed)
        frames.append(frame_from_atoms(rattled))
    box = atoms.cell.lengths()
    return experts, params, frames, box, space.periodic(box)[0], stored_frames(experts, params, frames)


def around(radii):
    return Around(jnp.asarray(SEEDS), radii[0], radii[1])


def test_forces_agree_with_the_mixture(system):
    experts, params, frames, box, displacement_fn, stored = system
    species = np.array([experts[0].species.index(s) for s in frames[0].symbols])
    for region in (mm.regions.around(SEEDS, 1.5, 1.8), mm.regions.fixed(np.zeros(32, int))):
        neighbor_fn, energy_fn = mm.mixture_neighbor_list(
            displacement_fn, box, mm.experts.potentials(experts, params), species, region
        )
        gradient = jax.jit(jax.grad(energy_fn))  # without jit each operation is compiled separately
        expected = [-gradient(R, neighbor_fn.allocate(R)) for R in stored.position]
        forces = jax.jit(mixed_forces, static_argnums=1)(stored, displacement_fn, region)
        np.testing.assert_allclose(forces, np.stack(expected), atol=1e-11)
    np.testing.assert_allclose(stored.force, np.stack(expected), atol=1e-11)
    assert force_error(stored, displacement_fn, region) < 1e-12


def test_gradients_of_error_and_cost_agree_with_finite_differences(system):
    *_, displacement_fn, stored = system
    at = jnp.array([1.5, 1.8])
    for fn in (
        lambda x: force_error(stored, displacement_fn, around(x)),
        lambda x: expected_cost(stored, displacement_fn, around(x), ratio=8.0),
    ):
        h = 1e-5
        expected = [(fn(at + h * e) - fn(at - h * e)) / (2 * h) for e in np.eye(2)]
        np.testing.assert_allclose(jax.grad(fn)(at), expected, rtol=1e-6)


def test_cost_of_static_and_dynamic_regions(system):
    *_, displacement_fn, stored = system
    all_expensive, all_cheap = (mm.regions.fixed(np.full(32, e)) for e in (0, 1))
    for region, cost, share in ((all_expensive, 1.0, [1, 0]), (all_cheap, 1 / 8, [0, 1])):
        np.testing.assert_allclose(expected_cost(stored, displacement_fn, region, ratio=8.0), cost, rtol=2e-3)
        np.testing.assert_array_equal(center_shares(stored, displacement_fn, region), share)
    shared = mm.regions.around(SEEDS, 1.5, 1.8)
    expensive, cheap = center_shares(stored, displacement_fn, shared)
    assert expensive + cheap > 1 and expensive < 1
    np.testing.assert_allclose(
        expected_cost(stored, displacement_fn, shared, ratio=8.0, half_cost_gate=1e-12),
        expensive + cheap / 8,
        rtol=1e-3,
    )


def test_a_region_is_optimised(system):
    """Minimise error plus price times cost from two starts; a higher price gives a smaller region."""
    *_, displacement_fn, stored = system
    scale = force_error(stored, displacement_fn, around(jnp.array([0.5, 0.5])))

    def loss(x, price):
        region = around(jnp.array([jax.nn.softplus(x[0]), 0.3 + jax.nn.softplus(x[1])]))
        return force_error(stored, displacement_fn, region) / scale + price * expected_cost(
            stored, displacement_fn, region, ratio=8.0
        )

    optimiser = optax.adam(0.05)

    @jax.jit
    def descend(x, price):
        def step(carry, _):
            x, state = carry
            value, slope = jax.value_and_grad(loss)(x, price)
            updates, state = optimiser.update(slope, state)
            return (optax.apply_updates(x, updates), state), value

        (x, _), values = jax.lax.scan(step, (x, optimiser.init(x)), length=60)
        return x, values

    costs = []
    for price in (0.1, 10.0):
        for start in ([1.0, 1.0], [2.0, 0.5]):
            x, values = descend(jnp.array(start), price)
            assert values[-1] < values[0] and np.isfinite(x).all()
        costs.append(float(expected_cost(stored, displacement_fn, around(jax.nn.softplus(x)), ratio=8.0)))
    assert costs[1] < costs[0]


def test_bad_arguments(system):
    experts, params, frames, _, displacement_fn, stored = system
    with pytest.raises(ValueError, match="experts must be two, the expensive one first, got 1"):
        stored_frames(experts[:1], params[:1], frames)
    with pytest.raises(ValueError, match="frames must hold the same atoms"):
        stored_frames(experts, params, [])
    with pytest.raises(ValueError, match="ratio must be positive, got 0"):
        expected_cost(stored, displacement_fn, around([1.0, 1.0]), ratio=0.0)

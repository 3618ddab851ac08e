"""Walked back in time: the same gradients, every bit of the start, and no memory for the way."""

from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ase.build import bulk
from jax_md import space
from trajectories import crystal

import moe_md as mm
from moe_md import gradients, simulate, units
from moe_md.gradients.reverse_pass import reverse_step

# jax-md rounds the time step to single precision: take one that is.
TIMESTEP_FS = float(np.float32(2.0 * units.fs)) / units.fs


def closeness(x, y, rtol):
    """Trees of arrays, by the largest number of each."""
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        if a.dtype != jax.dtypes.float0:
            assert np.abs(b).max() > 1e-8
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def loss(roll, c, inputs, neighbors, n_steps, **options):
    """Of the end, and of velocities, forces and energies on the way; all that goes in is differentiated."""
    params, region, position, momentum, mass, integrator, scale = inputs
    state = integrator.init(position, momentum, mass, None, None)

    edges = jnp.reshape(c.box, (1, -1))

    def observe(s):
        # Closes over something that is differentiated.
        return {
            "sine": scale * jnp.sum(s.velocity * jnp.sin(2 * np.pi / edges * s.position)),
            "energy": s.energy**2,
            "force": jnp.sum(s.force**2),
        }

    out = roll(
        c.energy_fn,
        integrator,
        state,
        neighbors,
        n_steps,
        params=params,
        region=region,
        observe=observe,
        **options,
    )
    seen = jax.tree.map(jnp.sum, out.observed)
    end = (
        jnp.sum(jnp.sin(2 * np.pi / edges * out.state.position) * jnp.arange(3.0)[None])
        + 0.1 * jnp.sum(out.state.velocity[::3])
        + 0.01 * jnp.sum(out.state.force[::2])
    )
    return end + out.energy + seen["sine"] + 1e-4 * seen["energy"] + 0.1 * seen["force"]


@pytest.mark.parametrize(
    "region_name, options",
    [
        ("moving", dict(update_every=10, observe_every=5)),
        pytest.param(
            "static", dict(update_every=20, observe_every=20, summed=True), marks=pytest.mark.thorough
        ),
    ],
)
def test_gradients_are_those_of_plain_reverse_mode(region_name, options):
    c = crystal(region_name)
    integrator = simulate.nve(c.shift_fn, TIMESTEP_FS)
    inputs = (c.params, c.region, c.position, c.momentum, c.mass, integrator, jnp.asarray(1.3))
    neighbors = c.allocate()
    found, plain = (
        jax.jit(
            jax.value_and_grad(
                lambda x, roll=roll: loss(roll, c, x, neighbors, 60, **options), allow_int=True
            )
        )
        for roll in (gradients.reversible_rollout, gradients.rollout)
    )
    (a, of_a), (b, of_b) = found(inputs), plain(inputs)
    np.testing.assert_allclose(a, b, rtol=1e-9)
    closeness(of_a[:5] + of_a[6:], of_b[:5] + of_b[6:], 1e-6)
    # jax-md's derivative with respect to the time step has passed single precision.
    closeness(of_a[5].timestep_fs, of_b[5].timestep_fs, 1e-6)


@pytest.mark.thorough
def test_without_lists_or_observations():
    """Lists held throughout; gradients of the end alone; the State of a run serves."""
    c = crystal()
    integrator = simulate.nve(c.shift_fn, TIMESTEP_FS)
    begun = simulate.run(
        c.neighbor_fn,
        c.energy_fn,
        integrator,
        simulate.start(integrator, c.position, masses=c.mass, velocity=c.momentum / c.mass[:, None]),
        n_steps=0,
    )

    def end(roll, params):
        out = roll(
            c.energy_fn, integrator, begun.state, begun.neighbors, 20, params=params, update_every=None
        )
        return out.energy + jnp.sum(out.state.velocity[::2]), out.observed

    found, plain = (
        jax.jit(jax.value_and_grad(partial(end, roll), has_aux=True))(c.params)
        for roll in (gradients.reversible_rollout, gradients.rollout)
    )
    (a, seen), of_a = found
    (b, _), of_b = plain
    assert seen is None
    np.testing.assert_allclose(a, b, rtol=1e-10)
    closeness(of_a, of_b, 1e-6)


def there_and_back(energy_fn, params, region, neighbors, integrator, n_steps, state, **options):
    trip = jax.jit(
        lambda s: gradients.round_trip(
            energy_fn, integrator, s, neighbors, n_steps, params=params, region=region, **options
        )
    )(state)
    assert not trip.overflow
    for ours, theirs in zip(trip.returned, trip.started, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert trip.same
    # It did go somewhere.
    assert np.abs(trip.position - state.position).max() > 0.05 and np.isfinite(trip.position).all()
    return trip


@pytest.mark.parametrize("n_steps", [1000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_every_bit_of_the_start_comes_back(n_steps):
    c = crystal(temperature_K=600.0)
    integrator = simulate.nve(c.shift_fn, 2.0)
    there_and_back(
        c.energy_fn,
        c.params,
        c.region,
        c.allocate(extra_capacity=6),
        integrator,
        n_steps,
        c.start(integrator),
    )


@pytest.mark.thorough
@pytest.mark.parametrize("n_steps", [20, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_bit_comes_back_under_networks(n_steps):
    """The shipped pair, a ball that follows an atom."""
    model = mm.load("ptco-small")
    atoms = bulk("Pt", cubic=True, a=4.02).repeat(3)
    box = np.diag(atoms.cell).copy()
    displacement_fn, shift_fn = space.periodic(jnp.asarray(box))
    region = mm.regions.around([0], 1.5, 2.0)
    fns = mm.mixture_neighbor_list(
        displacement_fn,
        box,
        model.potentials,
        np.zeros(len(atoms), int),
        region,
        capacity_multiplier=2.0,
    )
    integrator, mass = simulate.nve(shift_fn, 2.0), jnp.asarray(atoms.get_masses())
    momentum = np.random.default_rng(0).normal(size=(len(atoms), 3)) * np.sqrt(
        np.asarray(mass)[:, None] * units.kB * 600.0
    )
    state = integrator.init(
        jnp.asarray(atoms.positions), jnp.asarray(momentum - momentum.mean(axis=0)), mass, None, None
    )
    neighbors = fns[0].allocate(state.position, extra_capacity=8)
    there_and_back(fns[1], model.params, region, neighbors, integrator, n_steps, state)


def gradient_memory(c, integrator, neighbors, n_steps, **options) -> int:
    def value(params, momentum):
        out = gradients.reversible_rollout(
            c.energy_fn,
            integrator,
            c.start(integrator, momentum=momentum),
            neighbors,
            n_steps,
            params=params,
            **options,
        )
        return out.energy + jnp.sum(out.state.velocity**2)

    return (
        jax.jit(jax.grad(value, argnums=(0, 1)))
        .lower(c.params, c.momentum)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )


@pytest.mark.thorough
def test_memory_does_not_grow():
    c = crystal()
    integrator, neighbors = simulate.nve(c.shift_fn, 2.0), c.allocate()
    short, long = (gradient_memory(c, integrator, neighbors, n, update_every=10) for n in (100, 100_000))
    snapshots = {n: n // 10 * c.position.size * 8 for n in (100, 100_000)}
    assert long - snapshots[100_000] < 1.1 * (short - snapshots[100])
    assert gradient_memory(c, integrator, neighbors, 100_000, update_every=None) < 1.1 * gradient_memory(
        c, integrator, neighbors, 100, update_every=None
    )


@pytest.mark.thorough
def test_single_precision_energies():
    """Integers of 64 bits, energies of 32."""
    c = crystal()
    integrator = simulate.nve(space.periodic(jnp.asarray(c.box, jnp.float32))[1], 2.0)
    position, momentum, mass = (x.astype(jnp.float32) for x in (c.position, c.momentum, c.mass))
    state = integrator.init(position, momentum, mass, None, None)
    neighbors = c.neighbor_fn.allocate(position)

    def value(params, roll=gradients.reversible_rollout):
        out = roll(c.energy_fn, integrator, state, neighbors, 20, params=params, update_every=10)
        return out.energy + jnp.sum(out.state.velocity[::2]), out

    (found, out), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(c.params)
    assert out.state.position.dtype == out.energy.dtype == jnp.float32
    (plain, _), expected = jax.jit(jax.value_and_grad(partial(value, roll=gradients.rollout), has_aux=True))(
        c.params
    )
    np.testing.assert_allclose(found, plain, rtol=1e-5)
    closeness(gradient, expected, 1e-3)


def test_what_goes_wrong_is_nan(monkeypatch):
    c = crystal(temperature_K=3000.0, dr_threshold=0.1)
    integrator = simulate.nve(c.shift_fn, 2.0)
    state, neighbors = c.start(integrator), c.allocate(extra_capacity=8)

    def value(params, update_every):
        out = gradients.reversible_rollout(
            c.energy_fn, integrator, state, neighbors, 20, params=params, update_every=update_every
        )
        return out.energy, out

    def grad(params, update_every):
        return jax.jit(jax.value_and_grad(partial(value, update_every=update_every), has_aux=True))(params)

    (found, out), gradient = grad(c.params, None)
    assert out.overflow and np.isnan(found) and all(np.isnan(x) for x in jax.tree.leaves(gradient))
    with pytest.raises(RuntimeError, match="neighbour lists must hold"):
        gradients.check_rollout(out)
    (found, out), gradient = grad(c.params, 1)
    assert not out.overflow and all(np.isfinite(x) for x in jax.tree.leaves(gradient))
    # A way back that misses the start by one unit in one place.
    undone = reverse_step

    def wrong(*arguments):
        *known, X, before = undone(*arguments)
        return *known, X.at[3, 1].add(1), before

    monkeypatch.setattr("moe_md.gradients.reverse_pass.reverse_step", wrong)
    (again, _), gradient = grad(c.params, 1)
    assert again == found and all(np.isnan(x) for x in jax.tree.leaves(gradient))


@cache
def fractional():
    displacement_fn, shift_fn = space.periodic_general(jnp.eye(3) * 8.0)
    return shift_fn


def test_what_does_not_fit_is_refused():
    c = crystal()
    nve, neighbors = simulate.nve(c.shift_fn, 2.0), c.allocate()
    good = dict(energy_fn=c.energy_fn, integrator=nve, state=c.start(nve), neighbors=neighbors, n_steps=20)
    langevin = simulate.langevin(c.shift_fn, 2.0, 100.0, 0.01)
    hoover = simulate.nose_hoover(c.shift_fn, 2.0, 100.0)
    inner = SimpleNamespace(inner_energy=c.energy_fn, inner_outer_split=c.energy_fn)
    bad = [
        (
            "integrator must be from nve .* Langevin.* use gradients.rollout",
            dict(integrator=langevin, state=c.start(langevin, key=jax.random.key(0))),
        ),
        (
            "integrator must be from nve .* NoseHoover.* use gradients.rollout",
            dict(integrator=hoover, state=c.start(hoover)),
        ),
        ("integrator must be from nve .* Respa", dict(integrator=simulate.respa(nve, inner, 2))),
        ("region must have smooth gates", dict(region=mm.regions.reassigned(c.region))),
        (
            "shift_fn of the integrator must take positions in Å",
            dict(integrator=simulate.nve(fractional(), 2.0)),
        ),
        ("n_steps must be at least 1", dict(n_steps=0)),
        ("n_steps must be a multiple of update_every = 3", dict(update_every=3)),
        (
            "update_every must be a multiple of observe_every = 20",
            dict(observe=lambda s: s.energy, observe_every=20),
        ),
        ("neighbors must be", dict(neighbors=())),
    ]
    for message, change in bad:
        with pytest.raises(ValueError, match=message):
            gradients.reversible_rollout(**{**good, **change})
    with jax.enable_x64(False), pytest.raises(ValueError, match="jax_enable_x64"):
        gradients.reversible_rollout(**good)


def autocorrelation(velocity):
    """<v(0) v(t)> / <v(0)^2> over atoms and origins; velocities `[n_times, n_atoms, 3]`."""
    n = len(velocity)
    products = jnp.einsum("tad,sad->ts", velocity, velocity)
    return jnp.stack([jnp.mean(jnp.diagonal(products, k)) for k in range(n // 2)]) / jnp.mean(
        jnp.diagonal(products)
    )


@pytest.mark.thorough
def test_a_velocity_autocorrelation_is_matched():
    """Worked use: the cheap expert's well from the velocities of a trajectory that the right one made."""
    c = crystal("static", temperature_K=300.0)
    integrator, neighbors = simulate.nve(c.shift_fn, 4.0), c.allocate(extra_capacity=6)

    def curve(epsilon, momentum):
        params = (c.params[0], {**c.params[1], "epsilon": epsilon})
        state = c.start(integrator, momentum=momentum)
        options = dict(update_every=10, observe=lambda s: s.velocity, observe_every=5, params=params)
        return autocorrelation(
            gradients.reversible_rollout(c.energy_fn, integrator, state, neighbors, 100, **options).observed
        )

    wanted = curve(0.5, c.momentum)
    loss = jax.jit(jax.value_and_grad(lambda epsilon: jnp.mean((curve(epsilon, c.momentum) - wanted) ** 2)))
    optimizer = optax.adam(0.01)
    epsilon = jnp.asarray(0.4)
    state, losses = optimizer.init(epsilon), []
    for _ in range(60):
        value, gradient = loss(epsilon)
        update, state = optimizer.update(gradient, state)
        epsilon = epsilon + update
        losses.append(float(value))
    assert losses[-1] < 1e-2 * losses[0] and abs(epsilon - 0.5) < 0.01

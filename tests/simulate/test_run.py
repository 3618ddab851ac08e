"""The host loop: its log and frames, overflow, failures, compilation, and where it stops and continues."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import minimize, space
from jax_md import simulate as integrators
from pt_slab import pt_slab
from trajectories import run_from

import moe_md as mm
from moe_md import simulate, units
from moe_md.simulate.advance import advance_chunk


def test_drops_into_jax_md(slab, warm):
    atoms, neighbor_fn, energy_fn, shift_fn = slab
    masses = jnp.asarray(atoms.get_masses())
    R = jnp.asarray(warm.state.position)

    def walk(functions, state, n_steps):
        _, apply_fn = functions
        neighbors = neighbor_fn.allocate(state.position)

        @jax.jit
        def chunk(state, neighbors):
            def step(_, carry):
                state, neighbors = carry
                state = apply_fn(state, neighbor=neighbors)
                return state, neighbors.update(state.position)

            return jax.lax.fori_loop(0, n_steps, step, (state, neighbors))

        state, neighbors = chunk(state, neighbors)
        assert not neighbors.did_buffer_overflow
        return state, energy_fn(state.position, neighbors)

    neighbors = neighbor_fn.allocate(R)
    nve = integrators.nve(energy_fn, shift_fn, 2.0 * units.fs)
    start = nve[0](jax.random.key(1), R, 500 * units.kB, mass=masses, neighbor=neighbors)
    end, energy = walk(nve, start, 100)
    before = energy_fn(R, neighbors) + integrators.kinetic_energy(start)
    assert abs(energy + integrators.kinetic_energy(end) - before) < 1e-4 * len(atoms)
    # Our loop, which updates lists where the forces are, takes the same path.
    ours = simulate.run(
        neighbor_fn,
        energy_fn,
        simulate.nve(shift_fn, 2.0),
        simulate.start(simulate.nve(shift_fn, 2.0), R, masses=masses, velocity=start.velocity),
        n_steps=100,
    )
    apart = space.distance(
        jax.vmap(space.periodic(jnp.asarray(np.diag(atoms.cell)))[0])(ours.state.position, end.position)
    )
    assert apart.max() < 1e-5  # time steps differ in float32's last digit

    langevin = integrators.nvt_langevin(energy_fn, shift_fn, 2.0 * units.fs, 500 * units.kB, 0.01 / units.fs)
    start = langevin[0](jax.random.key(2), R, mass=masses, neighbor=neighbors)
    end, energy = walk(langevin, start, 100)
    assert jnp.isfinite(energy) and 250 < integrators.temperature(end) / units.kB < 1000

    fire = minimize.fire_descent(energy_fn, shift_fn, 0.05, 0.2)
    end, energy = walk(fire, fire[0](R, neighbor=neighbors), 100)
    assert energy < energy_fn(R, neighbors) - 1.0 and jnp.abs(end.force).max() < 0.1


def test_log_and_frames(slab):
    atoms, neighbor_fn, energy_fn, shift_fn = slab
    frames = []
    drifting = np.random.default_rng(0).normal(size=(len(atoms), 3)) + 1.0
    out = simulate.run(
        neighbor_fn,
        energy_fn,
        simulate.nve(shift_fn, 0.5),
        simulate.start(
            simulate.nve(shift_fn, 0.5),
            jnp.asarray(atoms.positions),
            masses=atoms.get_masses(),
            velocity=0.01 * drifting,
        ),
        n_steps=25,
        chunk_steps=10,
        reporters=[frames.append],
    )
    np.testing.assert_array_equal(out.log.step, [0, 10, 20, 25])
    np.testing.assert_allclose(out.log.time_ps, [0, 0.005, 0.010, 0.0125])
    np.testing.assert_allclose(out.log.total, out.log.total[0], atol=1e-4)
    assert out.log.momentum.max() < 1e-12  # removed at the start, then conserved
    assert [f.step for f in frames] == [0, 10, 20, 25] and out.state.step == 25
    last, neighbors = frames[-1], neighbor_fn.allocate(out.state.position)
    np.testing.assert_array_equal(last.position, out.state.position)
    energy, gradient = jax.value_and_grad(energy_fn)(out.state.position, neighbors)
    np.testing.assert_allclose(last.potential, energy, rtol=1e-12)
    np.testing.assert_allclose(last.force, -gradient, atol=1e-10)
    atoms = atoms.copy()
    atoms.set_velocities(last.velocity)
    np.testing.assert_allclose(last.kinetic, atoms.get_kinetic_energy(), rtol=1e-12)
    n = len(atoms)
    np.testing.assert_allclose(last.temperature_K, atoms.get_temperature() * 3 * n / (3 * n - 3), rtol=1e-9)


def test_every_force_sees_every_pair():
    """Forces along a run equal those of fresh lists, with a thin skin and long steps."""
    atoms, neighbor_fn, energy_fn, shift_fn = pt_slab(dr_threshold=0.05)
    frames = []
    simulate.run(
        neighbor_fn,
        energy_fn,
        simulate.nve(shift_fn, 5.0),
        simulate.start(
            simulate.nve(shift_fn, 5.0),
            jnp.asarray(atoms.positions),
            masses=atoms.get_masses(),
            temperature_K=2000.0,
            key=jax.random.key(3),
        ),
        n_steps=40,
        chunk_steps=1,
        reporters=[frames.append],
    )
    neighbors = neighbor_fn.allocate(jnp.asarray(atoms.positions), extra_capacity=20)
    force_fn = jax.jit(jax.grad(lambda R, neighbor: -energy_fn(R, neighbor)))
    for frame in frames:
        fresh = neighbors.update(frame.position)
        assert not fresh.did_buffer_overflow
        np.testing.assert_allclose(frame.force, force_fn(frame.position, fresh), atol=1e-9)


@pytest.mark.parametrize("thermostat", [False, True])
def test_overflow_heals(thermostat):
    """Lists with no room to spare give the path of roomy ones."""

    def path(capacity_multiplier):
        atoms, neighbor_fn, energy_fn, shift_fn = pt_slab(capacity_multiplier=capacity_multiplier)
        integrator = (
            simulate.langevin(shift_fn, 2.0, 1500.0, 0.01) if thermostat else simulate.nve(shift_fn, 2.0)
        )
        return simulate.run(
            neighbor_fn,
            energy_fn,
            integrator,
            simulate.start(
                integrator,
                jnp.asarray(atoms.positions) * jnp.asarray([[1.0, 1.0, 0.97]]),
                masses=atoms.get_masses(),
                temperature_K=1500.0,
                key=jax.random.key(4),
            ),
            n_steps=120,
        )

    tight, roomy = path(1.0), path(2.0)
    assert roomy.log.n_reallocations[-1] == 0 and tight.log.n_reallocations[-1] >= 1
    assert tight.neighbors.idx.shape[1] < roomy.neighbors.idx.shape[1]
    np.testing.assert_allclose(tight.state.position, roomy.state.position, atol=1e-9)
    np.testing.assert_allclose(tight.log.total, roomy.log.total, atol=1e-9)


def test_lists_that_never_fit(slab):
    atoms, neighbor_fn, energy_fn, shift_fn = slab

    class Stubborn:
        @staticmethod
        def allocate(position, **kwargs):
            full = neighbor_fn.allocate(position, **kwargs)
            return dataclasses.replace(full, centers_overflow=jnp.ones((), bool))

    with pytest.raises(simulate.SimulationError, match="max_reallocations = 2"):
        simulate.relax(Stubborn, energy_fn, shift_fn, jnp.asarray(atoms.positions), max_reallocations=2)


def test_stops_with_the_last_good_state(slab):
    atoms, neighbor_fn, energy_fn, shift_fn = slab
    origin = jnp.asarray(atoms.positions)

    def fragile(R, neighbor, **kwargs):
        apart = jnp.max(jnp.abs(R - origin)[:, 2])
        return jnp.where(apart < 0.4, energy_fn(R, neighbor, **kwargs), jnp.nan)

    class Keeper:
        failed = None

        def __call__(self, frame):
            self.last = frame

        def on_failure(self, state):
            self.failed = state

    keeper = Keeper()
    with pytest.raises(simulate.SimulationError, match="timestep_fs") as caught:
        simulate.run(
            neighbor_fn,
            fragile,
            simulate.nve(shift_fn, 2.0),
            simulate.start(
                simulate.nve(shift_fn, 2.0),
                origin,
                masses=atoms.get_masses(),
                temperature_K=1000.0,
                key=jax.random.key(5),
            ),
            n_steps=1000,
            chunk_steps=5,
            reporters=[keeper],
        )
    state = caught.value.state
    assert state is keeper.failed and state.step % 5 == 0 and state.step == keeper.last.step > 0
    assert state.step == caught.value.log.step[-1] and f"step {state.step}" in str(caught.value)
    np.testing.assert_array_equal(state.position, keeper.last.position)
    assert np.isfinite(state.position).all() and np.abs(state.position - origin)[:, 2].max() < 0.4
    with pytest.raises(simulate.SimulationError, match="starting positions"):
        simulate.run(
            neighbor_fn,
            lambda R, neighbor: jnp.nan * jnp.sum(R),
            simulate.nve(shift_fn, 1.0),
            simulate.start(
                simulate.nve(shift_fn, 1.0),
                origin,
                masses=atoms.get_masses(),
                velocity=np.zeros(origin.shape),
            ),
            n_steps=1,
        )


def test_compiles_once(slab, warm):
    """After warm-up nothing is compiled: other lengths, steps, temperatures, params, restarts."""
    atoms, neighbor_fn, energy_fn, shift_fn = slab
    params = [{"epsilon": jnp.asarray(e), "sigma": jnp.asarray(2.5446)} for e in (0.6, 0.55)]
    frames = []

    def go(timestep_fs, temperature_K, n_steps, state, params):
        return simulate.run(
            neighbor_fn,
            energy_fn,
            simulate.langevin(shift_fn, timestep_fs, temperature_K, 0.01),
            simulate.adopt(
                simulate.langevin(shift_fn, timestep_fs, temperature_K, 0.01), state, key=jax.random.key(6)
            ),
            neighbors=warm.neighbors,
            params=params,
            n_steps=n_steps,
            chunk_steps=10,
            reporters=[frames.append],
        )

    first = go(1.0, 300.0, 20, warm.state, params)
    compilations = []

    def listener(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    jax.jit(lambda x: x * 1.25)(1.0)
    assert len(compilations) == 1  # the listener hears
    size = advance_chunk._cache_size()
    second = go(0.5, 500.0, 27, first.state, jax.tree.map(lambda p: 0.99 * p, params))
    fresh = second.state._replace(dynamics=second.state.dynamics.set(position=jnp.asarray(atoms.positions)))
    compilations.clear()
    go(0.25, 200.0, 33, fresh, params)
    assert compilations == [] and advance_chunk._cache_size() == size


def test_atoms_that_change_hands_compile_nothing(slab, warm):
    """Centres enter and leave the rows of both experts inside the compiled loop, within their capacity."""
    _, neighbor_fn, energy_fn, shift_fn = slab
    region = mm.regions.around([40], 2.6, 1.2)
    given = dict(region=region, chunk_steps=10)
    first = run_from(
        neighbor_fn, energy_fn, simulate.nve(shift_fn, 2.0), state=warm.state, n_steps=10, **given
    )
    size, owned = advance_chunk._cache_size(), set()

    def look(state, neighbors):
        owned.add(tuple(tuple(np.asarray(c).tolist()) for c in neighbors.centers))

    class Watch:
        def __call__(self, frame):
            pass

        on_state = staticmethod(look)

    out = run_from(
        neighbor_fn,
        energy_fn,
        simulate.nve(shift_fn, 2.0),
        state=first.state,
        neighbors=first.neighbors,
        n_steps=400,
        reporters=[Watch()],
        **given,
    )
    assert len(owned) >= 3 and out.log.n_reallocations[-1] == 0
    assert advance_chunk._cache_size() == size


def test_params_and_region_are_arguments(slab):
    atoms, neighbor_fn, energy_fn, shift_fn = slab
    _, other_fn, other_energy_fn, _ = pt_slab(epsilon=(0.50, 0.50))
    start = dict(masses=atoms.get_masses(), temperature_K=300.0, key=jax.random.key(7), n_steps=20)
    R = jnp.asarray(atoms.positions)
    params = [{"epsilon": 0.50, "sigma": 2.5446}, {"epsilon": 0.3, "sigma": 2.0}]
    everywhere = mm.regions.fixed(np.zeros(len(atoms), int))
    given = run_from(
        neighbor_fn, energy_fn, simulate.nve(shift_fn, 1.0), R, params=params, region=everywhere, **start
    )
    built = run_from(other_fn, other_energy_fn, simulate.nve(shift_fn, 1.0), R, **start)
    np.testing.assert_allclose(given.state.position, built.state.position, atol=1e-10)
    np.testing.assert_allclose(given.log.potential, built.log.potential, rtol=1e-10)


@pytest.mark.parametrize("thermostat", [False, True])
def test_continues_where_it_stopped(slab, warm, thermostat):
    _, neighbor_fn, energy_fn, shift_fn = slab
    integrator = simulate.langevin(shift_fn, 2.0, 500.0, 0.01) if thermostat else simulate.nve(shift_fn, 2.0)

    def on(from_, n_steps, **kwargs):
        kwargs.setdefault("neighbors", from_.neighbors)
        return run_from(neighbor_fn, energy_fn, integrator, state=from_.state, n_steps=n_steps, **kwargs)

    key = jax.random.key(8) if thermostat else None
    whole = on(warm, 60, key=key, chunk_steps=20)
    half = on(on(warm, 30, key=key), 30, neighbors=None)
    np.testing.assert_allclose(half.state.position, whole.state.position, atol=1e-10)
    assert half.state.step == whole.state.step == 160
    np.testing.assert_array_equal(whole.log.step, [120, 140, 160])
    if thermostat:  # its momentum is removed when energy is to be conserved
        assert whole.log.momentum[-1] > 1e-3
        after = simulate.run(neighbor_fn, energy_fn, simulate.nve(shift_fn, 1.0), whole.state, n_steps=5)
        assert after.log.momentum[-1] < 1e-12


def test_velocities_are_maxwell_boltzmann(slab):
    atoms, neighbor_fn, energy_fn, shift_fn = slab
    masses = np.where(np.arange(len(atoms)) % 2, 195.0, 16.0)
    v = np.stack(
        [
            simulate.run(
                neighbor_fn,
                energy_fn,
                simulate.nve(shift_fn, 1.0),
                simulate.start(
                    simulate.nve(shift_fn, 1.0),
                    jnp.asarray(atoms.positions),
                    masses=masses,
                    temperature_K=400.0,
                    key=jax.random.key(seed),
                ),
                n_steps=0,
            ).state.velocity
            for seed in range(20)
        ]
    )
    np.testing.assert_allclose(np.einsum("i,sik->sk", masses, v), 0, atol=1e-10)
    for m in (16.0, 195.0):
        share = 1 - m / masses.sum()  # what is left of m v^2 without the total momentum
        kT = m * v[:, masses == m] ** 2 / share
        assert abs(kT.mean() / units.kB - 400) < 4 * 400 * np.sqrt(2 / kT.size)


def test_float32_stays_float32(slab):
    atoms, neighbor_fn, energy_fn, shift_fn = slab
    R = jnp.asarray(atoms.positions, jnp.float32)
    relaxed = simulate.relax(neighbor_fn, energy_fn, shift_fn, R)
    assert relaxed.position.dtype == jnp.float32
    for integrator in (simulate.nve(shift_fn, 1.0), simulate.langevin(shift_fn, 1.0, 300.0, 0.01)):
        out = simulate.run(
            neighbor_fn,
            energy_fn,
            integrator,
            simulate.start(
                integrator,
                relaxed.position,
                masses=atoms.get_masses(),
                temperature_K=300.0,
                key=jax.random.key(0),
            ),
            n_steps=60,
        )
        kinds = {x.dtype for x in (out.state.position, out.state.velocity, out.state.dynamics.force)}
        assert kinds == {jnp.dtype("float32")}
    assert np.isfinite(out.log.total).all()

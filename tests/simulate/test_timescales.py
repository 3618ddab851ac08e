"""Multiple time steps: what the expensive expert adds to an inner potential is felt at every n-th step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from depths import short
from jax_md import space
from trajectories import run_from

import moe_md as mm
from moe_md import simulate, units
from moe_md.simulate.advance import advance_chunk

CUTOFF, SIGMA = 4.3, 2.5446
N = 4  # steps between slow forces


def lennard_jones(epsilon, sigma=SIGMA):
    return mm.experts.lennard_jones(("Pt",), CUTOFF, epsilon=epsilon, sigma=sigma)


EXPERTS = (lennard_jones(0.60), lennard_jones(0.55))
INNER = lennard_jones(0.50, 2.53)


def crystal(moving: bool = False, experts=EXPERTS, inner_potential=INNER):
    """108 atoms, half of them, or a ball about one, on expert 0."""
    atoms = bulk("Pt", cubic=True, a=3.97) * 3
    displacement_fn, shift_fn = space.periodic(jnp.asarray(atoms.cell.lengths()))
    region = mm.regions.around([0], 1.5, 1.5) if moving else mm.regions.slab(atoms.positions, lower=5.0)
    fns = mm.mixture_neighbor_list(
        displacement_fn,
        atoms.cell.lengths(),
        mm.experts.potentials(experts, [e.init(None) for e in experts]),
        np.zeros(len(atoms), int),
        region,
        inner_potential=None if inner_potential is None else (inner_potential, inner_potential.init(None)),
    )
    return atoms, *fns, shift_fn


@pytest.fixture(scope="module")
def still():
    return crystal()


def go(system, integrator, n_steps, temperature_K=600.0, **options):
    atoms, neighbor_fn, energy_fn, _ = system
    start = dict(masses=atoms.get_masses(), temperature_K=temperature_K, key=jax.random.key(0))
    if "state" not in options:
        options = start | {"position": jnp.asarray(atoms.positions)} | options
    return run_from(neighbor_fn, energy_fn, integrator, n_steps=n_steps, **options)


def nested_loops(slow, fast, position, momentum, mass, dt, n_outer):
    """The nested loops of Tuckerman, Berne and Martyna."""
    for _ in range(n_outer):
        momentum = momentum + N * dt / 2 * slow(position)
        for _ in range(N):
            momentum = momentum + dt / 2 * fast(position)
            position = position + dt * momentum / mass
            momentum = momentum + dt / 2 * fast(position)
        momentum = momentum + N * dt / 2 * slow(position)
    return position, momentum


@pytest.mark.parametrize("moving", short([False, True], only=[True]))
def test_parts_add_up(moving):
    atoms, neighbor_fn, energy_fn, _ = crystal(moving)
    R = jnp.asarray(atoms.positions + 0.1 * np.random.default_rng(0).standard_normal(atoms.positions.shape))
    neighbors = neighbor_fn.allocate(R)
    fast, slow = neighbor_fn.inner_outer_split(R, neighbors)
    assert fast == pytest.approx(float(neighbor_fn.inner_energy(R, neighbors)), abs=1e-12)
    assert fast + slow == pytest.approx(float(energy_fn(R, neighbors)), abs=1e-11)
    weight, energy = neighbor_fn.parts(R, neighbors)
    alone, pair = crystal(moving, (INNER, EXPERTS[1]), None)[1:3]
    assert fast == pytest.approx(float(pair(R, alone.allocate(R))), abs=1e-11)
    assert abs(float(slow)) > 0.5 and float(jnp.sum(weight[:, 0])) > 0 and energy.shape == (108, 2)


@pytest.mark.parametrize("moving", short([False, True], only=[False]))
def test_equals_the_nested_loops(moving):
    system = crystal(moving)
    atoms, neighbor_fn, energy_fn, shift_fn = system
    warm = go(system, simulate.nve(shift_fn, 2.0), 20)
    found = go(
        system,
        simulate.respa(simulate.nve(shift_fn, 2.0), neighbor_fn, N),
        3 * N,
        state=warm.state,
        neighbors=warm.neighbors,
    )

    def force(part):
        neighbors = neighbor_fn.allocate(warm.state.position)
        return jax.jit(lambda R: -jax.grad(lambda R: part(R, neighbors.update(R)))(R))

    fast = force(lambda R, near: neighbor_fn.inner_outer_split(R, near)[0])
    slow = force(lambda R, near: energy_fn(R, near) - neighbor_fn.inner_energy(R, near))
    dynamics, dt = warm.state.dynamics, float(np.float32(2.0 * units.fs))  # jax-md rounds it
    position, momentum = nested_loops(slow, fast, dynamics.position, dynamics.momentum, dynamics.mass, dt, 3)
    apart = np.asarray(found.state.position) - np.asarray(position)
    edges = atoms.cell.lengths()
    assert np.abs(apart - edges * np.round(apart / edges)).max() < 1e-11
    np.testing.assert_allclose(found.state.dynamics.momentum, momentum, atol=1e-10)
    assert np.abs(np.asarray(found.state.position - warm.state.position)).max() > 0.1


def test_what_is_told_is_the_whole(still):
    atoms, neighbor_fn, energy_fn, shift_fn = still
    frames = []
    result = go(
        still,
        simulate.respa(simulate.nve(shift_fn, 2.0), neighbor_fn, N),
        5 * N,
        chunk_steps=N,
        reporters=[frames.append],
    )
    assert [frame.step for frame in frames] == [0, 4, 8, 12, 16, 20]
    for frame in frames:
        R = jnp.asarray(frame.position)
        energy, gradient = jax.value_and_grad(energy_fn)(R, neighbor_fn.allocate(R))
        assert frame.potential == pytest.approx(float(energy), abs=1e-10)
        np.testing.assert_allclose(frame.force, -gradient, atol=1e-10)
    assert result.log.momentum.max() < 1e-10


@pytest.mark.parametrize("moving", short([False, True], only=[True]))
def test_energy_is_conserved_to_second_order(moving):
    """Error falls by four where both steps halve."""
    system = crystal(moving)
    warm = go(system, simulate.nve(system[-1], 2.0), 100, 900.0)
    spread = []
    for dt in (4.0, 2.0, 1.0):
        every = int(N * 4 / dt)
        more = go(
            system,
            simulate.respa(simulate.nve(system[-1], dt), system[1], N),
            int(2000 / dt),
            state=warm.state,
            neighbors=warm.neighbors,
            chunk_steps=every,
        )
        spread.append(np.std(more.log.total - more.log.total[0]))
    assert spread[0] > 1e-6
    assert 2.8 < spread[0] / spread[1] < 6 and 2.8 < spread[1] / spread[2] < 6
    slow = np.std(more.log.potential)
    assert spread[0] < 0.05 * slow


def test_the_inner_potential_alone_does_not_conserve_the_whole(still):
    """Negative control: slow forces left out."""
    atoms, neighbor_fn, energy_fn, shift_fn = still
    warm = go(still, simulate.nve(shift_fn, 2.0), 200, 900.0)
    options = dict(state=warm.state, chunk_steps=2 * N)

    def inner_alone(R, neighbor, **kwargs):
        return neighbor_fn.inner_energy(R, neighbor, **{k: v for k, v in kwargs.items() if v is not None})

    wrong = run_from(
        neighbor_fn,
        inner_alone,
        simulate.nve(shift_fn, 2.0),
        n_steps=400,
        neighbors=warm.neighbors,
        **options,
    )
    right = go(
        still,
        simulate.respa(simulate.nve(shift_fn, 2.0), neighbor_fn, N),
        400,
        neighbors=warm.neighbors,
        **options,
    )
    R = wrong.state.position
    whole = float(energy_fn(R, neighbor_fn.allocate(R))) + wrong.log.kinetic[-1]
    assert abs(whole - warm.log.total[-1]) > 5 * np.abs(right.log.total - right.log.total[0]).max()


def test_it_runs_backwards(still):
    forth = go(still, simulate.respa(simulate.nve(still[-1], 2.0), still[1], N), 25 * N)
    back = dataclasses.replace(forth.state.dynamics, momentum=-forth.state.dynamics.momentum)
    there = go(
        still,
        simulate.respa(simulate.nve(still[-1], 2.0), still[1], N),
        25 * N,
        state=forth.state._replace(dynamics=back),
        neighbors=forth.neighbors,
    )
    apart, edges = np.asarray(there.state.position) - still[0].positions, still[0].cell.lengths()
    assert np.abs(apart - edges * np.round(apart / edges)).max() < 1e-9


@pytest.mark.parametrize("kind", ["nve", "langevin"])
def test_a_perfect_inner_potential_changes_nothing(kind):
    system = crystal(inner_potential=EXPERTS[0])

    integrator = {
        "nve": simulate.nve(system[-1], 2.0),
        "langevin": simulate.langevin(system[-1], 2.0, 600.0, 0.01),
    }[kind]
    plain, split = (
        go(system, simulate.respa(integrator, system[1], every), 40).log.total for every in (1, N)
    )
    np.testing.assert_allclose(plain, split, atol=1e-8)


def test_the_expensive_expert_is_asked_at_every_nth_step():
    calls = []

    def counted(params, rows):
        jax.debug.callback(lambda: calls.append(1))
        return EXPERTS[0].atom_energies(params, rows)

    system = crystal(experts=(EXPERTS[0]._replace(atom_energies=counted), EXPERTS[1]))
    asked = []
    for n in (1, N):
        before = len(calls)
        go(system, simulate.respa(simulate.nve(system[-1], 2.0), system[1], n), 40)
        jax.effects_barrier()
        asked.append(len(calls) - before)
    assert asked[1] > 0 and asked[0] / asked[1] == pytest.approx(41 / 11)


def test_goes_on_bit_for_bit_and_compiles_once(still):
    integrator = simulate.respa(simulate.nve(still[-1], 2.0), still[1], N)
    whole = go(still, integrator, 10 * N, chunk_steps=2 * N)
    compiled = advance_chunk._cache_size()
    half = go(still, integrator, 6 * N, chunk_steps=2 * N)
    rest = go(still, integrator, 4 * N, state=half.state, neighbors=half.neighbors, chunk_steps=2 * N)
    np.testing.assert_array_equal(whole.state.position, rest.state.position)
    assert advance_chunk._cache_size() == compiled


def test_says_what_is_wrong(still):
    atoms, neighbor_fn, _, shift_fn = still
    every = simulate.respa(simulate.nve(shift_fn, 2.0), neighbor_fn, N)
    with pytest.raises(ValueError, match="n_steps must be a multiple of outer_every = 4, got 10"):
        go(still, every, 10)
    with pytest.raises(ValueError, match="chunk_steps must be a multiple of outer_every = 4, got 6"):
        go(still, every, 12, chunk_steps=6)
    with pytest.raises(ValueError, match="neighbor_fn must be of mixture_neighbor_list.*inner_potential"):
        simulate.respa(simulate.nve(shift_fn, 2.0), crystal(inner_potential=None)[1], N)
    with pytest.raises(ValueError, match="every must be a whole number, at least 1, got 0"):
        simulate.respa(simulate.langevin(shift_fn, 1.0, 300.0, 0.01), neighbor_fn, 0)
    with pytest.raises(ValueError, match="integrator must be from nve or langevin, got NoseHoover"):
        simulate.respa(simulate.nose_hoover(shift_fn, 1.0, 300.0), neighbor_fn, N)
    with pytest.raises(ValueError, match=r"inner_potential must be an expert of the species \('Pt',\)"):
        crystal(inner_potential=mm.experts.lennard_jones(("Pt", "C"), CUTOFF, epsilon=0.5, sigma=2.5))


def test_inner_potential_must_be_an_expert_with_parameters():
    atoms = bulk("Pt", cubic=True, a=3.97) * 3
    displacement_fn, _ = space.periodic(jnp.asarray(atoms.cell.lengths()))
    rest = ([{}, {}], np.zeros(108, int), mm.regions.slab(atoms.positions, lower=5.0))

    def build(inner_potential):
        return mm.mixture_neighbor_list(
            displacement_fn,
            atoms.cell.lengths(),
            mm.experts.potentials(EXPERTS, [e.init(None) for e in EXPERTS]),
            *rest[1:],
            inner_potential=inner_potential,
        )

    with pytest.raises(ValueError, match="inner_potential must be an expert and its parameters"):
        build(INNER)
    with pytest.raises(ValueError, match="inner_potential must have parameters that fit"):
        build((INNER, {"a": 1.0}))

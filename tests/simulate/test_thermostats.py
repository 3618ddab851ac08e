"""Thermostats of all atoms, and of the atoms of one expert."""

import jax
import numpy as np
import pytest
from trajectories import run_from

import moe_md as mm
from moe_md import simulate


def test_langevin_holds_the_temperature(slab, warm):
    _, neighbor_fn, energy_fn, shift_fn = slab
    out = simulate.run(
        neighbor_fn,
        energy_fn,
        simulate.langevin(shift_fn, 4.0, 500.0, 0.02),
        simulate.adopt(simulate.langevin(shift_fn, 4.0, 500.0, 0.02), warm.state, key=jax.random.key(9)),
        neighbors=warm.neighbors,
        n_steps=2200,
        chunk_steps=5,
    )
    blocks = out.log.temperature_K[40:].reshape(10, -1).mean(axis=1)  # 0.8 ps each
    error = blocks.std(ddof=1) / np.sqrt(10)
    assert error < 15 and abs(blocks.mean() - 500) < 4 * error


def test_a_thermostat_on_one_experts_atoms(slab, warm):
    """Atoms without friction feel forces only; the heat bath of the others warms them too."""
    atoms, neighbor_fn, energy_fn, shift_fn = slab
    lower = atoms.positions[:, 2] < np.median(atoms.positions[:, 2])
    start = dict(state=warm.state, neighbors=warm.neighbors, key=jax.random.key(11))
    strong = simulate.langevin(shift_fn, 4.0, 800.0, 0.02 * lower)
    one = run_from(neighbor_fn, energy_fn, strong, n_steps=1, **start)
    free = simulate.run(
        neighbor_fn, energy_fn, simulate.nve(shift_fn, 4.0), warm.state, neighbors=warm.neighbors, n_steps=1
    )
    apart = np.abs(np.asarray(one.state.position - free.state.position)).max(axis=1)
    assert apart[~lower].max() < 1e-9 and apart[lower].min() > 1e-6
    out = run_from(neighbor_fn, energy_fn, strong, n_steps=2200, chunk_steps=5, **start)
    blocks = out.log.temperature_K[40:].reshape(10, -1).mean(axis=1)
    error = blocks.std(ddof=1) / np.sqrt(10)
    assert error < 30 and abs(blocks.mean() - 800) < 4 * error
    with pytest.raises(
        ValueError, match="friction_per_fs must be a number or one for each of 72 atoms, got 3"
    ):
        run_from(
            neighbor_fn, energy_fn, simulate.langevin(shift_fn, 4.0, 800.0, np.ones(3)), n_steps=1, **start
        )
    for rates in (np.zeros(72), -np.ones(72), np.ones((72, 3)), [np.nan] * 72):
        with pytest.raises(
            ValueError, match="friction_per_fs must be rates that are finite, not negative and not all zero"
        ):
            simulate.langevin(shift_fn, 4.0, 800.0, rates)


def test_a_thermostat_on_an_expert_is_one_on_its_atoms(slab, warm):
    atoms, neighbor_fn, energy_fn, shift_fn = slab
    lower = atoms.positions[:, 2] < np.median(atoms.positions[:, 2])
    runs = [
        simulate.run(
            neighbor_fn,
            energy_fn,
            thermostat,
            simulate.adopt(thermostat, warm.state, key=jax.random.key(11)),
            neighbors=warm.neighbors,
            n_steps=20,
        ).state.position
        for thermostat in (
            simulate.langevin(shift_fn, 4.0, 800.0, 0.02 * lower),
            simulate.langevin(
                shift_fn, 4.0, 800.0, friction_fn=simulate.expert_friction(neighbor_fn, (0.0, 0.02))
            ),
        )
    ]
    assert (np.asarray(runs[0]) == np.asarray(runs[1])).all()


def test_a_thermostat_follows_its_region(slab, warm):
    """Chunk by chunk, it is that of the weights at the beginning of the chunk."""
    _, neighbor_fn, energy_fn, shift_fn = slab
    region, rates = mm.regions.around([70], 2.0, 3.0), (0.0, 0.05)
    neighbors = neighbor_fn.allocate(warm.state.position, region=region)
    options = dict(region=region, key=jax.random.key(12))
    follows = simulate.langevin(
        shift_fn, 4.0, 800.0, friction_fn=simulate.expert_friction(neighbor_fn, rates)
    )
    whole = run_from(
        neighbor_fn,
        energy_fn,
        follows,
        state=warm.state,
        neighbors=neighbors,
        n_steps=40,
        chunk_steps=20,
        **options,
    )
    state, frictions = warm.state, []
    for part in range(2):
        weight = neighbor_fn.gate(state.position, neighbors, region=region)
        frictions.append(np.asarray(weight) @ rates)
        by_hand = simulate.langevin(shift_fn, 4.0, 800.0, frictions[-1])
        given = options if part == 0 else {"region": region}
        result = run_from(
            neighbor_fn, energy_fn, by_hand, state=state, neighbors=neighbors, n_steps=20, **given
        )
        state, neighbors = result.state, result.neighbors
    assert np.abs(frictions[1] - frictions[0]).max() > 1e-3 and frictions[0].min() == 0
    assert np.allclose(state.position, whole.state.position, atol=1e-12)


def test_a_thermostat_wants_a_rate_for_each_expert(slab, warm):
    _, neighbor_fn, energy_fn, shift_fn = slab
    three = simulate.langevin(
        shift_fn, 4.0, 800.0, friction_fn=simulate.expert_friction(neighbor_fn, (0.0, 0.1, 0.2))
    )
    with pytest.raises(ValueError, match="rates_per_fs must have a rate for each of 2 experts, got 3"):
        simulate.run(
            neighbor_fn, energy_fn, three, simulate.adopt(three, warm.state, key=jax.random.key(0)), n_steps=1
        )
    with pytest.raises(ValueError, match="rates_per_fs must be rates"):
        simulate.expert_friction(neighbor_fn, 0.1)
    with pytest.raises(ValueError, match="give either friction_per_fs or friction_fn, got neither"):
        simulate.langevin(shift_fn, 4.0, 800.0)

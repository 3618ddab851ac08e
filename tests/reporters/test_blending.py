import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import space

import moe_md as mm
from moe_md import simulate, units
from moe_md.regions import around, fixed
from moe_md.reporters.blending import BlendWatch

LATTICE, N = 2.2, 9  # Å, of a simple cubic crystal, and its atoms per edge
CUBIC = np.stack(np.meshgrid(*(np.arange(N),) * 3, indexing="ij"), -1).reshape(-1, 3) * LATTICE
EXPERT = mm.experts.lennard_jones(("Pt",), 3.2, epsilon=0.4, sigma=1.9)
FLUIDS = [{"epsilon": jnp.asarray(e), "sigma": jnp.asarray(1.9)} for e in (0.4, 0.3)]
SEED, CORE, WIDTH = 364, 3.0, 3.0
DISPLACEMENT, SHIFT = space.periodic(N * LATTICE)


def mixture(region, **kwargs):
    return mm.mixture_neighbor_list(
        DISPLACEMENT,
        N * LATTICE,
        mm.experts.potentials((EXPERT, EXPERT), FLUIDS),
        np.zeros(len(CUBIC), int),
        region,
        **kwargs,
    )


def displaced():
    return jnp.asarray(CUBIC + np.random.default_rng(0).normal(0, 0.1, CUBIC.shape))


def watched(region, n_steps=40, **kwargs):
    fns = mixture(region)
    watch = BlendWatch(fns[0], atomic_volume=LATTICE**3, **kwargs)
    begin = dict(masses=np.full(len(CUBIC), 40.0), temperature_K=600.0, key=jax.random.key(0))
    run = simulate.run(
        *fns,
        simulate.nve(SHIFT, 2.0),
        displaced(),
        n_steps=n_steps,
        chunk_steps=10,
        reporters=[watch],
        **begin,
    )
    return fns, watch, run


@pytest.fixture(scope="module")
def reported():
    return watched(around([SEED], CORE, WIDTH), costs=(10.0, 1.0))


def test_gate_gradient_force_is_the_energy_difference_times_the_gates_slope(reported):
    (neighbor_fn, _), watch, run = reported
    R, nbrs = run.state.position, run.neighbors
    region = around([SEED], CORE, WIDTH)
    apart = jax.vmap(DISPLACEMENT, (0, None))(R, R[SEED])
    r = np.linalg.norm(apart, axis=1)
    x = np.clip((r - CORE) / WIDTH, 0, 1)
    slope = 30 * x**2 * (1 - x) ** 2 / WIDTH
    each = []
    for e in (0, 1):
        owner = fixed(np.full(len(CUBIC), e), 2)
        each.append(neighbor_fn.parts(R, neighbor_fn.allocate(R, region=owner), region=owner).energy[:, e])
    expected = np.abs(each[0] - each[1]) * slope
    shared = (x > 0) & (x < 1)
    log = watch.log
    assert log.gate_force[-1] == pytest.approx(np.sqrt(np.mean(expected[shared] ** 2)), rel=1e-6)
    assert log.blended[-1] == pytest.approx(shared.mean()) and log.share[-1] == pytest.approx(
        [(x < 1).mean(), (x > 0).mean()]
    )
    # The force minus the force at constant gates is the gate-gradient force.
    gate_values = jax.lax.stop_gradient(region.gate(R, DISPLACEMENT))
    rest = jax.grad(lambda R: jnp.sum(gate_values * neighbor_fn.parts(R, nbrs).energy))(R)
    gate_gradient = -run.state.dynamics.force - rest
    assert log.largest_gate_force[-1] == pytest.approx(np.linalg.norm(gate_gradient, axis=1).max(), rel=1e-6)
    assert log.power[-1] == pytest.approx(
        float(jnp.sum(gate_gradient * run.state.velocity)) * 1000 * units.fs, rel=1e-6
    )
    assert log.force[-1] == pytest.approx(
        np.sqrt(np.mean(np.sum(run.state.dynamics.force**2, axis=1)[shared])), rel=1e-6
    )


def test_area_equals_that_of_the_blending_shell(reported):
    """Weighted by the slope of the gate: 4 pi <r^2>, sampled by a few hundred atoms."""
    _, watch, _ = reported
    x = np.linspace(0, 1, 1001)
    density = 30 * x**2 * (1 - x) ** 2
    expected = np.mean(density * 4 * np.pi * (CORE + WIDTH * x) ** 2)
    assert np.mean(watch.log.area) == pytest.approx(expected, rel=0.05)


def test_summary_holds_means_and_extremes_of_the_log(reported):
    _, watch, _ = reported
    summary, log = watch.summary(), watch.log
    assert log.step.tolist() == [0, 10, 20, 30, 40] and summary["n_frames"] == 5
    mean_share = log.share.mean(axis=0)
    assert summary["s_max"] == pytest.approx(10 / (10 * mean_share[0] + mean_share[1]))
    assert summary["share"][0] == [log.share[:, 0].mean(), log.share[:, 0].min(), log.share[:, 0].max()]
    assert summary["gate_over_thermal"] == pytest.approx(summary["gate_force"] / summary["thermal_force"])
    assert summary["flux_rms"] >= abs(summary["flux_mean"]) > 0 and summary["power_rms"] > 0
    neighbor_fn, run = reported[0][0], reported[2]
    without = BlendWatch(neighbor_fn)
    without.on_state(run.state, run.neighbors)
    assert "flux_rms" not in without.summary() and without.summary()["power_rms"] == pytest.approx(
        abs(log.power[-1])
    )


def test_without_blended_atoms_forces_are_nan_and_the_flux_is_left_out():
    _, watch, _ = watched(fixed(np.arange(len(CUBIC)) % 2, 2), n_steps=10)
    summary = watch.summary()
    assert (
        np.isnan(watch.log.gate_force).all() and summary["blended"] == [0, 0, 0] and "flux_rms" not in summary
    )


def test_bad_input():
    neighbor_fn, _ = mixture(around([SEED], CORE, WIDTH))
    with pytest.raises(ValueError, match="atomic_volume must be positive, got 0"):
        BlendWatch(neighbor_fn, atomic_volume=0)
    with pytest.raises(ValueError, match="costs must be positive, got -1"):
        BlendWatch(neighbor_fn, atomic_volume=1.0, costs=(1.0, -1.0))
    with pytest.raises(ValueError, match="summary needs at least one frame, got none"):
        BlendWatch(neighbor_fn, atomic_volume=1.0).summary()

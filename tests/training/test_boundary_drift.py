"""The motion caused by an expert boundary, and a training that reduces it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_training import EXPERTS, frames, settings

from moe_md import experts
from moe_md.analysis.expert_boundary import ghost_force
from moe_md.data.structures import fcc_supercell
from moe_md.training.boundary_drift import boundary_drift
from moe_md.training.cotrain import cotrain

CRYSTAL = {"symbol": "Pt", "lattice_constant": 3.98}


def two(epsilon):
    """Two Lennard-Jones experts with a second shell, so that planes cause ghost forces."""
    pair = tuple(experts.lennard_jones(("Pt",), 4.4, epsilon=e, sigma=2.4) for e in (0.6, epsilon))
    return pair, tuple(e.init(None) for e in pair)


def test_a_short_drift_is_the_ghost_force():
    pair, params = two(0.5)
    frame = fcc_supercell("Pt", 3.98, (3, 3, 4))
    half = (frame.positions[:, 2] < 0.5 * frame.cell[2, 2] - 1e-3).astype(int)
    ghost = ghost_force(pair, params, frame, half)
    found = boundary_drift(pair, **CRYSTAL, n_steps=1, timestep_fs=0.5)(params, 0)
    assert found > 1e-4
    # One step of velocity Verlet from rest: u = t^2 f / 2m.
    np.testing.assert_allclose(found, np.mean(np.sum(ghost.forces**2, axis=1)), rtol=1e-4)
    same, of_same = two(0.6)
    assert boundary_drift(same, **CRYSTAL, n_steps=1)(of_same, 0) < 1e-6 * found
    # Forces that average out over a longer time count less.
    assert boundary_drift(pair, **CRYSTAL, n_steps=40)(params, 0) < found


def test_gradient_and_interval():
    pair, params = two(0.5)
    term = jax.jit(boundary_drift(pair, **CRYSTAL, n_steps=6, timestep_fs=5.0, every=3))
    with_epsilon = lambda e: term((params[0], {**params[1], "epsilon": e}), 3)  # noqa: E731
    slope = (with_epsilon(0.52) - with_epsilon(0.48)) / 0.04
    gradient = jax.grad(with_epsilon)(jnp.asarray(0.5))
    np.testing.assert_allclose(gradient, slope, rtol=1e-2)
    assert gradient < 0  # towards the other expert's epsilon
    assert term(params, 4) == 0.0
    np.testing.assert_allclose(
        term(params, 3), 3 * boundary_drift(pair, **CRYSTAL, n_steps=6, timestep_fs=5.0)(params, 0), rtol=1e-5
    )


def test_cotraining_with_it_reduces_the_motion(tmp_path):
    """Of two trainings that differ in this term only, the one with it has less motion."""
    data, chosen = frames(7, 0), settings(40)
    drift = boundary_drift(EXPERTS, **CRYSTAL, n_steps=2, weight=3e3)
    without = cotrain(EXPERTS, data, chosen, progress=False)
    with_term = cotrain(EXPERTS, data, chosen, extra_loss=drift, folder=tmp_path, progress=False)
    before, after = (
        float(drift(jax.tree.map(jnp.asarray, tuple(x.params)), 0)) for x in (without, with_term)
    )
    assert after < 0.5 * before
    with pytest.raises(ValueError, match="folder must hold no training of other extra loss"):
        cotrain(EXPERTS, data, chosen, folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match="extra_loss must be a function"):
        cotrain(EXPERTS, data, chosen, extra_loss=1.0, progress=False)


def test_invalid_arguments_are_refused():
    pair, _ = two(0.5)
    for message, change in (
        ("n_steps must be", dict(n_steps=0)),
        ("every must be", dict(every=0)),
        ("weight must be", dict(weight=-1.0)),
        ("skin must be", dict(skin=0.0)),
        ("lattice_constant must be", dict(lattice_constant=0.0)),
        ("timestep_fs must be", dict(timestep_fs=0.0)),
        ("symbol must be", dict(symbol="Cu")),
    ):
        with pytest.raises(ValueError, match=message):
            boundary_drift(pair, **{**CRYSTAL, **change})
    with pytest.raises(ValueError, match="experts must be two"):
        boundary_drift(pair[:1], **CRYSTAL)

"""The motion caused by an expert boundary, and a training that reduces it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from small_training import EXPERTS, frames, settings

from moe_md import experts
from moe_md.analysis.expert_boundary import ghost_force
from moe_md.data.planes import cut_at_widest_gap, oriented_cell, widest_planes
from moe_md.data.reading import frame_from_atoms
from moe_md.settings import EnvironmentSettings
from moe_md.training.boundary_drift import boundary_drift
from moe_md.training.cotrain import cotrain

PLATINUM = bulk("Pt", a=3.98)
CRYSTALS = {  # and the number of cells across the plane
    "fcc": (PLATINUM, 4),
    "hcp": (bulk("Pt", "hcp", a=2.8, c=4.6), 2),
    "caesium chloride": (bulk("PtC", "cesiumchloride", a=3.2), 4),
}


def two(epsilon):
    """Two Lennard-Jones experts with a second shell, so that planes cause ghost forces."""
    pair = tuple(experts.lennard_jones(("Pt", "C"), 4.4, epsilon=e, sigma=2.4) for e in (0.6, epsilon))
    return pair, tuple(e.init(None) for e in pair)


@pytest.mark.parametrize("name", CRYSTALS)
def test_a_short_drift_is_the_ghost_force(name):
    """Also of unequal masses, and in a box that is not rectangular."""
    pair, params = two(0.5)
    atoms, n_cells = CRYSTALS[name]
    cell, _ = cut_at_widest_gap(oriented_cell(atoms, widest_planes(atoms.cell.array, 1)[0]))
    whole = cell * (1, 1, n_cells)
    half = (whole.get_scaled_positions()[:, 2] < 0.5).astype(int)
    ghost = ghost_force(pair, params, frame_from_atoms(whole), half)
    term = jax.jit(boundary_drift(pair, atoms, n_steps=1, timestep_fs=0.5))
    found = term(params, 0)
    assert found > 1e-4
    # One step of velocity Verlet from rest: u = t^2 f / 2m.
    np.testing.assert_allclose(found, np.mean(np.sum(ghost.forces**2, axis=1)), rtol=1e-4)
    _, twins = two(0.6)
    assert term(twins, 0) < 1e-6 * found
    if name == "fcc":  # forces that average out over a longer time count less
        assert jax.jit(boundary_drift(pair, atoms, n_steps=40))(params, 0) < found


def test_gradient_and_interval():
    pair, params = two(0.5)
    term = jax.jit(boundary_drift(pair, PLATINUM, n_steps=6, timestep_fs=5.0, every=3))
    with_epsilon = lambda e: term((params[0], {**params[1], "epsilon": e}), 3)  # noqa: E731
    slope = (with_epsilon(0.52) - with_epsilon(0.48)) / 0.04
    gradient = jax.grad(with_epsilon)(jnp.asarray(0.5))
    np.testing.assert_allclose(gradient, slope, rtol=1e-2)
    assert gradient < 0  # towards the other expert's epsilon
    assert term(params, 4) == 0.0
    np.testing.assert_allclose(
        term(params, 3),
        3 * jax.jit(boundary_drift(pair, PLATINUM, n_steps=6, timestep_fs=5.0))(params, 0),
        rtol=1e-5,
    )


def test_cotraining_with_it_reduces_the_motion(tmp_path):
    """Of two trainings that differ in this term only, the one with it has less motion."""
    data, chosen = frames(7, 0), settings(40)
    alone = EnvironmentSettings(environment_rows=0, perfect_rows=0)  # no agreement outside the frames
    kwargs = {"environments": alone, "progress": False}
    drift = boundary_drift(EXPERTS, PLATINUM, n_steps=2, weight=3e3)
    without = cotrain(EXPERTS, data, chosen, **kwargs)
    with_term = cotrain(EXPERTS, data, chosen, extra_loss=drift, folder=tmp_path, **kwargs)
    measure = jax.jit(drift)
    before, after = (
        float(measure(jax.tree.map(jnp.asarray, tuple(x.params)), 0)) for x in (without, with_term)
    )
    assert after < 0.5 * before
    with pytest.raises(ValueError, match="folder must hold no training of other extra loss"):
        cotrain(EXPERTS, data, chosen, folder=tmp_path, **kwargs)
    with pytest.raises(ValueError, match="extra_loss must be a function"):
        cotrain(EXPERTS, data, chosen, extra_loss=1.0, **kwargs)


def test_invalid_arguments_are_refused():
    pair, _ = two(0.5)
    for message, change in (
        ("n_steps must be", dict(n_steps=0)),
        ("every must be", dict(every=0)),
        ("weight must be", dict(weight=-1.0)),
        ("skin must be", dict(skin=0.0)),
        ("timestep_fs must be", dict(timestep_fs=0.0)),
        ("atoms must be of the experts' species .* got Cu", dict(atoms=bulk("Cu"))),
        ("atoms must be periodic", dict(atoms=Atoms("Pt"))),
    ):
        with pytest.raises(ValueError, match=message):
            boundary_drift(pair, **{"atoms": PLATINUM, **change})
    with pytest.raises(ValueError, match="experts must be two"):
        boundary_drift(pair[:1], PLATINUM)

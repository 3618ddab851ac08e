"""A displacement or shift function whose box is not the box given is refused in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import space

import moe_md as mm
from moe_md import simulate

EDGES = np.array([11.0, 12.0, 13.5])
SKEWED = np.array([[11.0, 3.0, 2.0], [0.0, 12.0, -4.0], [0.0, 0.0, 13.5]])  # columns, Å
ARGON = mm.experts.lennard_jones(("Ar",), 4.5, epsilon=0.0104, sigma=3.4)
POSITION = np.array([[1.0, 1.0, 1.0], [4.9, 1.2, 0.7], [1.1, 5.0, 1.4]])


def mixture(displacement_fn, box, **kwargs):
    return mm.mixture_neighbor_list(
        displacement_fn, box, [(ARGON, ARGON.init(None))], [0] * 3, mm.regions.fixed([0] * 3, 1), **kwargs
    )


def general(box, fractional=False):
    return space.periodic_general(box, fractional_coordinates=fractional)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_right_boxes_are_accepted(dtype):
    mixture(space.periodic(EDGES.astype(dtype))[0], EDGES)
    mixture(space.periodic(12.0)[0], 12.0)
    for fractional in (False, True):
        mixture(general(SKEWED.astype(dtype), fractional)[0], SKEWED, fractional_coordinates=fractional)
    with jax.enable_x64(False):
        mixture(general(SKEWED.astype(dtype))[0], SKEWED)
        jax.jit(lambda x: (mixture(space.periodic(EDGES)[0], EDGES), x)[1])(1.0)  # within a trace


WRONG = {
    "other edges": (space.periodic(EDGES + 0.01), EDGES, False),
    "half the edges": (space.periodic(0.5 * EDGES), EDGES, False),
    "a third": (space.periodic(EDGES / 3), EDGES, False),
    "twice the edges": (space.periodic(2 * EDGES), EDGES, False),
    "edges in another order": (space.periodic(EDGES[::-1]), EDGES, False),
    "open space": (space.free(), EDGES, False),
    "rows for columns": (general(SKEWED.T), SKEWED, False),
    "the cuboid": (space.periodic(EDGES), SKEWED, False),
    "fractions": (general(EDGES, True), EDGES, False),
    "Å for fractions": (general(EDGES), EDGES, True),
    "another box for fractions": (general(1.001 * SKEWED, True), SKEWED, True),
}


@pytest.mark.parametrize("name", WRONG)
def test_displacements_of_another_box_are_refused(name):
    (displacement_fn, _), box, fractional = WRONG[name]
    with pytest.raises(ValueError, match="displacement_fn must wrap by box, but .* from this box") as error:
        mixture(displacement_fn, box, fractional_coordinates=fractional)
    assert "\n" not in str(error.value)


def run(shift_fn, *, fractional=False, integrator=None):
    """Two steps in the skewed box."""
    displacement_fn = general(SKEWED, fractional)[0]
    neighbor_fn, energy_fn = mixture(displacement_fn, SKEWED, fractional_coordinates=fractional)
    position = np.linalg.solve(SKEWED, POSITION.T).T if fractional else POSITION
    integrator = integrator or simulate.nve(shift_fn, 1.0)
    state = simulate.start(
        integrator,
        jnp.asarray(position),
        masses=[40.0] * 3,
        velocity=np.zeros((3, 3)),
        key=jax.random.key(0),
        box=SKEWED if fractional else None,
    )
    return simulate.run(neighbor_fn, energy_fn, integrator, state, n_steps=2).state.step


def test_shifts_of_another_box_are_refused():
    shift_fn = space.periodic(EDGES)[1]
    for integrator in (None, simulate.freeze(simulate.nve(shift_fn, 1.0), np.eye(3, dtype=bool))):
        with pytest.raises(ValueError, match="shift_fn must wrap by the box of the energy"):
            run(shift_fn, integrator=integrator)
    with pytest.raises(ValueError, match="shift_fn must wrap by the box of the energy"):
        run(general(SKEWED)[1], fractional=True)  # positions in Å
    with pytest.raises(ValueError, match="shift_fn must wrap by the box of the energy"):
        simulate.relax(*mixture(general(SKEWED)[0], SKEWED), shift_fn, jnp.asarray(POSITION))


def test_right_shifts_are_accepted():
    """Without wrapping, positions leave the box, which the energy allows."""
    real, fractions = (
        mixture(general(SKEWED, fractional)[0], SKEWED, fractional_coordinates=fractional)[0]
        for fractional in (False, True)
    )
    for shift_fn in (general(SKEWED)[1], space.free()[1]):
        assert real.check_shift(shift_fn) is None
    for box in (None, jnp.asarray(SKEWED), 1.1 * SKEWED):
        assert fractions.check_shift(general(SKEWED, True)[1], box) is None
    with pytest.raises(ValueError, match="shift_fn"):
        fractions.check_shift(general(1.1 * SKEWED, True)[1])

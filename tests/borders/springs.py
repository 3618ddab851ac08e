"""Six atoms with springs between all of them, which compile quickly."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax_md import space

from moe_md import simulate

REST = np.array([[2, 0, 0], [-2, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 2], [0, 0, -2.0]]) + 10.0
FIRST, SECOND = np.triu_indices(6, 1)
LENGTH = np.linalg.norm(REST[FIRST] - REST[SECOND], axis=1)
MASSES = np.linspace(10.0, 20.0, 6)
BOX = 20.0


class NoList(NamedTuple):
    """Neighbours of an energy that needs none."""

    did_buffer_overflow: jax.Array

    def update(self, position, **kwargs):
        """The same."""
        return self


class NoLists:
    """A `neighbor_fn`."""

    @staticmethod
    def allocate(position, **kwargs):
        """Nothing."""
        return NoList(jnp.zeros((), bool))


def springs(R, *, neighbor, params=None, region=None, box=None, perturbation=None):
    """Springs of 1 eV/Å^2; positions are fractions of the box where it is given."""
    X = R if box is None else space.transform(box, R)  # forces in eV/Å
    d = X[FIRST] - X[SECOND]
    d = d if perturbation is None else d @ perturbation.T
    return 0.5 * jnp.sum((jnp.sqrt(jnp.sum(d**2, axis=1)) - LENGTH) ** 2)


FREE = space.free()[1]
FRACTIONS = space.periodic_general(BOX, fractional_coordinates=True)[1]
INTEGRATORS = {
    "nve": simulate.nve(FREE, 2.0),
    "langevin": simulate.langevin(FREE, 2.0, 300.0, 0.01),
    "nose_hoover": simulate.nose_hoover(FREE, 2.0, 300.0),
    "npt": simulate.npt(FRACTIONS, 2.0, 300.0, barostat_tau_fs=200.0),
}
ATOM_AND_Z = np.zeros((6, 3), bool)
ATOM_AND_Z[0], ATOM_AND_Z[1, 2] = True, True


class Record:
    """A reporter that keeps all frames and the state at a failure."""

    def __init__(self):
        self.frames, self.failed_at = [], None

    def __call__(self, frame):
        self.frames.append(frame)

    def on_failure(self, state):
        self.failed_at = state.step


def run(integrator, position=REST, *, n_steps=30, chunk_steps=10, record=None, limits=None, **start):
    """`simulate.run` of the springs; `npt` gets fractions and a box."""
    start = {"temperature_K": 300.0, "key": jax.random.key(0)} | start
    if integrator.changes_box:
        position, start["box"] = position / BOX, BOX
    state = simulate.start(integrator, jnp.asarray(position), masses=MASSES, **start)
    return simulate.run(
        NoLists,
        springs,
        integrator,
        state,
        n_steps=n_steps,
        chunk_steps=chunk_steps,
        reporters=[record or Record()],
        limits=limits or simulate.Limits(),
    )

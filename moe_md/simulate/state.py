"""What a run carries, reports and returns."""

from typing import Any, NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float, Int


class State(NamedTuple):
    """Where a trajectory stands."""

    dynamics: Any  # the integrator's state: position, momentum, force, mass
    step: int
    time_ps: float
    box: Float[Array, "3 3"] | None = None  # Å, columns; None where it was not given
    n_reallocations: int = 0  # of neighbour lists, so far
    work: float = 0.0  # eV, switching work accumulated so far by reassigning atoms
    # Current assignment of a region of `regions.reassigned`; None for other regions.
    gates: Float[Array, "atoms experts"] | None = None
    is_new: bool = False  # from `start`: no forces yet, and the first frame is still to be reported

    @property
    def position(self) -> Float[Array, "... atoms 3"]:
        """In the coordinates of the energy."""
        return self.dynamics.position

    @property
    def velocity(self) -> Float[Array, "... atoms 3"]:
        """ASE's unit."""
        return self.dynamics.velocity


class Frame(NamedTuple):
    """What a reporter receives after each chunk; host arrays."""

    step: int
    time_ps: float
    potential: float  # eV
    kinetic: float  # eV
    total: float  # eV
    temperature_K: float
    momentum: float  # norm of the total momentum, amu Å / (Å sqrt(amu / eV))
    conserved: float  # eV, conserved energy of the integrator, less `work`; NaN for Langevin dynamics
    pressure_GPa: float  # NaN where the integrator does not need it
    volume: float  # Å^3; NaN where the box was not given
    work: float  # eV, switching work accumulated so far
    n_reallocations: int  # of neighbour lists, so far
    position: Float[np.ndarray, "atoms 3"]  # fractions of the box where the energy takes those
    velocity: Float[np.ndarray, "atoms 3"]  # Å / (Å sqrt(amu / eV)), as ASE
    force: Float[np.ndarray, "atoms 3"]  # eV/Å
    box: Float[np.ndarray, "3 3"] | None  # Å, columns; None where it was not given


class Log(NamedTuple):
    """The scalars of every frame, one array each."""

    step: Int[np.ndarray, " frames"]
    time_ps: Float[np.ndarray, " frames"]
    potential: Float[np.ndarray, " frames"]  # eV
    kinetic: Float[np.ndarray, " frames"]  # eV
    total: Float[np.ndarray, " frames"]  # eV
    temperature_K: Float[np.ndarray, " frames"]
    momentum: Float[np.ndarray, " frames"]  # amu Å / (Å sqrt(amu / eV))
    conserved: Float[np.ndarray, " frames"]  # eV
    pressure_GPa: Float[np.ndarray, " frames"]
    volume: Float[np.ndarray, " frames"]  # Å^3
    work: Float[np.ndarray, " frames"]  # eV
    n_reallocations: Int[np.ndarray, " frames"]


class Result(NamedTuple):
    """A finished run; `state` and `neighbors` start the next one."""

    state: State
    neighbors: Any
    log: Log


def log_of(rows: list[tuple]) -> Log:
    """The log of rows of scalars, each in the order of `Log`."""
    columns = zip(*rows) if rows else [()] * len(Log._fields)
    counts = ("step", "n_reallocations")
    return Log(*(np.asarray(c, int if name in counts else float) for name, c in zip(Log._fields, columns)))


def joined(logs: list[Log]) -> Log:
    """One log after another."""
    return Log(*map(np.concatenate, zip(*logs)))

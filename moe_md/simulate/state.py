"""What a run carries, reports and returns."""

from typing import Any, NamedTuple

import numpy as np
from jax import Array


class State(NamedTuple):
    """Where a trajectory stands."""

    dynamics: Any  # the integrator's state: position, momentum, force, mass
    step: int
    time_ps: float
    box: Array | None = None  # [3, 3] Å, columns; None where it was not given
    n_reallocations: int = 0  # of neighbour lists, so far
    work: float = 0.0  # eV, switching work accumulated so far by reassigning atoms
    # [n_atoms, n_experts], current assignment of a region of `regions.reassigned`; None for other regions
    weights: Array | None = None
    is_new: bool = False  # from `start`: no forces yet, and the first frame is still to be reported

    @property
    def position(self) -> Array:
        """`[n_atoms, 3]`."""
        return self.dynamics.position

    @property
    def velocity(self) -> Array:
        """`[n_atoms, 3]`, ASE's unit."""
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
    position: np.ndarray  # [n_atoms, 3], fractions of the box where the energy takes those
    velocity: np.ndarray  # [n_atoms, 3] Å / (Å sqrt(amu / eV)), as ASE
    force: np.ndarray  # [n_atoms, 3] eV/Å
    box: np.ndarray | None  # [3, 3] Å, columns; None where it was not given


class Log(NamedTuple):
    """The scalars of every frame, one array each."""

    step: np.ndarray  # [n_frames] int
    time_ps: np.ndarray  # [n_frames]
    potential: np.ndarray  # [n_frames] eV
    kinetic: np.ndarray  # [n_frames] eV
    total: np.ndarray  # [n_frames] eV
    temperature_K: np.ndarray  # [n_frames]
    momentum: np.ndarray  # [n_frames] amu Å / (Å sqrt(amu / eV))
    conserved: np.ndarray  # [n_frames] eV
    pressure_GPa: np.ndarray  # [n_frames]
    volume: np.ndarray  # [n_frames] Å^3
    work: np.ndarray  # [n_frames] eV
    n_reallocations: np.ndarray  # [n_frames] int


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

"""How a run ends: a status under jit, one exception on the host."""

from enum import IntEnum
from typing import Any


class Status(IntEnum):
    """Why a jitted loop of steps stopped."""

    RUNNING = 0  # all steps were taken
    CONVERGED = 1  # a minimisation met its tolerance
    NON_FINITE = 2
    NEIGHBOR_OVERFLOW = 3

    @property
    def problem(self) -> str:
        """What went wrong, with fields `step` and `max_reallocations`."""
        return PROBLEMS[self]


PROBLEMS = {
    Status.RUNNING: "",
    Status.CONVERGED: "",
    Status.NON_FINITE: ("energy, forces and positions must stay finite, got NaN or infinity at step {step}."),
    Status.NEIGHBOR_OVERFLOW: (
        "neighbour lists must fit after max_reallocations = {max_reallocations} reallocations in one chunk, "
        "but they overflowed again at step {step}: atoms collapse onto each other, "
        "or capacity_multiplier is too small."
    ),
}


class SimulationError(RuntimeError):
    """A run that cannot go on; carries the last valid state."""

    def __init__(self, message: str, state: Any, log: Any = None):
        super().__init__(message)
        self.state = state  # the last valid `simulate.State`
        self.log = log  # `simulate.Log` up to that state; None without one

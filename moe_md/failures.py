"""How a run ends: a status under jit, one exception on the host, and signals."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
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


class Terminated(KeyboardInterrupt):
    """SIGTERM, where no loop waits for it: files are closed and locks released on its way."""


@contextmanager
def sigterm_as_exception() -> Generator[None]:
    """Raise `Terminated` at SIGTERM, so that what is open is closed.

    Changes nothing outside the main thread, or where SIGTERM is handled in another way than Python's.
    """
    ours = is_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def raise_terminated(number, frame) -> None:
    """The handler of SIGTERM inside `sigterm_as_exception`."""
    raise Terminated


def is_main_thread() -> bool:
    """Whether this is the thread that signals reach."""
    return threading.current_thread() is threading.main_thread()

"""The exception of a simulation that cannot continue."""

from typing import Any


class SimulationError(RuntimeError):
    """Raised where a simulation cannot continue, such as at non-finite values."""

    def __init__(self, message: str, state: Any, log: Any = None):
        super().__init__(message)
        self.state = state  # the last valid `simulate.State`
        self.log = log  # `simulate.Log` up to that state; None without one

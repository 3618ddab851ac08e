"""How a run ends that could not go on."""

from typing import Any


class SimulationError(RuntimeError):
    """Numbers went bad; `state` is the last good one, `log` what was logged."""

    def __init__(self, message: str, state: Any, log: Any = None):
        super().__init__(message)
        self.state = state  # `simulate.State`
        self.log = log  # `simulate.Log`, None where nothing was logged

"""Molecular dynamics and relaxation: a host loop over jitted chunks of steps."""

from moe_md.failures import SimulationError
from moe_md.renamed import missing_attribute
from moe_md.simulate.integrators import Evaluation, Integrator, langevin, nose_hoover, npt, nve
from moe_md.simulate.run import Frame, Log, Relaxation, Result, State, relax, run

__all__ = [
    "Evaluation",
    "Frame",
    "Integrator",
    "Log",
    "Relaxation",
    "Result",
    "SimulationError",
    "State",
    "langevin",
    "nose_hoover",
    "npt",
    "nve",
    "relax",
    "run",
]


def __getattr__(name: str):
    raise missing_attribute(__name__, name)

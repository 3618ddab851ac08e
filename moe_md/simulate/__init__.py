"""Molecular dynamics and relaxation: a host loop over jitted chunks of steps."""

from moe_md.failures import SimulationError, Status
from moe_md.renamed import missing_attribute
from moe_md.simulate.integrators import (
    Evaluation,
    Integrator,
    expert_friction,
    freeze,
    langevin,
    nose_hoover,
    npt,
    nve,
    respa,
)
from moe_md.simulate.interrupts import stop_requests
from moe_md.simulate.limits import Limits
from moe_md.simulate.reassign import run_reassigned
from moe_md.simulate.relax import Relaxation, relax
from moe_md.simulate.run import FailureReporter, StateReporter, run
from moe_md.simulate.start import adopt, start
from moe_md.simulate.state import Frame, Log, Result, State
from moe_md.simulate.step import md_step

__all__ = [
    "Evaluation",
    "FailureReporter",
    "Frame",
    "Integrator",
    "Limits",
    "Log",
    "Relaxation",
    "Result",
    "SimulationError",
    "State",
    "StateReporter",
    "Status",
    "adopt",
    "expert_friction",
    "freeze",
    "langevin",
    "md_step",
    "nose_hoover",
    "npt",
    "nve",
    "relax",
    "respa",
    "run",
    "run_reassigned",
    "start",
    "stop_requests",
]


def __getattr__(name: str):
    raise missing_attribute(__name__, name)

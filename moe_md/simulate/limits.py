"""Limits beyond which a run has left physics, checked on the host after each chunk of steps."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moe_md import units
from moe_md.checks import check_limits, check_value
from moe_md.simulate.state import Frame

MIN_ENERGY_CHANGE = 1e-3  # eV/atom, smaller changes are rounding or the time step's, also at rest
MAX_NAMED = 5  # atoms in a message


@dataclass(frozen=True)
class Limits:
    """What ends a run with `SimulationError`; infinity turns a limit off.

    The energy is the conserved one of the integrator, without switching work. It
    may leave its start by neither `max_energy_change_eV_per_atom` nor
    `max_energy_change_factor` times the largest kinetic energy so far. The
    temperature may pass one of `max_temperature_K` and `max_temperature_factor`
    times the thermostat's or the first temperature, but not both.

    Raises:
        ValueError: a limit is not positive.
    """

    max_energy_change_eV_per_atom: float = 0.1
    max_energy_change_factor: float = 1.0
    max_temperature_factor: float = 10.0
    max_temperature_K: float = 1000.0
    max_move_A: float = 0.4  # Å in one step; the default skin of neighbour lists

    def __post_init__(self):
        for name, value in vars(self).items():
            check_value(name, value, float, finite=False)
            check_limits(name, value, positive=True)


class Reference(NamedTuple):
    """What later frames are compared with."""

    conserved: float  # eV
    max_kinetic: float  # eV, so far
    temperature_K: float  # the thermostat's, or the first one where that is higher


def reference_of(frame: Frame, target_temperature_K: float) -> Reference:
    """The reference of a run that starts at this frame."""
    return Reference(frame.conserved, frame.kinetic, max(frame.temperature_K, target_temperature_K))


def updated(reference: Reference, frame: Frame) -> Reference:
    """The reference after one more frame."""
    return reference._replace(max_kinetic=max(reference.max_kinetic, frame.kinetic))


def exceeded(limits: Limits, reference: Reference, frame: Frame, timestep_fs: float) -> str:
    """What is wrong with a frame, and which atoms are the fastest; empty where nothing is.

    Args:
        limits: of the run.
        reference: from `reference_of`.
        frame: the newest.
        timestep_fs: length of a step.
    """
    n_atoms = len(frame.position)
    reference = updated(reference, frame)
    change = frame.conserved - reference.conserved
    of_kinetic = limits.max_energy_change_factor * reference.max_kinetic
    allowed = min(
        limits.max_energy_change_eV_per_atom * n_atoms, max(of_kinetic, MIN_ENERGY_CHANGE * n_atoms)
    )
    hottest = max(limits.max_temperature_K, limits.max_temperature_factor * reference.temperature_K)
    move = np.linalg.norm(frame.velocity, axis=1) * timestep_fs * units.fs  # [n_atoms] Å
    if move.max() > limits.max_move_A:
        problem = (
            f"no atom may move by more than max_move_A = {limits.max_move_A:g} Å in a step, "
            f"but one moves by {move.max():.3g} Å"
        )
    elif frame.temperature_K > hottest:
        problem = (
            f"the temperature must stay below {hottest:.6g} K (max_temperature_factor = "
            f"{limits.max_temperature_factor:g}, max_temperature_K = {limits.max_temperature_K:g}), "
            f"but is {frame.temperature_K:.6g} K"
        )
    elif abs(change) > allowed:  # False where no energy is conserved: NaN
        problem = (
            f"the conserved energy must stay within {allowed:.4g} eV of its start "
            f"(max_energy_change_eV_per_atom = {limits.max_energy_change_eV_per_atom:g}, "
            f"max_energy_change_factor = {limits.max_energy_change_factor:g} times the kinetic energy), "
            f"but changed by {change:+.4g} eV"
        )
    else:
        return ""
    return f"{problem} at step {frame.step}. The fastest: {named(move)}."


def named(size: np.ndarray) -> str:
    """The atoms with the largest values, numbered from 0: those of at least half the largest."""
    order = np.argsort(-size, kind="stable")
    chosen = [int(i) for i in order[:MAX_NAMED] if size[i] >= 0.5 * size[order[0]]]
    return f"atom{'s' * (len(chosen) > 1)} {', '.join(map(str, chosen))} (counted from 0)"

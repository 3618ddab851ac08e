"""Molecular dynamics on several devices: a host loop over jitted chunks of steps."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from moe_md import units
from moe_md.checks import check_count
from moe_md.distributed.builder import DomainDecomposition
from moe_md.distributed.partition import Atoms, State
from moe_md.experts.base import Params
from moe_md.simulate import interrupts
from moe_md.simulate.integrators import Integrator


class Frame(NamedTuple):
    """A record for reporters, with the fields of `simulate.Frame`."""

    step: int
    time_ps: float  # step times the time step
    potential: float  # eV
    kinetic: float  # eV
    total: float  # eV
    temperature_K: float
    momentum: float  # norm of the total momentum, amu Å / (Å sqrt(amu / eV))
    conserved: float  # eV; NaN for Langevin dynamics
    n_reallocations: int
    position: Float[np.ndarray, "atoms 3"] | None = None  # Å; None in a `Result`
    velocity: Float[np.ndarray, "atoms 3"] | None = None
    force: Float[np.ndarray, "atoms 3"] | None = None
    box: Float[np.ndarray, "3 3"] | None = None  # Å, columns
    pressure_GPa: float = np.nan
    volume: float = np.nan
    work: float = 0.0


class Result(NamedTuple):
    """Final state and records of a run."""

    state: State
    frames: tuple[Frame, ...]  # without arrays


def run(
    decomposition: DomainDecomposition,
    state: State,
    integrator: Integrator,
    *,
    n_steps: int,
    params: Sequence[Params] | None = None,
    chunk_steps: int = 50,
    reporters: Sequence[Callable] = (),
    stop_fn: Callable[[], str] = interrupts.never,
) -> Result:
    """Molecular dynamics that starts from a state.

    Args:
        decomposition: from `mixture`.
        state: from `scatter`, or from an earlier result.
        integrator: `nve` or `langevin`; its `shift_fn` is not used: positions are
            wrapped into the box where lists are built.
        n_steps: steps to take.
        params: default the builder's.
        chunk_steps: steps between checks for overflow, and between frames.
        reporters: called with a `Frame` at the start and after each chunk.
        stop_fn: as in `simulate.run`.

    Returns:
        The last state, and a frame for the start and each chunk.

    Raises:
        ValueError: an argument is out of range.
        SimulationError: values are not finite, atoms move too fast, or capacities do not
            suffice after several reallocations.
    """
    check_count("n_steps", n_steps, 0)
    check_count("chunk_steps", chunk_steps, 1)
    frames, n_reallocations, done, in_domain = [], 0, 0, True
    with interrupts.deferred_sigint() as check_interrupt:
        while True:
            check_interrupt()
            n = min(chunk_steps, n_steps - done) if frames else 0
            state, grew = decomposition.advance(state, integrator, n, params, first=not frames)
            n_reallocations, done = n_reallocations + grew, done + n
            in_domain = in_domain and decomposition.check_domains(state)
            frame = _frame(decomposition.gather(state), state, integrator, n_reallocations)
            for report in reporters:
                report(frame)
            frames.append(frame._replace(position=None, velocity=None, force=None))
            if done >= n_steps or stop_fn():
                return Result(state, tuple(frames))


def _frame(atoms: Atoms[np.ndarray], state: State, integrator, n_reallocations: int) -> Frame:
    momentum, mass = np.asarray(atoms.momentum, float), np.asarray(atoms.mass, float)
    kinetic, step = float(0.5 * np.sum(momentum**2 / mass)), int(np.asarray(state.n_steps)[0])
    total = state.potential + kinetic
    n_free = momentum.size - (3 if integrator.conserves_momentum and len(mass) > 1 else 0)
    return Frame(
        step=step,
        time_ps=1e-3 * integrator.timestep_fs * step,
        potential=state.potential,
        kinetic=kinetic,
        total=total,
        temperature_K=2 * kinetic / (n_free * units.kB),
        momentum=float(np.linalg.norm(momentum.sum(axis=0))),
        conserved=total + float(integrator.extended_energy(atoms)),
        n_reallocations=n_reallocations,
        position=atoms.position,
        velocity=atoms.velocity,
        force=atoms.force,
    )

"""Molecular dynamics: a host loop over jitted chunks of steps.

Neighbour lists are updated at the positions where the force is evaluated. A list
updated one step late, the usual loop, may miss pairs.

Pure: no files, no printing. Reporters (`moe_md.reporters`) write.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from moe_md import units
from moe_md.checks import check_count
from moe_md.failures import SimulationError
from moe_md.simulate.advance import Chunk, System, advance, advice, allocate, check_shift, place_of
from moe_md.simulate.integrators.base import Integrator, degrees_of_freedom
from moe_md.simulate.interrupts import deferred_sigint, never
from moe_md.simulate.limits import Limits, exceeded, reference_of, updated
from moe_md.simulate.start import adopt
from moe_md.simulate.state import Frame, Log, Result, State, log_of

CHUNK_STEPS = 50
DOMAIN_CHECK_STEPS = 100  # a check of domains costs as much as a step of the cheap expert
DEFAULT_LIMITS = Limits()


@runtime_checkable
class StateReporter(Protocol):
    """A reporter that also wants the `State` and the neighbours: a run from both continues bit for bit."""

    def on_state(self, state: State, neighbors) -> None:
        """Called when all reporters have received the `Frame` of this state."""


@runtime_checkable
class FailureReporter(Protocol):
    """A reporter that wants the last valid `State` when a run fails or is interrupted."""

    def on_failure(self, state: State) -> None:
        """Called before `SimulationError` or `KeyboardInterrupt` is raised."""


@runtime_checkable
class ChecksDomains(Protocol):
    """A `neighbor_fn` that knows its experts' domains, as that of `mixture_neighbor_list`."""

    def check_domains(self, position: Float[ArrayLike, "atoms 3"], neighbors, **kwargs) -> bool:
        """Whether every row is in its expert's domain; warns otherwise."""


def run(
    neighbor_fn,
    energy_fn: Callable,
    integrator: Integrator,
    state: State,
    *,
    n_steps: int,
    neighbors=None,
    params=None,
    region=None,
    chunk_steps: int | None = None,
    reporters: Sequence[Callable] = (),
    max_reallocations: int = 8,
    limits: Limits = DEFAULT_LIMITS,
    stop_fn: Callable[[], str] = never,
) -> Result:
    """Molecular dynamics.

    Nothing is compiled after the first chunk, unless a list had to be
    reallocated: time step, temperature, friction, `params`, `region` and the
    length of the last chunk are data. Pass `neighbors` of an earlier result to
    the next run: a newly allocated list may have another shape.

    Args:
        neighbor_fn: with `allocate`, from `mixture_neighbor_list`.
        energy_fn: `energy_fn(R, neighbor=..., params=..., region=...)` in eV.
        integrator: from `nve`, `langevin`, `nose_hoover`, `npt` or `respa`;
            `freeze` holds atoms still.
        state: from `start`, or of an earlier result, under the same integrator
            or another one.
        n_steps: steps to take.
        neighbors: lists to use; default new ones.
        params, region: default the builder's.
        chunk_steps: steps between checks of the flags, and between frames;
            default 50, or the next multiple of `integrator.outer_every`.
        reporters: called with a `Frame` at the start (of a state from `start`) and
            after each chunk. Its methods `on_state` (`StateReporter`) and
            `on_failure` (`FailureReporter`) are called too, if it has them.
        max_reallocations: of the lists, in a single chunk.
        limits: of energy, temperature and speed, checked after each chunk.
        stop_fn: asked after each chunk; the run ends there if it returns a text, as
            that of `stop_requests` does at SIGTERM or after a number of hours.

    Returns:
        Last state, its neighbours, and the log. Temperatures count 3 n_atoms
        degrees of freedom, less those that `freeze` fixes, less the 3 of the total
        momentum where the integrator conserves it.

    Raises:
        ValueError: an argument is missing, of the wrong shape, or out of range; or
            the integrator's `shift_fn` does not wrap by the box of the energy.
        SimulationError: energy or positions are not finite, lists overflow again
            and again, or a limit is passed; its state is that of the last chunk
            within the limits.

    >>> import jax
    >>> import moe_md as mm
    >>> from ase.build import bulk
    >>> from jax_md import space
    >>> atoms = bulk("Ar", "fcc", 5.3, cubic=True).repeat(2)
    >>> argon = mm.experts.lennard_jones(("Ar",), 5.0, epsilon=0.0104, sigma=3.4)
    >>> displacement_fn, shift_fn = space.periodic(10.6)
    >>> mixture = mm.mixture_neighbor_list(
    ...     displacement_fn, 10.6, [(argon, argon.init(None))], [0] * 32, mm.regions.fixed([0] * 32, 1)
    ... )
    >>> nve = mm.simulate.nve(shift_fn, 5.0)
    >>> state = mm.simulate.start(
    ...     nve, atoms.positions, masses=atoms.get_masses(), temperature_K=30.0, key=jax.random.key(0)
    ... )
    >>> mm.simulate.run(*mixture, nve, state, n_steps=10).state.step
    10
    """
    check_count("n_steps", n_steps, 0)
    check_count("max_reallocations", max_reallocations, 0)
    chunk_steps = checked_chunk_steps(chunk_steps, integrator, n_steps=n_steps)
    system = System(neighbor_fn, energy_fn, integrator, params, region, max_reallocations)
    # The assignment of an earlier `run_reassigned` ends here.
    start = _checked_state(state, integrator)._replace(gates=None)
    return drive(system, start, neighbors, n_steps, chunk_steps, reporters, limits, stop_fn)


def drive(
    system: System,
    start: State,
    neighbors,
    n_steps: int,
    chunk_steps: int,
    reporters: Sequence[Callable],
    limits: Limits,
    stop_fn: Callable[[], str],
    before_chunk: Callable | None = None,
) -> Result:
    """The loop of a run.

    Args:
        system: functions, integrator, params and region.
        start: where the run starts.
        neighbors: lists, None to allocate them.
        n_steps, chunk_steps, reporters, limits, stop_fn: as in `run`.
        before_chunk: `(state, chunk, n) -> (state, neighbors, n)`, called before
            each chunk of at most `n` steps; may reassign atoms and shorten it.
    """
    check_shift(system, start)
    frames: list[tuple] = []
    last_valid, is_new, in_domain = start, start.is_new, True
    checked_at: int | None = None  # step of the last check of domains
    timestep_fs = float(system.integrator.timestep_fs)

    def report(state: State, chunk: Chunk, frame: Frame) -> None:
        frames.append(tuple(getattr(frame, name) for name in Log._fields))
        for reporter in reporters:
            reporter(frame)
        for reporter in reporters:
            if isinstance(reporter, StateReporter):
                reporter.on_state(state, chunk.neighbors)

    try:
        with deferred_sigint() as check_interrupt:
            if neighbors is None:
                neighbors = allocate(system, start)
            # Forces of the first positions; also of a run that continues, as params may be new.
            last_valid, chunk = advance(system, last_valid, neighbors, True, 0)
            frame, done = frame_of(system.integrator, last_valid, chunk), 0
            reference = reference_of(frame, float(system.integrator.target_temperature_K))
            _check(limits, reference, frame, timestep_fs, last_valid)
            while True:
                check_interrupt()
                stopped = False
                if done % chunk_steps == 0 or done == n_steps:
                    is_due = checked_at is None or done - checked_at >= DOMAIN_CHECK_STEPS or done == n_steps
                    if in_domain and is_due:
                        in_domain = _check_domains(system, last_valid, chunk.neighbors)
                        checked_at = done
                    if done > 0 or is_new:
                        report(last_valid, chunk, frame)
                    stopped = bool(stop_fn())
                if stopped or done == n_steps:
                    return Result(last_valid, chunk.neighbors, log_of(frames))
                n, neighbors = min(chunk_steps - done % chunk_steps, n_steps - done), chunk.neighbors
                if before_chunk is not None:
                    last_valid, neighbors, n = before_chunk(last_valid, chunk, n)
                end, chunk = advance(system, last_valid, neighbors, False, n)
                frame = frame_of(system.integrator, end, chunk)
                _check(limits, reference, frame, timestep_fs, last_valid)
                last_valid, reference = end, updated(reference, frame)
                done += n
    except (SimulationError, KeyboardInterrupt) as error:
        if isinstance(error, SimulationError):
            error.log = log_of(frames)
        for reporter in reporters:
            if isinstance(reporter, FailureReporter):
                reporter.on_failure(last_valid)
        raise


def checked_chunk_steps(chunk_steps: int | None, integrator: Integrator, **counts) -> int:
    """Steps per chunk; raises `ValueError` where a count is no multiple of `integrator.outer_every`."""
    every = integrator.outer_every
    if chunk_steps is None:
        chunk_steps = -(-CHUNK_STEPS // every) * every
    check_count("chunk_steps", chunk_steps, 1)
    for name, count in {**counts, "chunk_steps": chunk_steps}.items():
        if count % every:
            raise ValueError(f"{name} must be a multiple of outer_every = {every}, got {count}.")
    return chunk_steps


def frame_of(integrator: Integrator, state: State, chunk: Chunk) -> Frame:
    """What reporters receive."""
    momentum, mass = np.asarray(state.dynamics.momentum, float), np.asarray(state.dynamics.mass, float)
    kinetic = float(0.5 * np.sum(momentum**2 / mass))
    total = float(chunk.energy) + kinetic
    volume = np.nan if state.box is None else volume_of(state.box)
    virial = float(np.trace(np.asarray(chunk.strain_gradient, float)))
    free = degrees_of_freedom(len(momentum), integrator.conserves_momentum, integrator.fixed_mask)
    return Frame(
        step=state.step,
        time_ps=state.time_ps,
        potential=float(chunk.energy),
        kinetic=kinetic,
        total=total,
        temperature_K=2 * kinetic / (free * units.kB),
        momentum=float(np.linalg.norm(momentum.sum(axis=0))),
        conserved=total + float(integrator.extended_energy(state.dynamics)) - state.work,
        pressure_GPa=(2 * kinetic - virial) / (3 * volume) / units.GPa,
        volume=volume,
        work=state.work,
        n_reallocations=state.n_reallocations,
        position=np.asarray(state.position),
        velocity=np.asarray(state.velocity),
        force=np.asarray(chunk.force),
        box=None if state.box is None else np.asarray(state.box, float),
    )


def _check(limits: Limits, reference, frame: Frame, timestep_fs: float, last_valid: State) -> None:
    problem = exceeded(limits, reference, frame, timestep_fs)
    if problem:
        velocities = f"Correct the velocities, or use a shorter timestep_fs (now {timestep_fs:g})."
        remedy = advice(frame.step, timestep_fs) if frame.step else velocities
        raise SimulationError(
            f"{problem} {remedy} If this is meant, raise the limit. "
            f"The last valid state, step {last_valid.step}, is in the error's `state`.",
            last_valid,
        )


def volume_of(box: Float[ArrayLike, "3 3"]) -> float:
    """Å^3."""
    return abs(np.linalg.det(np.asarray(box, float)))


def _checked_state(state: Any, integrator: Integrator) -> State:
    if not isinstance(state, State):
        raise ValueError(
            f"state must be of simulate.start or of an earlier result, got {type(state).__name__}: "
            "simulate.start(integrator, position, masses=..., temperature_K=..., key=...)."
        )
    return state if state.is_new else adopt(integrator, state)


def _check_domains(system: System, state: State, neighbors) -> bool:
    """Whether every row is in its expert's domain; warns otherwise."""
    if not isinstance(system.neighbor_fn, ChecksDomains):
        return True
    position, keywords = place_of(system, state)
    return system.neighbor_fn.check_domains(position, neighbors, **keywords)

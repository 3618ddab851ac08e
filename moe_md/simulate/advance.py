"""A chunk of steps: the jitted loop, and reallocation where neighbour lists overflow.

An overflowed list gives wrong forces, not an exception. The jitted loop stops
at the first overflow or non-finite value. The host then allocates larger lists at
the positions that did not fit, returns to the last valid state and repeats the
chunk.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Real

from moe_md import memory
from moe_md.compiler import fast_jit
from moe_md.failures import SimulationError, Status
from moe_md.simulate.integrators.base import Integrator, without_wrapping
from moe_md.simulate.limits import MAX_NAMED
from moe_md.simulate.state import State
from moe_md.simulate.step import md_step


class System(NamedTuple):
    """What stays the same during a run."""

    neighbor_fn: Any
    energy_fn: Callable
    integrator: Integrator
    params: Any = None
    region: Any = None
    max_reallocations: int = 8


class Chunk(NamedTuple):
    """State of the jitted loop."""

    state: Any  # the integrator's
    neighbors: Any
    energy: Float[Array, ""]  # eV
    strain_gradient: Float[Array, "3 3"]  # eV; NaN where the integrator does not need it
    force: Float[Array, "atoms 3"]  # eV/Å
    last: Int[Array, ""]  # the last step tried
    status: Int[Array, ""]  # a `Status`


def given(**kwargs) -> dict:
    """The keyword arguments that are not None."""
    return {name: value for name, value in kwargs.items() if value is not None}


def current_region(region, state: State) -> Any:
    """The region in force; the assignment of a reassigned one is part of the state."""
    return region if state.gates is None else replace(region, gates=state.gates)


def place_of(system: System, state: State) -> tuple[Float[Array | np.ndarray, "atoms 3"], dict]:
    """Positions, and `region` and `box` as keyword arguments."""
    position, box = system.integrator.positions_and_box(state.dynamics, state.box)
    return position, given(region=current_region(system.region, state), box=box)


@runtime_checkable
class ChecksShift(Protocol):
    """A `neighbor_fn` that knows its box, as that of `mixture_neighbor_list`."""

    def check_shift(self, shift_fn: Callable, box: Real[ArrayLike, "3 3"] | None = None) -> None:
        """Raise `ValueError` where a shift function does not wrap by the box."""


def check_shift(system: System, state: State) -> None:
    """Raise `ValueError` where the integrator wraps positions by another box than that of the energy."""
    shift_fn = getattr(system.integrator, "shift_fn", None)  # wrappers have that of what they wrap
    if shift_fn not in (None, without_wrapping) and isinstance(system.neighbor_fn, ChecksShift):
        system.neighbor_fn.check_shift(shift_fn, state.box)


def allocate(system: System, state: State, **kwargs) -> Any:
    """New neighbour lists for a state."""
    position, keywords = place_of(system, state)
    with memory.naming(_memory_remedy(system)):
        return system.neighbor_fn.allocate(position, **keywords, **kwargs)


def _memory_remedy(system: System) -> str:
    return memory.of_chunk_size(getattr(system.neighbor_fn, "chunk_size", None))


@partial(fast_jit, static_argnums=0)
def advance_chunk(
    energy_fn: Callable,
    integrator: Integrator,
    state,
    neighbors,
    params,
    region,
    box: Real[Array | np.ndarray, "3 3"] | None,
    first: Bool[ArrayLike, ""],
    n_steps: Int[ArrayLike, ""],
    tolerance: Float[ArrayLike, ""] = 0.0,
) -> Chunk:
    """`n_steps` steps, fewer where something stops them.

    Args:
        energy_fn: of a mixture.
        integrator: its numbers are traced.
        state: the integrator's.
        neighbors: lists with capacity for all steps, else the status tells.
        params, region, box: as the energy takes them, or None.
        first: evaluate the forces of the given positions before the steps.
        n_steps: at most so many.
        tolerance: eV/Å, largest force at which the loop ends as converged.
    """
    dtype = state.position.dtype

    def step(chunk: Chunk) -> Chunk:
        k = chunk.last + 1

        def evaluate(position, box):
            neighbors = chunk.neighbors.update(position, **given(region=region, box=box))
            keywords = given(params=params, region=region, box=box)
            return integrator.evaluate(energy_fn, k, position, neighbor=neighbors, **keywords), neighbors

        state, _, evaluation, neighbors = md_step(
            integrator, chunk.state, box, evaluate, only_evaluate=k == 0
        )
        slope = evaluation.strain_gradient
        return Chunk(
            state,
            neighbors,
            evaluation.energy.astype(dtype),
            chunk.strain_gradient if slope is None else slope.astype(dtype),
            evaluation.force.astype(dtype),
            k,
            _status(state, neighbors, evaluation, tolerance),
        )

    def goes_on(chunk: Chunk) -> Array:
        return (chunk.last < n_steps) & (chunk.status == Status.RUNNING)

    position, _ = integrator.positions_and_box(state, box)
    begin = Chunk(
        state,
        neighbors,
        jnp.zeros((), dtype),
        jnp.full((3, 3), jnp.nan, dtype),
        jnp.zeros_like(position),
        jnp.where(first, -1, 0).astype(jnp.int32),
        jnp.asarray(Status.RUNNING, jnp.int32),
    )
    return jax.lax.while_loop(goes_on, step, begin)


def _status(state, neighbors, evaluation, tolerance) -> Array:
    values = (evaluation.energy, state.position, evaluation.applied_force)
    values += () if evaluation.strain_gradient is None else (evaluation.strain_gradient,)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in values]))
    converged = jnp.max(jnp.sum(state.force**2, axis=1)) < tolerance**2
    # The most serious one counts.
    status = jnp.where(converged, Status.CONVERGED, Status.RUNNING)
    status = jnp.where(finite, status, Status.NON_FINITE)
    overflow = jnp.asarray(neighbors.did_buffer_overflow, bool)
    return jnp.where(overflow, Status.NEIGHBOR_OVERFLOW, status).astype(jnp.int32)


def advance(
    system: System, last_valid: State, neighbors, first: bool, n_steps: int, tolerance: float = 0.0
) -> tuple[State, Chunk]:
    """One chunk from the last valid state, with neighbour lists reallocated as often as necessary.

    Returns:
        The state after the chunk, and how the chunk ended.

    Raises:
        SimulationError: a value is not finite, lists overflow too often, or memory runs out.
    """
    try:
        with memory.naming(_memory_remedy(system)):
            return _advance(system, last_valid, neighbors, first, n_steps, tolerance)
    except MemoryError as error:
        raise SimulationError(f"after step {last_valid.step} {error}", last_valid) from error


def _advance(
    system: System, last_valid: State, neighbors, first: bool, n_steps: int, tolerance: float
) -> tuple[State, Chunk]:
    """What `advance` returns."""
    start, at = last_valid, last_valid.step
    position, keywords = place_of(system, start)
    integrator = system.integrator.at_chunk_start(position, neighbors, **keywords)
    region = current_region(system.region, start)
    for _ in range(system.max_reallocations + 1):
        chunk = advance_chunk(
            system.energy_fn,
            integrator,
            start.dynamics,
            neighbors,
            system.params,
            region,
            start.box,
            first,
            n_steps,
            float(tolerance),
        )
        taken, status = max(int(chunk.last), 0), Status(int(chunk.status))
        at = start.step + taken
        if status is Status.NON_FINITE:
            raise failed(system, status, at, last_valid, chunk)
        if status is not Status.NEIGHBOR_OVERFLOW:
            # Added chunk by chunk, so that a resumed run reports the same time.
            time_ps = start.time_ps + 1e-3 * taken * integrator.timestep_fs
            box = integrator.positions_and_box(chunk.state, start.box)[1]
            end = start._replace(dynamics=chunk.state, step=at, time_ps=time_ps, box=box, is_new=False)
            return end, chunk
        # Only the list was too small: this position itself comes from valid forces.
        reached = start._replace(dynamics=chunk.state)
        if not bool(jnp.all(jnp.isfinite(chunk.state.position))):
            break
        try:
            neighbors = allocate(system, reached, extra_capacity=4 * start.n_reallocations)
        except ValueError as error:
            raise SimulationError(
                f"neighbour lists must be possible, but at step {at}: {error}", last_valid
            ) from error
        start = start._replace(n_reallocations=start.n_reallocations + 1)
    raise failed(system, Status.NEIGHBOR_OVERFLOW, at, last_valid)


def failed(
    system: System, status: Status, step: int, last_valid: State, chunk: Chunk | None = None
) -> SimulationError:
    """The error of a run that a status ended; the chunk tells which atoms are not finite."""
    problem = status.problem.format(step=step, max_reallocations=system.max_reallocations)
    atoms = "" if chunk is None else _not_finite(chunk)
    return SimulationError(
        f"{problem} {atoms}{advice(step, float(system.integrator.timestep_fs))} "
        f"The last valid state, step {last_valid.step}, is in the error's `state`.",
        last_valid,
    )


def advice(step: int, timestep_fs: float) -> str:
    """What to change where a run failed at a step; the time step of a minimisation is zero."""
    if step == 0:
        return "Change the starting positions: atoms may overlap, or params may not be finite."
    if timestep_fs == 0:
        return "Start the relaxation from positions with smaller forces."
    return (
        f"Try a shorter timestep_fs (now {timestep_fs:g}), relax first, "
        "or train on configurations like the last ones: they may lie outside the experts' training."
    )


def _not_finite(chunk: Chunk) -> str:
    """The first atoms whose force is not finite, as a sentence; empty where it is that of none or of all."""
    wrong = np.flatnonzero(~np.isfinite(np.asarray(chunk.force)).all(axis=1))
    if len(wrong) in (0, len(chunk.force)):
        return ""
    more = ", ..." if len(wrong) > MAX_NAMED else ""
    return f"Atoms {', '.join(map(str, wrong[:MAX_NAMED]))}{more} (counted from 0) have no finite force. "

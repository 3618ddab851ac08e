"""A chunk of steps: the jitted loop, and reallocation where neighbour lists overflow.

An overflowed list gives wrong forces, not an exception. The jitted loop stops
at the first overflow or non-finite value. The host then allocates larger lists at
the positions that did not fit, returns to the last valid state and repeats the
chunk.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from moe_md.failures import SimulationError, Status
from moe_md.simulate.integrators.base import Integrator
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
    energy: Array  # eV
    strain_gradient: Array  # [3, 3] eV; NaN where the integrator does not need it
    force: Array  # [n_atoms, 3] eV/Å
    last: Array  # int, the last step tried
    status: Array  # int, a `Status`


def given(**kwargs) -> dict:
    """The keyword arguments that are not None."""
    return {name: value for name, value in kwargs.items() if value is not None}


def current_region(region, state: State):
    """The region in force; the assignment of a reassigned one is part of the state."""
    return region if state.weights is None else replace(region, weights=state.weights)


def place_of(system: System, state: State) -> tuple[Array, dict]:
    """Positions, and `region` and `box` as keyword arguments."""
    position, box = system.integrator.positions_and_box(state.dynamics, state.box)
    return position, given(region=current_region(system.region, state), box=box)


def allocate(system: System, state: State, **kwargs):
    """New neighbour lists for a state."""
    position, keywords = place_of(system, state)
    return system.neighbor_fn.allocate(position, **keywords, **kwargs)


@partial(jax.jit, static_argnums=0)
def advance_chunk(
    energy_fn: Callable,
    integrator: Integrator,
    state,
    neighbors,
    params,
    region,
    box,
    first,
    n_steps,
    tolerance=0.0,
) -> Chunk:
    """`n_steps` steps, fewer where something stops them.

    Args:
        energy_fn: of a mixture.
        integrator: its numbers are traced.
        state: the integrator's.
        neighbors: lists with capacity for all steps, else the status tells.
        params, region, box: as the energy takes them, or None.
        first: bool, evaluate the forces of the given positions before the steps.
        n_steps: int.
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
        SimulationError: a value is not finite, or lists overflow too often.
    """
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
            raise failed(system, status, at, last_valid)
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


def failed(system: System, status: Status, step: int, last_valid: State) -> SimulationError:
    """The error of a run that a status ended."""
    integrator = system.integrator
    if step == 0:
        advice = "Change the starting positions: atoms may overlap, or params may not be finite."
    elif integrator.timestep_fs == 0:
        advice = "Start the relaxation from positions with smaller forces."
    else:
        advice = (
            f"Try a shorter timestep_fs (now {float(integrator.timestep_fs):g}), relax first, "
            "or train on configurations like the last ones: they may lie outside the experts' training."
        )
    return SimulationError(
        f"{status.problem.format(step=step, max_reallocations=system.max_reallocations)} {advice} "
        f"The last valid state, step {last_valid.step}, is in the error's `state`.",
        last_valid,
    )

"""Dynamics in which atoms switch expert at once, at fixed intervals."""

from collections.abc import Callable, Sequence

from moe_md.checks import check_count
from moe_md.regions.reassigned import Reassigned
from moe_md.simulate.advance import Chunk, System, advance, allocate, place_of
from moe_md.simulate.integrators.base import Integrator
from moe_md.simulate.interrupts import never
from moe_md.simulate.limits import Limits
from moe_md.simulate.run import DEFAULT_LIMITS, checked_chunk_steps, drive
from moe_md.simulate.start import adopt
from moe_md.simulate.state import Result, State


def run_reassigned(
    neighbor_fn,
    energy_fn: Callable,
    integrator: Integrator,
    state: State,
    region: Reassigned,
    *,
    n_steps: int,
    reassign_every: int,
    neighbors=None,
    params=None,
    chunk_steps: int | None = None,
    reporters: Sequence[Callable] = (),
    max_reallocations: int = 8,
    limits: Limits = DEFAULT_LIMITS,
    stop_fn: Callable[[], str] = never,
) -> Result:
    """As `run`, with the atoms of a region reassigned every so many steps.

    Reassignment changes the energy at fixed positions. That switching work is
    accumulated in `work` of frames, log and state, and left out of `conserved`.

    Args:
        neighbor_fn, energy_fn: from `mixture_neighbor_list`, built with `region.region`.
        integrator, state, n_steps, neighbors, params: as in `run`.
        chunk_steps, reporters, max_reallocations, limits, stop_fn: as in `run`.
        region: from `regions.reassigned`.
        reassign_every: steps between reassignments, a multiple of
            `integrator.outer_every`.

    Returns:
        As `run`; the state holds the current assignment.

    Raises:
        ValueError, SimulationError: as `run`.
    """
    check_count("n_steps", n_steps, 0)
    check_count("reassign_every", reassign_every, 1)
    check_count("max_reallocations", max_reallocations, 0)
    if not isinstance(region, Reassigned):
        raise ValueError(f"region must be of regions.reassigned, got {region!r:.80}.")
    if not hasattr(neighbor_fn, "assign"):
        raise ValueError("neighbor_fn must be of mixture_neighbor_list.")
    chunk_steps = checked_chunk_steps(chunk_steps, integrator, n_steps=n_steps, reassign_every=reassign_every)
    system = System(neighbor_fn, energy_fn, integrator, params, region, max_reallocations)
    is_new = state.is_new
    start = state if is_new else adopt(integrator, state)
    if start.gates is None:
        smooth = system._replace(region=region.region)
        start = _assigned(system, start, allocate(smooth, start))
    switched_at = start.step if is_new else None

    def before_chunk(state: State, chunk: Chunk, n: int):
        """Reassign where it is due; the chunk ends where it is due again."""
        neighbors = chunk.neighbors
        if state.step % reassign_every == 0 and state.step != switched_at:
            state, after = advance(system, _assigned(system, state, neighbors), neighbors, True, 0)
            state = state._replace(work=state.work + float(after.energy) - float(chunk.energy))
            neighbors = after.neighbors
        return state, neighbors, min(n, reassign_every - state.step % reassign_every)

    return drive(system, start, neighbors, n_steps, chunk_steps, reporters, limits, stop_fn, before_chunk)


def _assigned(system: System, state: State, neighbors) -> State:
    """Every atom with the expert that has the largest share of it here."""
    position, keywords = place_of(system._replace(region=None), state._replace(gates=None))
    assigned = system.neighbor_fn.assign(position, neighbors, system.region, **keywords)
    return state._replace(gates=assigned.gates)

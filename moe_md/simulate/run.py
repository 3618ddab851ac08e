"""Molecular dynamics and relaxation: a host loop over jitted chunks of steps.

An integrator (`moe_md.simulate.integrators`) needs the force once per step, at positions
that do not depend on it. So a step asks the integrator for those positions (a
step without force), updates the neighbours *there*, evaluates energy and force
in one pass, and hands the force to the integrator. A list updated one step
late, the usual loop, may miss pairs; this one may not.

An overflowed list gives wrong forces, not an exception. The jitted loop stops
at the first overflow or non-finite number; the host then allocates a larger
list at the position that did not fit, goes back to the last good state and
reruns the chunk. Numbers that stay non-finite raise `SimulationError`, which
carries the last good state.

Pure: no files, no printing. Reporters (`moe_md.reporters.trajectory`) write.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from moe_md import units
from moe_md.checks import check_count, check_not_negative, check_positive, check_value
from moe_md.failures import SimulationError
from moe_md.neighbors.neighbor_list import box_matrix
from moe_md.regions.reassigned import Reassigned
from moe_md.simulate import interrupts
from moe_md.simulate.integrators import (
    CellFire,
    Evaluation,
    Fire,
    Integrator,
    n_free,
)


class Frame(NamedTuple):
    """What a reporter sees after each chunk; host arrays."""

    step: int
    time_ps: float
    potential: float  # eV
    kinetic: float  # eV
    total: float  # eV
    temperature_K: float
    momentum: float  # norm of the total momentum, amu Å / (Å sqrt(amu / eV))
    conserved: float  # eV, what this integrator conserves, less `work`; NaN for Langevin dynamics
    pressure_GPa: float  # NaN where the integrator does not ask for it
    volume: float  # Å^3; NaN where the box is not known
    work: float  # eV, put in so far by dealing atoms out anew
    n_reallocations: int  # neighbour lists enlarged so far
    position: np.ndarray  # [n_atoms, 3], fractions of the box where the energy takes those
    velocity: np.ndarray  # [n_atoms, 3] Å / (Å sqrt(amu / eV)), as ASE
    force: np.ndarray  # [n_atoms, 3] eV/Å
    box: np.ndarray | None  # [3, 3] Å, columns; None where it was not given


class Log(NamedTuple):
    """The scalars of every frame, one array each."""

    step: np.ndarray  # [n_frames] int
    time_ps: np.ndarray  # [n_frames]
    potential: np.ndarray  # [n_frames] eV
    kinetic: np.ndarray  # [n_frames] eV
    total: np.ndarray  # [n_frames] eV
    temperature_K: np.ndarray  # [n_frames]
    momentum: np.ndarray  # [n_frames] amu Å / (Å sqrt(amu / eV))
    conserved: np.ndarray  # [n_frames] eV
    pressure_GPa: np.ndarray  # [n_frames]
    volume: np.ndarray  # [n_frames] Å^3
    work: np.ndarray  # [n_frames] eV
    n_reallocations: np.ndarray  # [n_frames] int


class State(NamedTuple):
    """Where a trajectory stands."""

    dynamics: Any  # the integrator's state: position, momentum, force, mass
    step: int
    time_ps: float
    box: Array | None = None  # [3, 3] Å, columns; None where it was not given
    n_reallocations: int = 0  # neighbour lists enlarged so far
    work: float = 0.0  # eV, put in so far by dealing atoms out anew
    # [n_atoms, n_experts], current assignment of a region of `regions.reassigned`; None for other regions
    weights: Array | None = None

    @property
    def position(self) -> Array:
        """`[n_atoms, 3]`."""
        return self.dynamics.position

    @property
    def velocity(self) -> Array:
        """`[n_atoms, 3]`, ASE's unit."""
        return self.dynamics.velocity


class Result(NamedTuple):
    """A finished run; `state` and `neighbors` start the next one."""

    state: State
    neighbors: Any
    log: Log


class Relaxation(NamedTuple):
    """A finished relaxation."""

    position: Array  # [n_atoms, 3]
    energy: float  # eV
    max_force: float  # eV/Å, norm of the largest force on an atom
    n_steps: int
    converged: bool
    neighbors: Any
    box: Array | None = None  # [3, 3] Å, columns; None where it was not given
    max_stress_GPa: float | None = None  # largest component, less the pressure; None where the cell was held


def run(
    neighbor_fn,
    energy_fn: Callable,
    integrator: Integrator,
    position=None,
    *,
    n_steps: int,
    masses=None,
    velocity=None,
    temperature_K: float | None = None,
    key: Array | None = None,
    box=None,
    state: State | None = None,
    neighbors=None,
    params=None,
    region=None,
    reassign_steps: int | None = None,
    chunk_steps: int | None = None,
    reporters: Sequence[Callable] = (),
    max_reallocations: int = 8,
) -> Result:
    """Molecular dynamics.

    A run starts from `position` and `masses` with either `velocity` or a
    Maxwell-Boltzmann draw at `temperature_K`; the total momentum is then
    removed. Or it continues from the `state` of an earlier result, under the
    same integrator or another one (a run at constant energy after one that
    does not conserve momentum removes the total momentum first).

    Nothing is compiled after the first chunk, unless a list had to grow: time
    step, temperature, friction, `params`, `region` and the length of the last
    chunk are data. Hand `neighbors` of an earlier result to the next run:
    a newly allocated list may have another shape.

    Args:
        neighbor_fn: with `allocate`, from `mixture_neighbor_list`.
        energy_fn: `energy_fn(R, neighbor=..., params=..., region=...)` in eV.
        integrator: from `nve`, `langevin`, `nose_hoover` or `npt`.
        position: `[n_atoms, 3]`, in the coordinates of the energy.
        n_steps: steps to take.
        masses: `[n_atoms]` amu.
        velocity: `[n_atoms, 3]` Å / (Å sqrt(amu / eV)), ASE's unit.
        temperature_K: of the Maxwell-Boltzmann draw.
        key: random key, needed to draw velocities and for Langevin dynamics.
        box: Å, a number, edges or columns, where the energy takes one
            (fractional coordinates); default the builder's. `npt` needs it.
        state: where to continue, instead of the six arguments above.
        neighbors: a list to use; default a new one.
        params, region: default the builder's.
        reassign_steps: steps after which the atoms of a region of
            `regions.reassigned`, which must then be given, are dealt out anew. What
            that does to the energy is `work` in frames, log and state, and left
            out of `conserved`.
        chunk_steps: steps between looks at the flags, and between frames;
            default 50, or more where slow forces want it.
        reporters: called with a `Frame` at the start (unless continuing) and
            after each chunk. One that has `on_state` is then called with the
            `State` and the neighbours: run again with both, it goes on bit for
            bit. One that has `on_failure` is called with the last good `State`
            before `SimulationError` or `KeyboardInterrupt` is raised.
        max_reallocations: times a single chunk may outgrow its list.

    Returns:
        Last state, its neighbours, and the log. Temperatures count 3 n_atoms
        degrees of freedom, less the 3 of the total momentum at constant energy.

    Raises:
        ValueError: an argument is missing, of the wrong shape, or out of range.
        SimulationError: energy or positions are not finite, or lists overflow
            again and again.
    """
    check_count("n_steps", n_steps, 0)
    chunk_steps = (
        _whole(50, integrator.outer_every)
        if chunk_steps is None
        else check_count("chunk_steps", chunk_steps, 1)
    )
    check_count("max_reallocations", max_reallocations, 0)
    _check_reassignment(neighbor_fn, region, reassign_steps)
    _check_slow(
        neighbor_fn, integrator, n_steps=n_steps, chunk_steps=chunk_steps, reassign_steps=reassign_steps
    )
    continues = state is not None
    if continues:
        if not all(x is None for x in (position, masses, velocity, temperature_K, box)):
            raise ValueError(
                "state must come alone: position, masses, velocity, temperature_K and box are part of it."
            )
        start = _adopt(state, integrator, key)
    else:
        start = _begin(integrator, position, masses, velocity, temperature_K, key, box)
    if reassign_steps is None:
        start = start._replace(weights=None)

    frames: list[tuple] = []
    good = start

    def advance(good: State, neighbors, first: bool, n: int) -> tuple[State, _Chunk]:
        following = _following(neighbor_fn, integrator, good, neighbors, region)
        return _advance_and_heal(
            neighbor_fn, energy_fn, following, params, region, max_reallocations, good, neighbors, first, n
        )

    try:
        with interrupts.kept() as check_interrupt:
            if reassign_steps is not None and start.weights is None:
                near = _allocate(neighbor_fn, integrator, start, cast(Reassigned, region).region)
                good = start = _reassigned(neighbor_fn, integrator, start, region, near)
            if neighbors is None:
                neighbors = _allocate(neighbor_fn, integrator, start, region)
            # Forces of the first positions; also those that continue, as params may be new.
            good, chunk = advance(good, neighbors, True, 0)
            done, in_domain, switched_at = 0, True, start.step if not continues else None
            while True:
                check_interrupt()
                neighbors = chunk.neighbors
                if done % chunk_steps == 0 or done == n_steps:
                    in_domain = in_domain and _check_domains(neighbor_fn, integrator, good, neighbors, region)
                    if done > 0 or not continues:
                        frame = _frame(integrator, good, chunk)
                        frames.append(tuple(getattr(frame, name) for name in Log._fields))
                        for report in reporters:
                            report(frame)
                        _tell(reporters, "on_state", good, neighbors)
                if done == n_steps:
                    break
                n = min(chunk_steps - done % chunk_steps, n_steps - done)
                if reassign_steps is not None:
                    if good.step % reassign_steps == 0 and good.step != switched_at:
                        good, neighbors = _switch(advance, neighbor_fn, integrator, good, region, chunk)
                    n = min(n, reassign_steps - good.step % reassign_steps)
                good, chunk = advance(good, neighbors, False, n)
                done += n
    except (SimulationError, KeyboardInterrupt) as error:
        if isinstance(error, SimulationError):
            error.log = _log(frames)
        _tell(reporters, "on_failure", good)
        raise
    return Result(good, neighbors, _log(frames))


def _check_reassignment(neighbor_fn, region, reassign_steps) -> None:
    if reassign_steps is None:
        return
    check_count("reassign_steps", reassign_steps, 1)
    if not hasattr(region, "assigned"):
        raise ValueError(
            f"region must be given, one of regions.reassigned, where reassign_steps is, got {region!r:.80}."
        )
    if not hasattr(neighbor_fn, "assign"):
        raise ValueError("neighbor_fn must be of mixture_neighbor_list where reassign_steps is given.")


def _whole(steps: int, every: int) -> int:
    """The next multiple."""
    return -(-steps // every) * every


def _check_slow(neighbor_fn, integrator, **counts) -> None:
    every = integrator.outer_every
    if every == 1:
        return
    if getattr(neighbor_fn, "inner_outer_split", None) is None:
        raise ValueError(
            "neighbor_fn must be of mixture_neighbor_list(..., inner_potential=...) "
            f"where outer_every = {every}."
        )
    for name, count in counts.items():
        if count is not None and count % every:
            raise ValueError(f"{name} must be a multiple of outer_every = {every}, got {count}.")


def _reassigned(neighbor_fn, dynamics, state: State, region, neighbors) -> State:
    """Every atom with the expert that has most of it now."""
    position, box = dynamics.place(state.dynamics, state.box)
    return state._replace(weights=neighbor_fn.assign(position, neighbors, region, **_given(box=box)).weights)


def _switch(advance, neighbor_fn, dynamics, good: State, region, chunk: "_Chunk") -> tuple[State, Any]:
    """The atoms dealt out anew, forces of the new owners, and the work booked."""
    good, after = advance(
        _reassigned(neighbor_fn, dynamics, good, region, chunk.neighbors), chunk.neighbors, True, 0
    )
    return good._replace(work=good.work + float(after.energy) - float(chunk.energy)), after.neighbors


def _following(neighbor_fn, integrator, state: State, neighbors, region):
    """The integrator; a thermostat on experts with the friction of their atoms of now."""
    if getattr(integrator, "expert_friction", None) is None:
        return integrator
    if not hasattr(neighbor_fn, "gate"):
        raise ValueError("neighbor_fn must be of mixture_neighbor_list where a thermostat is on experts.")
    position, box = integrator.place(state.dynamics, state.box)
    return integrator.follow(
        neighbor_fn.gate(position, neighbors, **_given(region=_owner(region, state), box=box))
    )


def _owner(region, state: State):
    """The region in force: what was dealt out is part of the state."""
    return region if state.weights is None else replace(region, weights=state.weights)


def relax(
    neighbor_fn,
    energy_fn: Callable,
    shift_fn: Callable,
    position,
    *,
    n_steps: int = 500,
    force_tolerance: float = 0.05,
    box=None,
    relax_cell: bool = False,
    pressure_GPa: float = 0.0,
    cell_mask=None,
    neighbors=None,
    params=None,
    region=None,
    chunk_steps: int = 50,
    max_reallocations: int = 8,
) -> Relaxation:
    """Walk downhill with FIRE until no atom feels more than `force_tolerance`; the cell too, if asked.

    Args:
        neighbor_fn, energy_fn, params, region, neighbors, max_reallocations: as in `run`.
        shift_fn: from `jax_md.space`.
        position: `[n_atoms, 3]`, in the coordinates of the energy.
        n_steps: at most so many.
        force_tolerance: eV/Å, positive; checked at every step.
        box: Å, as in `run`; `relax_cell` needs it.
        relax_cell: strain the box too; the energy takes fractional coordinates.
            The force on it, (dE/d strain + p V) / n_atoms in eV, obeys
            `force_tolerance` as ASE's `UnitCellFilter` has it.
        pressure_GPa: of the surroundings, where the cell relaxes.
        cell_mask: `[3, 3]`, symmetric, one where the cell may strain and zero
            where not; default everywhere.
        chunk_steps: steps between looks at the flags.

    Returns:
        The relaxed positions, and box. `converged` says whether the tolerance was met.

    Raises:
        ValueError, SimulationError: as in `run`.
    """
    check_count("n_steps", n_steps, 0)
    check_count("chunk_steps", chunk_steps, 1)
    check_count("max_reallocations", max_reallocations, 0)
    check_positive("force_tolerance", force_tolerance)
    position = _checked_position(position)
    box = None if box is None else _checked_box(box, position.dtype)
    dynamics = _cell_fire(box, pressure_GPa, cell_mask, position.dtype) if relax_cell else Fire(shift_fn)
    good = State(dynamics.start(position), 0, 0.0, box)
    if neighbors is None:
        neighbors = _allocate(neighbor_fn, dynamics, good, region)
    advance = partial(_advance_and_heal, neighbor_fn, energy_fn, dynamics, params, region, max_reallocations)
    first = True
    while True:
        good, chunk = advance(good, neighbors, first, min(chunk_steps, n_steps - good.step), force_tolerance)
        neighbors, first = chunk.neighbors, False
        converged = bool(chunk.converged)
        if converged or good.step >= n_steps:
            break
    n_atoms = position.shape[0]
    force = np.asarray(good.dynamics.force, float)
    place, box = dynamics.place(good.dynamics, good.box)
    found = Relaxation(
        position=place % 1.0 if relax_cell else place,
        energy=float(chunk.energy),
        max_force=float(np.linalg.norm(force[:n_atoms], axis=1).max()),
        n_steps=good.step,
        converged=converged,
        neighbors=neighbors,
        box=box,
    )
    if relax_cell:
        stress = np.abs(force[n_atoms:]).max() * n_atoms / float(_volume(box))
        found = found._replace(max_stress_GPa=stress / units.GPa)
    return found


def _cell_fire(box, pressure_GPa: float, cell_mask, dtype) -> CellFire:
    if box is None:
        raise ValueError(
            "box must be given where relax_cell = True (Å, a number, edges or columns), got None."
        )
    mask = np.ones((3, 3)) if cell_mask is None else np.asarray(cell_mask, float)
    if mask.shape != (3, 3) or not np.isin(mask, (0.0, 1.0)).all() or (mask != mask.T).any():
        raise ValueError(f"cell_mask must be a symmetric [3, 3] array of zeros and ones, got {cell_mask!r}.")
    check_value("pressure_GPa", pressure_GPa, float)
    return CellFire(box, float(pressure_GPa), jnp.asarray(mask, dtype))


class _Chunk(NamedTuple):
    """What the jitted loop returns, and carries."""

    state: Any
    neighbors: Any
    energy: Array
    strain_gradient: Array  # [3, 3] eV; NaN where the integrator does not ask for it
    force: Array  # [n_atoms, 3] eV/Å
    last: Array  # int, the last step tried
    overflow: Array  # bool
    finite: Array  # bool
    converged: Array  # bool


class _Energies(NamedTuple):
    """Functions of positions."""

    total: Callable
    inner: Callable | None  # the inner potential in place of the expensive expert
    inner_outer: Callable | None  # the inner energy, and what is missing from the total


@partial(jax.jit, static_argnums=0)
def _advance(
    energies: _Energies, dynamics, state, neighbors, params, region, box, first, n_steps, tolerance
) -> _Chunk:
    """`n_steps` steps, less where something stops them; step 0 (if `first`) only evaluates forces."""
    dtype = state.position.dtype
    unstrained = jnp.eye(3, dtype=dtype)

    def evaluate(position, neighbors, current_box, k):
        """Energy and force, and what the integrator is told."""
        given = _given(params=params, region=region, box=current_box)
        if dynamics.outer_every > 1:
            energy, force, impulse = _timescales(
                energies, dynamics.outer_every, k, position, neighbors, given
            )
            return energy, force, Evaluation(impulse, None)
        if not dynamics.changes_box:
            energy, gradient = jax.value_and_grad(lambda R: energies.total(R, neighbor=neighbors, **given))(
                position
            )
            return energy, -gradient, Evaluation(-gradient, None)

        def strained(R, strain):
            return energies.total(R, neighbor=neighbors, perturbation=unstrained + strain, **given)

        energy, (gradient, slope) = jax.value_and_grad(strained, argnums=(0, 1))(
            position, jnp.zeros_like(unstrained)
        )
        return energy, -gradient, Evaluation(-gradient, 0.5 * (slope + slope.T))

    def step(carry: _Chunk) -> _Chunk:
        state, k = carry.state, carry.last + 1
        place, old_box = dynamics.place(state, box)
        nothing = Evaluation(jnp.zeros_like(place), jnp.zeros_like(unstrained))
        # A box of another dtype must not change the state's.
        proposed = jax.tree.map(partial(_either, k == 0), state, dynamics.step(state, nothing, box))
        position, new_box = dynamics.place(proposed, box)
        neighbors = carry.neighbors.update(position, **_given(region=region, box=new_box))
        energy, force, found = evaluate(position, neighbors, new_box, k)
        stepped = jax.tree.map(
            partial(_either, k == 0), dynamics.receive(state, found), dynamics.step(state, found, box)
        )
        numbers = (energy, stepped.position, *jax.tree.leaves(found))
        return _Chunk(
            stepped,
            neighbors,
            energy.astype(dtype),
            carry.strain_gradient if found.strain_gradient is None else found.strain_gradient.astype(dtype),
            force.astype(dtype),
            last=k,
            overflow=jnp.asarray(neighbors.did_buffer_overflow, bool),
            finite=jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in numbers])),
            converged=jnp.max(jnp.sum(stepped.force**2, axis=1)) < tolerance**2,
        )

    def more(carry: _Chunk) -> Array:
        return (carry.last < n_steps) & ~carry.overflow & carry.finite & ~carry.converged

    no, yes = jnp.zeros((), bool), jnp.ones((), bool)
    before = jnp.where(first, -1, 0).astype(jnp.int32)
    unknown = jnp.full((3, 3), jnp.nan, dtype)
    energy, force = jnp.zeros((), dtype), jnp.zeros_like(dynamics.place(state, box)[0])
    return jax.lax.while_loop(
        more, step, _Chunk(state, neighbors, energy, unknown, force, before, no, yes, no)
    )


def _timescales(
    energies: _Energies, outer_every: int, k, position, neighbors, given
) -> tuple[Array, Array, Array]:
    """Energy, force and impulse of step `k`.

    Slow forces come only at every so many steps, but as often as they stand for.
    """

    fast_fn, split_fn = (
        cast(Callable, energies.inner),
        cast(Callable, energies.inner_outer),
    )  # as `_check_slow`

    def outer(R):
        (fast, slow), pull = jax.vjp(lambda R: split_fn(R, neighbors, **given), R)
        (of_fast,), (of_slow,) = (pull(jnp.asarray(one, R.dtype)) for one in ([1.0, 0.0], [0.0, 1.0]))
        return fast + slow, -(of_fast + of_slow), -(of_fast + outer_every * of_slow)

    def inner(R):
        energy, gradient = jax.value_and_grad(lambda R: fast_fn(R, neighbors, **given))(R)
        return energy, -gradient, -gradient

    return jax.lax.cond(k % outer_every == 0, outer, inner, position)


def _either(condition: Array, first: Array, second: Array) -> Array:
    """`where` in the dtype of `first`; keys of random numbers too."""
    second = jnp.asarray(second)
    return jnp.where(condition, first, second if second.dtype == first.dtype else second.astype(first.dtype))


def _advance_and_heal(
    neighbor_fn,
    energy_fn,
    dynamics,
    params,
    region,
    max_reallocations,
    good: State,
    neighbors,
    first: bool,
    n_steps: int,
    tolerance: float = 0.0,
) -> tuple[State, _Chunk]:
    """One chunk from the last good state, with as large a list as it takes.

    Returns where it led, and how it ended.
    """
    start = good
    for _ in range(max_reallocations + 1):
        owner = _owner(region, start)
        energies = _Energies(
            energy_fn, *(getattr(neighbor_fn, name, None) for name in ("inner_energy", "inner_outer_split"))
        )
        chunk = _advance(
            energies,
            dynamics,
            start.dynamics,
            neighbors,
            params,
            owner,
            start.box,
            first,
            n_steps,
            float(tolerance),
        )
        taken = max(int(chunk.last), 0)
        at = start.step + taken
        if not bool(chunk.overflow):
            if not bool(chunk.finite):
                raise SimulationError(
                    "energy, forces and positions must stay finite, "
                    f"got NaN or infinity at step {at}. {_advice(dynamics, at)} The last good state, "
                    f"step {good.step}, is in the error's `state`.",
                    good,
                )
            # Added chunk by chunk, so that a run that was resumed tells the same time.
            time_ps = start.time_ps + 1e-3 * taken * getattr(dynamics, "timestep_fs", 0.0)
            box = dynamics.place(chunk.state, start.box)[1]
            return start._replace(dynamics=chunk.state, step=at, time_ps=time_ps, box=box), chunk
        # Only the list was too small: this position itself comes from good forces.
        reached = start._replace(dynamics=chunk.state)
        if not bool(jnp.all(jnp.isfinite(chunk.state.position))):
            break
        try:
            neighbors = _allocate(
                neighbor_fn, dynamics, reached, region, extra_capacity=4 * start.n_reallocations
            )
        except ValueError as error:
            raise SimulationError(f"lists must stay possible, but at step {at}: {error}", good) from error
        start = start._replace(n_reallocations=start.n_reallocations + 1)
    raise SimulationError(
        f"neighbour lists must fit after growing max_reallocations = {max_reallocations} times in one chunk, "
        f"but they overflowed again at step {at}: atoms collapse onto each other, "
        f"or capacity_multiplier is too small. {_advice(dynamics, at)} "
        f"The last good state, step {good.step}, is in the error's `state`.",
        good,
    )


def _allocate(neighbor_fn, dynamics, state: State, region, **kwargs):
    position, box = dynamics.place(state.dynamics, state.box)
    return neighbor_fn.allocate(position, **_given(region=_owner(region, state), box=box), **kwargs)


def _check_domains(neighbor_fn, dynamics, state: State, neighbors, region) -> bool:
    """Whether no expert met what it does not know; warns where one did."""
    check = getattr(neighbor_fn, "check_domains", None)
    if check is None:
        return True
    position, box = dynamics.place(state.dynamics, state.box)
    return check(position, neighbors, **_given(region=_owner(region, state), box=box))


def _tell(reporters, what: str, *news) -> None:
    for report in reporters:
        if hasattr(report, what):
            getattr(report, what)(*news)


def _advice(dynamics, step: int) -> str:
    if step == 0:
        return "Change the starting positions: atoms may overlap, or params may not be finite."
    if isinstance(dynamics, (Fire, CellFire)):
        return "Start the relaxation from positions with smaller forces."
    return (
        f"Try a shorter timestep_fs (now {float(dynamics.timestep_fs):g}), relax first, "
        "or train on configurations like the last ones: atoms may have left what the experts know."
    )


def _begin(integrator, position, masses, velocity, temperature_K, key, box) -> State:
    position = _checked_position(position)
    n_atoms = position.shape[0]
    if masses is None:
        raise ValueError(f"masses must have shape [{n_atoms}] (amu), got None.")
    mass = _numbers("masses", masses)
    if mass.shape != (n_atoms,):
        raise ValueError(f"masses must have shape [{n_atoms}] (amu), got {mass.shape}.")
    if not (np.isfinite(mass).all() and (mass > 0).all()):
        raise ValueError(f"masses must be positive (amu), got a smallest of {mass.min()}.")
    if (velocity is None) == (temperature_K is None):
        raise ValueError(
            f"give either velocity or temperature_K, got {'both' if velocity is not None else 'neither'}."
        )
    if key is None and (temperature_K is not None or integrator.needs_key):
        raise ValueError("key must be a random key, to draw velocities or for Langevin dynamics, got None.")
    column = jnp.asarray(mass[:, None], position.dtype)
    if key is not None and not _is_key(key):
        raise ValueError(f"key must be a random key, got {key!r:.80}.")
    if velocity is not None:
        velocity = _numbers("velocity", velocity)
        if np.shape(velocity) != (n_atoms, 3) or not np.isfinite(np.asarray(velocity)).all():
            raise ValueError(
                f"velocity must be finite and have shape [{n_atoms}, 3], got shape {np.shape(velocity)}."
            )
        momentum = column * jnp.asarray(velocity, position.dtype)
    else:
        check_not_negative("temperature_K", temperature_K)
        key, draw = jax.random.split(key)
        spread = jnp.sqrt(column * (units.kB * float(temperature_K)))
        momentum = spread * jax.random.normal(draw, position.shape, position.dtype)
    box = None if box is None else _checked_box(box, position.dtype)
    if integrator.changes_box and box is None:
        raise ValueError(
            "box must be given (Å, a number, edges or columns) where the integrator moves it, got None."
        )
    dynamics = integrator.start(position, _without_drift(momentum, column), column[:, 0], key, box)
    return State(dynamics, 0, 0.0, box)


def _adopt(state: State, integrator, key) -> State:
    """The same atoms under this integrator; its own state goes on as it is."""
    old = state.dynamics
    if key is None and integrator.needs_key and not hasattr(old, "rng"):
        raise ValueError("key must be a random key for Langevin dynamics, got None.")
    if integrator.changes_box and state.box is None:
        raise ValueError(
            "state must know its box where the integrator moves it: begin the earlier run with box=."
        )
    new = integrator.start(
        old.position,
        old.momentum,
        old.mass[:, 0],
        getattr(old, "rng", None) if key is None else key,
        state.box,
    )
    if type(new) is type(old):
        chains = [name for name in ("chain", "thermostat", "barostat") if hasattr(old, name)]
        kept = {name: getattr(old, name).set(tau=getattr(new, name).tau) for name in chains}
        return state._replace(dynamics=old.set(**kept, **({"rng": new.rng} if hasattr(old, "rng") else {})))
    if integrator.conserves_momentum:
        new = integrator.start(
            old.position, _without_drift(old.momentum, old.mass), old.mass[:, 0], None, state.box
        )
    return state._replace(dynamics=new)


def _without_drift(momentum: Array, mass: Array) -> Array:
    if momentum.shape[0] == 1:
        return momentum
    return momentum - mass * (jnp.sum(momentum, axis=0, keepdims=True) / jnp.sum(mass))


def _frame(integrator, state: State, chunk: _Chunk) -> Frame:
    momentum, mass = np.asarray(state.dynamics.momentum, float), np.asarray(state.dynamics.mass, float)
    kinetic = float(0.5 * np.sum(momentum**2 / mass))
    total = float(chunk.energy) + kinetic
    volume = np.nan if state.box is None else _volume(state.box)
    virial = float(np.trace(np.asarray(chunk.strain_gradient, float)))
    counts = n_free(momentum) if integrator.conserves_momentum else momentum.size
    return Frame(
        step=state.step,
        time_ps=state.time_ps,
        potential=float(chunk.energy),
        kinetic=kinetic,
        total=total,
        temperature_K=2 * kinetic / (counts * units.kB),
        momentum=float(np.linalg.norm(momentum.sum(axis=0))),
        conserved=total + float(integrator.reservoir(state.dynamics)) - state.work,
        pressure_GPa=(2 * kinetic - virial) / (3 * volume) / units.GPa,
        volume=volume,
        work=state.work,
        n_reallocations=state.n_reallocations,
        position=np.asarray(state.position),
        velocity=np.asarray(state.velocity),
        force=np.asarray(chunk.force),
        box=None if state.box is None else np.asarray(state.box, float),
    )


def _volume(box) -> float:
    return abs(np.linalg.det(np.asarray(box, float)))


def _log(frames: list[tuple]) -> Log:
    columns = zip(*frames) if frames else [()] * len(Log._fields)
    counts = ("step", "n_reallocations")
    return Log(*(np.asarray(c, int if f in counts else float) for f, c in zip(Log._fields, columns)))


def _given(**kwargs) -> dict:
    return {k: v for k, v in kwargs.items() if v is not None}


def _numbers(name: str, value) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unequal length
        array = np.asarray(None)
    if array.dtype.kind not in "iuf" and array.dtype != jnp.bfloat16:
        raise ValueError(f"{name} must be numbers, got {value!r:.80}.")
    return array


def _is_key(value) -> bool:
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return False
    shape = np.shape(value)
    return (jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()) or (
        dtype == np.uint32 and len(shape) == 1
    )


def _checked_position(position) -> Array:
    shape = _numbers("position", position).shape
    if len(shape) != 2 or shape[1] != 3 or shape[0] == 0:
        raise ValueError(f"position must have shape [n_atoms, 3], got {shape}.")
    position = jnp.asarray(position)
    if not jnp.issubdtype(position.dtype, jnp.floating):
        raise ValueError(f"position must be floating point, got {position.dtype}.")
    if not bool(jnp.all(jnp.isfinite(position))):
        raise ValueError("position must be finite, got NaN or infinity.")
    return position


def _checked_box(box, dtype) -> Array:
    matrix = np.asarray(box_matrix(np.asarray(box, float)))
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-6:
        raise ValueError(f"box must be a number, three edges or three independent columns (Å), got {box!r}.")
    return jnp.asarray(matrix, dtype)

"""Molecular dynamics and relaxation: a host loop over jitted chunks of steps.

jax-md supplies the integrators. Each needs the force once per step, at
positions that do not depend on it. So a step asks the integrator for those
positions (a step without force), updates the neighbours *there*, evaluates
energy and force in one pass, and hands the force to the integrator. A list
updated one step late, the usual loop, may miss pairs; this one may not.

An overflowed list gives wrong forces, not an exception. The jitted loop stops
at the first overflow or non-finite number; the host then allocates a larger
list at the position that did not fit, goes back to the last good state and
reruns the chunk. Numbers that stay non-finite raise `SimulationError`, which
carries the last good state.

Pure: no files, no printing. Reporters (`moe_md.analysis.trajectory`) write.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, NamedTuple, Protocol, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax_md import minimize
from jax_md import simulate as integrators

from moe_md import units


class Frame(NamedTuple):
    """What a reporter sees after each chunk; host arrays."""

    step: int
    time_ps: float
    potential: float  # eV
    kinetic: float  # eV
    total: float  # eV
    temperature_K: float
    momentum: float  # norm of the total momentum, amu Å / (Å sqrt(amu / eV))
    n_regrown: int  # neighbour lists enlarged so far in this run
    position: np.ndarray  # [n_atoms, 3]
    velocity: np.ndarray  # [n_atoms, 3] Å / (Å sqrt(amu / eV)), as ASE
    force: np.ndarray  # [n_atoms, 3] eV/Å


class Log(NamedTuple):
    """The scalars of every frame, one array each."""

    step: np.ndarray  # [n_frames] int
    time_ps: np.ndarray  # [n_frames]
    potential: np.ndarray  # [n_frames] eV
    kinetic: np.ndarray  # [n_frames] eV
    total: np.ndarray  # [n_frames] eV
    temperature_K: np.ndarray  # [n_frames]
    momentum: np.ndarray  # [n_frames] amu Å / (Å sqrt(amu / eV))
    n_regrown: np.ndarray  # [n_frames] int


class State(NamedTuple):
    """Where a trajectory stands."""

    dynamics: Any  # jax-md's state: position, momentum, force, mass
    step: int
    time_ps: float

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


class SimulationError(RuntimeError):
    """Numbers went bad; `state` is the last good one, `log` what was logged."""

    def __init__(self, message: str, state: State, log: Log | None = None):
        super().__init__(message)
        self.state = state
        self.log = log


class Integrator(Protocol):
    """How positions move: a pytree, so that its numbers never recompile."""

    def functions(self, force_fn: Callable) -> tuple[Callable, Callable]:
        """jax-md's `(init_fn, apply_fn)`."""
        ...

    def start(self, position: Array, momentum: Array, masses: Array, key) -> Any:
        """jax-md's state, forces yet unknown."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NVE:
    """Velocity Verlet."""

    timestep_fs: float
    shift_fn: Callable = field(metadata={"static": True})

    conserves_momentum = True
    needs_key = False

    def functions(self, force_fn):
        """jax-md's `(init_fn, apply_fn)`."""
        return integrators.nve(force_fn, self.shift_fn, self.timestep_fs * units.fs)

    def start(self, position, momentum, masses, key):
        """jax-md's state, forces yet unknown."""
        del key
        return integrators.NVEState(position, momentum, jnp.zeros_like(position), masses[:, None])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Langevin:
    """BAOAB Langevin dynamics (Davidchack et al., J. Chem. Phys. 142, 144114)."""

    timestep_fs: float
    temperature_K: float
    friction_per_fs: float
    shift_fn: Callable = field(metadata={"static": True})

    conserves_momentum = False
    needs_key = True

    def functions(self, force_fn):
        """jax-md's `(init_fn, apply_fn)`."""
        return integrators.nvt_langevin(
            force_fn,
            self.shift_fn,
            self.timestep_fs * units.fs,
            self.temperature_K * units.kB,
            self.friction_per_fs / units.fs,
        )

    def start(self, position, momentum, masses, key):
        """jax-md's state, forces yet unknown."""
        zero = jnp.zeros_like(position)
        return integrators.NVTLangevinState(position, momentum, zero, masses[:, None], key)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fire:
    """FIRE descent with unit masses (Bitzek et al., PRL 97, 170201)."""

    shift_fn: Callable = field(metadata={"static": True})
    dt_start: float = field(default=0.05, metadata={"static": True})  # Å sqrt(amu / eV)
    dt_max: float = field(default=0.2, metadata={"static": True})

    def functions(self, force_fn):
        """jax-md's `(init_fn, apply_fn)`."""
        return minimize.fire_descent(force_fn, self.shift_fn, self.dt_start, self.dt_max)

    def start(self, position):
        """jax-md's state, forces yet unknown."""
        init_fn, _ = self.functions(lambda R, **_: jnp.zeros_like(R))
        return init_fn(position, mass=jnp.ones((position.shape[0], 1), position.dtype))


def nve(shift_fn: Callable, timestep_fs: float) -> NVE:
    """Constant energy: velocity Verlet.

    Args:
        shift_fn: from `jax_md.space`.
        timestep_fs: positive.

    Raises:
        ValueError: the time step is not positive.
    """
    _check_positive("timestep_fs", timestep_fs)
    return NVE(float(timestep_fs), shift_fn)


def langevin(shift_fn: Callable, timestep_fs: float, temperature_K: float, friction_per_fs: float) -> Langevin:
    """Constant temperature: Langevin dynamics. Total momentum is not conserved.

    Args:
        shift_fn: from `jax_md.space`.
        timestep_fs: positive.
        temperature_K: not negative.
        friction_per_fs: rate at which velocities are forgotten, positive; 0.01
            equilibrates in a fraction of a picosecond.

    Raises:
        ValueError: an argument is out of range.
    """
    _check_positive("timestep_fs", timestep_fs)
    _check_not_negative("temperature_K", temperature_K)
    _check_positive("friction_per_fs", friction_per_fs)
    return Langevin(float(timestep_fs), float(temperature_K), float(friction_per_fs), shift_fn)


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
    state: State | None = None,
    neighbors=None,
    params=None,
    region=None,
    chunk_steps: int = 50,
    reporters: Sequence[Callable] = (),
    max_regrow: int = 8,
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
        integrator: from `nve` or `langevin`.
        position: `[n_atoms, 3]`.
        n_steps: steps to take.
        masses: `[n_atoms]` amu.
        velocity: `[n_atoms, 3]` Å / (Å sqrt(amu / eV)), ASE's unit.
        temperature_K: of the Maxwell-Boltzmann draw.
        key: random key, needed to draw velocities and for Langevin dynamics.
        state: where to continue, instead of the five arguments above.
        neighbors: a list to use; default a new one.
        params, region: default the builder's.
        chunk_steps: steps between looks at the flags, and between frames.
        reporters: called with a `Frame` at the start (unless continuing) and
            after each chunk. If a reporter has `on_failure`, it is called with
            the last good `State` before `SimulationError` is raised.
        max_regrow: times a single chunk may outgrow its list.

    Returns:
        Last state, its neighbours, and the log. Temperatures count 3 n_atoms
        degrees of freedom, less the 3 of the total momentum at constant energy.

    Raises:
        ValueError: an argument is missing, of the wrong shape, or out of range.
        SimulationError: energy or positions are not finite, or lists overflow
            again and again.
    """
    _check_count("n_steps", n_steps, 0)
    _check_count("chunk_steps", chunk_steps, 1)
    _check_count("max_regrow", max_regrow, 0)
    continues = state is not None
    if continues:
        if not (position is None and masses is None and velocity is None and temperature_K is None):
            raise ValueError("state must come alone: position, masses, velocity and temperature_K are part of it.")
        start = _adopt(state, integrator, key)
    else:
        start = State(_begin(integrator, position, masses, velocity, temperature_K, key), 0, 0.0)

    conserved = integrator.conserves_momentum and start.position.shape[0] > 1
    n_free = 3 * start.position.shape[0] - (3 if conserved else 0)
    frames: list[tuple] = []
    good, n_regrown = start, 0
    advance = partial(_advance_and_heal, neighbor_fn, energy_fn, integrator, params, region, max_regrow)
    try:
        if neighbors is None:
            neighbors = neighbor_fn.allocate(start.position, **_given(region=region))
        # Forces of the first positions; also those that continue, as params may be new.
        done, first = 0, True
        while first or done < n_steps:
            n = 0 if first else min(chunk_steps, n_steps - done)
            chunk, grown = advance(good, neighbors, first, n, n_regrown)
            done, n_regrown, neighbors = done + n, grown, chunk.neighbors
            time_ps = start.time_ps + 1e-3 * done * integrator.timestep_fs
            good = State(chunk.state, start.step + done, time_ps)
            if not (first and continues):
                frame = _frame(good, float(chunk.energy), n_free, n_regrown)
                frames.append(frame[: len(Log._fields)])
                for report in reporters:
                    report(frame)
            first = False
    except SimulationError as error:
        error.log = _log(frames)
        for report in reporters:
            if hasattr(report, "on_failure"):
                report.on_failure(error.state)
        raise
    return Result(good, neighbors, _log(frames))


def relax(
    neighbor_fn,
    energy_fn: Callable,
    shift_fn: Callable,
    position,
    *,
    n_steps: int = 500,
    force_tolerance: float = 0.05,
    neighbors=None,
    params=None,
    region=None,
    chunk_steps: int = 50,
    max_regrow: int = 8,
) -> Relaxation:
    """Walk downhill with FIRE until no atom feels more than `force_tolerance`.

    Args:
        neighbor_fn, energy_fn, params, region, neighbors, max_regrow: as in `run`.
        shift_fn: from `jax_md.space`.
        position: `[n_atoms, 3]`.
        n_steps: at most so many.
        force_tolerance: eV/Å, positive; checked at every step.
        chunk_steps: steps between looks at the flags.

    Returns:
        The relaxed positions. `converged` says whether the tolerance was met.

    Raises:
        ValueError, SimulationError: as in `run`.
    """
    _check_count("n_steps", n_steps, 0)
    _check_count("chunk_steps", chunk_steps, 1)
    _check_count("max_regrow", max_regrow, 0)
    _check_positive("force_tolerance", force_tolerance)
    dynamics = Fire(shift_fn)
    good = State(dynamics.start(_checked_position(position)), 0, 0.0)
    if neighbors is None:
        neighbors = neighbor_fn.allocate(good.position, **_given(region=region))
    advance = partial(_advance_and_heal, neighbor_fn, energy_fn, dynamics, params, region, max_regrow)
    first, n_regrown = True, 0
    while True:
        n = min(chunk_steps, n_steps - good.step)
        chunk, n_regrown = advance(good, neighbors, first, n, n_regrown, force_tolerance)
        neighbors, first = chunk.neighbors, False
        good = State(chunk.state, good.step + int(chunk.last), 0.0)
        converged = bool(chunk.converged)
        if converged or good.step >= n_steps:
            break
    max_force = float(np.linalg.norm(np.asarray(good.dynamics.force, float), axis=1).max())
    return Relaxation(good.position, float(chunk.energy), max_force, good.step, converged, neighbors)


class _Chunk(NamedTuple):
    """What the jitted loop returns, and carries."""

    state: Any
    neighbors: Any
    energy: Array
    last: Array  # int, the last step tried
    overflow: Array  # bool
    finite: Array  # bool
    converged: Array  # bool


@partial(jax.jit, static_argnums=0)
def _advance(energy_fn, dynamics, state, neighbors, params, region, first, n_steps, tolerance) -> _Chunk:
    """`n_steps` steps, less where something stops them; step 0 (if `first`) only evaluates forces."""
    given = _given(params=params, region=region)
    energy_and_gradient = jax.value_and_grad(lambda R, neighbor: energy_fn(R, neighbor=neighbor, **given))
    _, coast = dynamics.functions(lambda R, **_: jnp.zeros_like(R))

    def step(carry: _Chunk) -> _Chunk:
        state = carry.state
        k = carry.last + 1
        # A box of another dtype must not change the state's.
        position = _either(k == 0, state.position, coast(state).position)
        neighbors = carry.neighbors.update(position, **_given(region=region))
        energy, gradient = energy_and_gradient(position, neighbors)
        _, apply_fn = dynamics.functions(lambda R, **_: -gradient)
        stepped = jax.tree.map(partial(_either, k == 0), state.set(force=-gradient), apply_fn(state))
        return _Chunk(
            stepped,
            neighbors,
            energy.astype(carry.energy.dtype),
            last=k,
            overflow=jnp.asarray(neighbors.did_buffer_overflow, bool),
            finite=jnp.isfinite(energy) & jnp.all(jnp.isfinite(stepped.position)) & jnp.all(jnp.isfinite(gradient)),
            converged=jnp.max(jnp.sum(gradient**2, axis=1)) < tolerance**2,
        )

    def more(carry: _Chunk) -> Array:
        return (carry.last < n_steps) & ~carry.overflow & carry.finite & ~carry.converged

    no, yes = jnp.zeros((), bool), jnp.ones((), bool)
    before = jnp.where(first, -1, 0).astype(jnp.int32)
    energy = jnp.zeros((), state.position.dtype)
    return jax.lax.while_loop(more, step, _Chunk(state, neighbors, energy, before, no, yes, no))


def _either(condition: Array, first: Array, second: Array) -> Array:
    """`where` in the dtype of `first`."""
    return jnp.where(condition, first, second if second.dtype == first.dtype else second.astype(first.dtype))


def _advance_and_heal(
    neighbor_fn,
    energy_fn,
    dynamics,
    params,
    region,
    max_regrow,
    good: State,
    neighbors,
    first: bool,
    n_steps: int,
    n_regrown: int,
    tolerance: float = 0.0,
) -> tuple[_Chunk, int]:
    """One chunk from the last good state, with as large a list as it takes."""
    for _ in range(max_regrow + 1):
        chunk = _advance(
            energy_fn, dynamics, good.dynamics, neighbors, params, region, first, n_steps, float(tolerance)
        )
        at = good.step + int(chunk.last)
        if not bool(chunk.overflow):
            if bool(chunk.finite):
                return chunk, n_regrown
            raise SimulationError(
                f"energy, forces and positions must stay finite, got NaN or infinity at step {at}. {_advice(dynamics, at)} "
                f"The last good state, step {good.step}, is in the error's `state`.",
                good,
            )
        # Only the list was too small: this position itself comes from good forces.
        position = chunk.state.position
        if not bool(jnp.all(jnp.isfinite(position))):
            break
        neighbors = neighbor_fn.allocate(position, extra_capacity=4 * n_regrown, **_given(region=region))
        n_regrown += 1
    raise SimulationError(
        f"neighbour lists must fit after growing max_regrow = {max_regrow} times in one chunk, but they overflowed again "
        f"at step {at}: atoms collapse onto each other, or capacity_multiplier is too small. {_advice(dynamics, at)} "
        f"The last good state, step {good.step}, is in the error's `state`.",
        good,
    )


def _advice(dynamics, step: int) -> str:
    if step == 0:
        return "Change the starting positions: atoms may overlap, or params may not be finite."
    if isinstance(dynamics, Fire):
        return "Start the relaxation from positions with smaller forces."
    return (
        f"Try a shorter timestep_fs (now {float(dynamics.timestep_fs):g}), relax first, or train on configurations like the "
        "last ones: atoms may have left what the experts know."
    )


def _begin(integrator, position, masses, velocity, temperature_K, key):
    position = _checked_position(position)
    n_atoms = position.shape[0]
    if masses is None or np.shape(masses) != (n_atoms,):
        raise ValueError(f"masses must have shape [{n_atoms}] (amu), got {None if masses is None else np.shape(masses)}.")
    mass = np.asarray(masses, float)
    if not (np.isfinite(mass).all() and (mass > 0).all()):
        raise ValueError(f"masses must be positive (amu), got a smallest of {mass.min()}.")
    if (velocity is None) == (temperature_K is None):
        raise ValueError(f"give either velocity or temperature_K, got {'both' if velocity is not None else 'neither'}.")
    if key is None and (temperature_K is not None or integrator.needs_key):
        raise ValueError("key must be a random key, to draw velocities or for Langevin dynamics, got None.")
    column = jnp.asarray(mass[:, None], position.dtype)
    if velocity is not None:
        if np.shape(velocity) != (n_atoms, 3) or not np.isfinite(np.asarray(velocity)).all():
            raise ValueError(f"velocity must be finite and have shape [{n_atoms}, 3], got shape {np.shape(velocity)}.")
        momentum = column * jnp.asarray(velocity, position.dtype)
    else:
        _check_not_negative("temperature_K", temperature_K)
        key, draw = jax.random.split(key)
        spread = jnp.sqrt(column * (units.kB * float(temperature_K)))
        momentum = spread * jax.random.normal(draw, position.shape, position.dtype)
    return integrator.start(position, _without_drift(momentum, column), column[:, 0], key)


def _adopt(state: State, integrator, key) -> State:
    """The same atoms under this integrator."""
    old = state.dynamics
    if key is None and integrator.needs_key and not hasattr(old, "rng"):
        raise ValueError("key must be a random key for Langevin dynamics, got None.")
    new = integrator.start(old.position, old.momentum, old.mass[:, 0], getattr(old, "rng", None) if key is None else key)
    if integrator.conserves_momentum and type(new) is not type(old):
        new = new.set(momentum=_without_drift(new.momentum, new.mass))
    return state._replace(dynamics=new)


def _without_drift(momentum: Array, mass: Array) -> Array:
    if momentum.shape[0] == 1:
        return momentum
    return momentum - mass * (jnp.sum(momentum, axis=0) / jnp.sum(mass))


def _frame(state: State, energy: float, n_free: int, n_regrown: int) -> Frame:
    momentum, mass = np.asarray(state.dynamics.momentum, float), np.asarray(state.dynamics.mass, float)
    kinetic = float(0.5 * np.sum(momentum**2 / mass))
    return Frame(
        step=state.step,
        time_ps=state.time_ps,
        potential=energy,
        kinetic=kinetic,
        total=energy + kinetic,
        temperature_K=2 * kinetic / (n_free * units.kB),
        momentum=float(np.linalg.norm(momentum.sum(axis=0))),
        n_regrown=n_regrown,
        position=np.asarray(state.position),
        velocity=np.asarray(state.velocity),
        force=np.asarray(state.dynamics.force),
    )


def _log(frames: list[tuple]) -> Log:
    columns = zip(*frames) if frames else [()] * len(Log._fields)
    counts = ("step", "n_regrown")
    return Log(*(np.asarray(c, int if f in counts else float) for f, c in zip(Log._fields, columns)))


def _given(**kwargs) -> dict:
    return {k: v for k, v in kwargs.items() if v is not None}


def _checked_position(position) -> Array:
    if position is None or np.ndim(position) != 2 or np.shape(position)[1] != 3 or len(position) == 0:
        raise ValueError(
            f"position must have shape [n_atoms, 3], got {None if position is None else np.shape(position)}."
        )
    position = jnp.asarray(position)
    if not jnp.issubdtype(position.dtype, jnp.floating):
        raise ValueError(f"position must be floating point, got {position.dtype}.")
    if not bool(jnp.all(jnp.isfinite(position))):
        raise ValueError("position must be finite, got NaN or infinity.")
    return position


def _check_positive(name: str, value) -> None:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive, got {value}.")


def _check_not_negative(name: str, value) -> None:
    if not (np.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must not be negative, got {value}.")


def _check_count(name: str, value, least: int) -> None:
    if int(value) != value or value < least:
        raise ValueError(f"{name} must be a whole number, at least {least}, got {value}.")
